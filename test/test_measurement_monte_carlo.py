"""The analytic propagation against Monte Carlo, as JCGM 101:2008 asks: every input drawn from its distribution."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from test_measurement_measure import CAMERA, Cap, Wall, make_cloud, run

from cmml_ros.config import MeasurementConfig
from cmml_ros.geometry.cloud import ProjectedCloud
from cmml_ros.measurement.defect import Measurement, Status

CAP = Cap(0.0, 0.0, 0.008, 0.004)
WALL = Wall([CAP])
NOISE_M = 0.0003
DISTANCE_STD_M = 0.002
BOUNDARY_STD_PX = 0.25
PIXEL_M = WALL.distance_m / CAMERA.fx


def scan(rng: np.random.Generator) -> ProjectedCloud:
    return WALL.scan(60_000, NOISE_M, rng)


def variance(results: list[Measurement], name: str) -> float:
    return float(np.var([getattr(result, name) for result in results], ddof=1))


@pytest.mark.slow
def test_all_inputs_drawn_give_the_stated_deviations() -> None:
    """Noise, distance and rim; the shape is the same each time, so its part of the budget stays out."""
    rng = np.random.default_rng(0)
    stated = MeasurementConfig(distance_std_m=DISTANCE_STD_M, boundary_std_px=BOUNDARY_STD_PX)
    results = []
    for _ in range(150):
        cloud = scan(rng)
        # A range error common to all points moves them along their rays.
        lengths = np.linalg.norm(cloud.points_camera, axis=1, keepdims=True)
        points = cloud.points_camera * (1.0 + DISTANCE_STD_M * rng.standard_normal() / lengths)
        # A rim that lies farther out everywhere is the mask of a wider hole.
        wider_m = BOUNDARY_STD_PX * rng.standard_normal() * PIXEL_M
        mask = Wall([replace(CAP, radius=CAP.radius + wider_m)]).mask(0)
        (result,) = run([mask], ProjectedCloud(points, cloud.pixels), stated)
        assert result.volume_status is Status.MEASURED
        results.append(result)
    budgets = results[0].area_budget, results[0].depth_budget, results[0].volume_budget
    names = ('area_m2', 'depth_max_m', 'volume_m3')
    for budget, name in zip(budgets, names, strict=True):
        assert budget is not None
        without_shape = math.sqrt(budget.std**2 - budget.shape)
        drawn = math.sqrt(variance(results, name))
        # 150 draws know a deviation to 6 %; the depth below the rim counts fully in the area and little in the depth.
        assert without_shape == pytest.approx(drawn, rel=0.3), name


@pytest.mark.slow
def test_white_noise_alone_gives_the_noise_and_surface_terms() -> None:
    rng = np.random.default_rng(1)
    (mask,) = WALL.masks
    results = [run([mask], scan(rng))[0] for _ in range(150)]
    for quantity in ('depth', 'volume'):
        budgets = [getattr(result, f'{quantity}_budget') for result in results]
        stated = math.sqrt(float(np.mean([budget.noise + budget.surface for budget in budgets])))
        drawn = math.sqrt(variance(results, {'depth': 'depth_max_m', 'volume': 'volume_m3'}[quantity]))
        assert stated == pytest.approx(drawn, rel=0.3), quantity


def test_a_wrong_extrinsic_changes_the_volume_by_no_more_than_stated() -> None:
    cap = Cap(0.0, 0.0, 0.006, 0.0058)  # nearly half a sphere: steep at its rim
    wall = Wall([cap])
    cloud = wall.scan(150_000, 0.0001, np.random.default_rng(1))
    for shift_m in (0.0002, 0.0004, 0.0008):
        config = MeasurementConfig(extrinsic_translation_std_m=shift_m)
        (result,) = run(wall.masks, make_cloud(cloud.points_camera + np.array([shift_m, 0.0, 0.0])), config)
        assert result.volume_budget is not None
        lost_m3 = abs(result.volume_m3 - cap.volume)
        assert lost_m3 < 1.96 * math.sqrt(result.volume_budget.calibration)
        assert math.sqrt(result.volume_budget.calibration) < 30.0 * lost_m3
    # Half a milliradian at half a metre is a quarter of a millimetre.
    turned, moved = (
        run(wall.masks, cloud, MeasurementConfig(**{name: value}))[0].volume_budget
        for name, value in (('extrinsic_rotation_std_rad', 0.0005), ('extrinsic_translation_std_m', 0.00025))
    )
    assert turned is not None
    assert moved is not None
    assert turned.calibration == pytest.approx(moved.calibration, rel=1e-3)


def test_scale_terms_are_what_a_person_computes() -> None:
    cloud = WALL.scan(60_000, 0.0001, np.random.default_rng(2))
    (result,) = run(WALL.masks, cloud, MeasurementConfig(focal_std_ratio=0.005))
    assert result.area_budget is not None
    # Half a percent of the focal length is one percent of the area: 2.01 mm2 of 201 mm2.
    assert math.sqrt(result.area_budget.bias) * 1e6 == pytest.approx(2.01, rel=0.01)
    assert result.area_std_m2 == pytest.approx(result.area_budget.std)
    assert result.volume_std_m3 == pytest.approx(result.volume_budget.std if result.volume_budget else 0.0)
