"""Surfaces and views that are not a clean plane seen head-on, on walls in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from test_measurement_measure import CAMERA, Cap, Wall, make_cloud, run

from cmml_ros.geometry.cloud import ProjectedCloud, project_cloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.defect import Status
from cmml_ros.simulation.camera import see
from cmml_ros.simulation.cavity import make_airhole
from cmml_ros.simulation.range_sensor import DepthCamera
from cmml_ros.simulation.scene import Scene, assemble_scene
from cmml_ros.simulation.wall import Kind
from cmml_ros.simulation.wall import Wall as SceneWall

Array = NDArray[np.float64]
CAP = Cap(0.0, 0.0, 0.006, 0.003)


def make_curved(kind: Kind, radius_m: float, diameter_m: float, depth_ratio: float) -> tuple[Scene, SE3]:
    """A wall with one cap in its middle, and a camera half a metre in front of it."""
    wall = SceneWall(kind, 0.5, 0.5, radius_m)
    cavity = make_airhole('cap', diameter_m, depth_ratio, None).moved(np.array([0.25, 0.25]))
    scene = assemble_scene(wall, ['cap'], [cavity], np.random.default_rng(0))
    pose = SE3(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]), np.array([0.25, -0.5, 0.25]))
    return scene, pose


def mask_of(scene: Scene, pose: SE3) -> InstanceMask:
    coverage = see(scene, CAMERA, pose, np.random.default_rng(0)).coverage
    rows, columns = np.nonzero(coverage)
    top, left, bottom, right = rows.min() - 1, columns.min() - 1, rows.max() + 2, columns.max() + 2
    return InstanceMask(coverage[top:bottom, left:right].astype(np.float32), int(left), int(top), 1.0)


@pytest.mark.parametrize(('kind', 'radius_m'), [('column', 0.3), ('column', 0.6), ('tunnel', 2.0), ('tunnel', 5.0)])
def test_columns_and_tunnels(kind: Kind, radius_m: float) -> None:
    scene, pose = make_curved(kind, radius_m, 0.020, 0.3)
    sensor = DepthCamera(width=730, height=411, range_noise_m=0.0001, bias_m=0.0, edge_fattening=0.0)
    cloud = project_cloud(sensor.scan(scene, pose, np.random.default_rng(1)), CAMERA, SE3.identity())
    (m,) = run([mask_of(scene, pose)], cloud)
    (truth,) = scene.holes
    assert (m.area_status, m.volume_status) == (Status.MEASURED, Status.MEASURED)
    assert m.area_m2 == pytest.approx(truth.area_m2, rel=0.01)
    assert m.depth_max_m == pytest.approx(truth.depth_max_m, rel=0.02)
    # A chord over this airhole would miss 0.17 mm of 6 mm at 0.3 m, 5 % of the volume.
    assert m.volume_m3 == pytest.approx(truth.volume_m3, rel=0.03)
    assert abs(m.volume_m3 - truth.volume_m3) < 2.5 * m.volume_std_m3


@pytest.mark.parametrize('offset_m', [0.004, 0.009])
def test_a_board_step_beside_the_airhole_does_not_bias_its_depth(offset_m: float) -> None:
    """Boards leave steps of 2 mm; the airhole lies on the nearer board, the step runs beside it or through its ring."""
    wall = Wall([CAP])
    cloud = wall.scan(200_000, 0.0001, np.random.default_rng(2))
    points = cloud.points_camera.copy()
    beyond = points[:, 0] > CAP.radius + offset_m
    points[beyond] *= 1.0 + 0.002 / points[beyond, 2:]
    (m,) = run(wall.masks, ProjectedCloud(points, cloud.pixels))
    assert m.volume_status is Status.MEASURED
    assert m.depth_max_m == pytest.approx(CAP.depth, abs=max(0.03 * CAP.depth, 2.5 * m.depth_max_std_m))
    assert m.volume_m3 == pytest.approx(CAP.volume, abs=max(0.03 * CAP.volume, 2.5 * m.volume_std_m3))
    assert m.volume_std_m3 < 0.25 * CAP.volume


def test_a_cloud_that_ends_beside_the_airhole_widens_the_deviation_only() -> None:
    wall = Wall([CAP])
    cloud = wall.scan(200_000, 0.0001, np.random.default_rng(3))
    kept = cloud.points_camera[:, 0] < 0.0075  # 1.5 mm beyond the rim
    (whole,) = run(wall.masks, cloud)
    (m,) = run(wall.masks, ProjectedCloud(cloud.points_camera[kept], cloud.pixels[kept]))
    assert m.volume_status is Status.MEASURED
    assert m.volume_m3 == pytest.approx(CAP.volume, rel=0.03)
    assert m.volume_std_m3 >= 0.99 * whole.volume_std_m3


def test_an_airhole_near_the_border_of_the_picture_is_whole() -> None:
    wall = Wall([replace(CAP, x=0.145)])  # its rim ends 16 px inside the picture
    (m,) = run(wall.masks, wall.scan(200_000, 0.0001, np.random.default_rng(4)))
    assert m.area_m2 == pytest.approx(CAP.area, rel=0.01)
    assert m.volume_m3 == pytest.approx(CAP.volume, rel=0.03)


@pytest.mark.parametrize('incidence_deg', [30, 45, 60])
def test_oblique_views(incidence_deg: float) -> None:
    wall = Wall([CAP], math.radians(incidence_deg))
    (m,) = run(wall.masks, wall.scan(200_000, 0.0001, np.random.default_rng(5)))
    assert m.area_m2 == pytest.approx(CAP.area, rel=0.01)
    assert m.volume_m3 == pytest.approx(CAP.volume, rel=0.03)
    assert m.depth_max_m == pytest.approx(CAP.depth, rel=0.03)


def test_a_floor_that_no_ray_reaches_is_not_called_measured() -> None:
    """At 60 degrees a bore twice as deep as wide shows its near wall only."""
    deep = Cap(0.0, 0.0, 0.006, 0.0059)
    wall = Wall([deep], math.radians(60.0))
    cloud = wall.scan(200_000, 0.0001, np.random.default_rng(6))
    local = cloud.points_camera @ wall.rotation.T + wall.camera_position
    seen = (local[:, 2] > -0.001) | (local[:, 0] < 0.0)
    (m,) = run(wall.masks, ProjectedCloud(cloud.points_camera[seen], cloud.pixels[seen]))
    assert m.area_status is Status.MEASURED
    assert m.volume_status is Status.SHAPE_PRIOR
    assert 'shape prior' in m.reason
    assert m.volume_std_m3 > 0.03 * m.volume_m3


def test_an_undercut_rim_hides_nothing_that_counts() -> None:
    """Readings that end under the overhang, beyond the rim, are no part of the volume over the rim."""
    wall = Wall([CAP])
    cloud = wall.scan(200_000, 0.0001, np.random.default_rng(7))
    rng = np.random.default_rng(8)
    angle = rng.uniform(0.0, 2.0 * math.pi, 200)
    under = np.stack([0.0075 * np.cos(angle), 0.0075 * np.sin(angle), np.full(200, 0.503)], axis=1)
    under_seen = ProjectedCloud(under, 0.9 * (CAMERA.project(under)[0] - [319.5, 239.5]) * 0.8 + [319.5, 239.5])
    joined = ProjectedCloud(
        np.vstack([cloud.points_camera, under_seen.points_camera]), np.vstack([cloud.pixels, under_seen.pixels])
    )
    (plain,) = run(wall.masks, cloud)
    (m,) = run(wall.masks, joined)
    assert m.volume_m3 == pytest.approx(plain.volume_m3, rel=0.01)


def test_mixed_pixels_at_the_rim_do_not_count() -> None:
    """A time-of-flight or stereo pixel on the rim reports something between the wall and the floor."""
    wall = Wall([CAP])
    cloud = wall.scan(200_000, 0.0001, np.random.default_rng(9))
    radius = np.hypot(cloud.points_camera[:, 0], cloud.points_camera[:, 1])
    rim = np.abs(radius - CAP.radius) < 0.00025  # half a pixel
    points = cloud.points_camera.copy()
    points[rim] *= 1.0 + np.random.default_rng(10).uniform(0.0, 0.003, (rim.sum(), 1)) / points[rim, 2:]
    (m,) = run(wall.masks, ProjectedCloud(points, cloud.pixels))
    assert rim.sum() > 30
    assert m.volume_m3 == pytest.approx(CAP.volume, rel=0.03)
    assert m.depth_max_m == pytest.approx(CAP.depth, rel=0.03)


def test_negative_and_missing_ranges_change_nothing() -> None:
    wall = Wall([CAP])
    cloud = wall.scan(200_000, 0.0001, np.random.default_rng(11))
    bad = np.vstack(
        [np.full((500, 3), np.nan), -cloud.points_camera[:500], np.full((500, 3), np.inf), np.zeros((9, 3))]
    )
    points = np.vstack([cloud.points_camera, bad])
    pixels = np.vstack([cloud.pixels, np.resize(cloud.pixels, (len(bad), 2))])
    (clean,), (m,) = run(wall.masks, cloud), run(wall.masks, ProjectedCloud(points, pixels))
    assert (m.volume_m3, m.volume_std_m3, m.point_count) == (clean.volume_m3, clean.volume_std_m3, clean.point_count)


def test_a_hole_wider_than_the_picture_and_one_around_everything() -> None:
    cloud = Wall().scan(20_000, 0.0001, np.random.default_rng(12))
    whole = InstanceMask(np.ones((CAMERA.height, CAMERA.width), np.float32), 0, 0, 1.0)
    for mask in (whole, replace(whole, touches_border=True)):
        (m,) = run([mask], cloud)
        assert m.area_status in {Status.NO_POINTS, Status.CUT_BY_BORDER}
        assert m.reason
        assert math.isnan(m.area_m2)
        assert math.isnan(m.volume_m3)


def test_points_on_one_line_through_the_airhole() -> None:
    x = np.linspace(-0.1, 0.1, 4000)
    (m,) = run(Wall([CAP]).masks, make_cloud(np.stack([x, np.zeros_like(x), np.full_like(x, 0.5)], axis=1)))
    assert m.area_status is Status.NO_POINTS
    assert 'one line' in m.reason
