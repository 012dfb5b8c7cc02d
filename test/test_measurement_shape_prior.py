from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmml_ros.measurement import shape_prior
from cmml_ros.measurement.shape_prior import EllipsoidCap, Opening, Prior, Readings, fit_cavity

Array = NDArray[np.float64]
RADIUS = 0.005
LATERAL_STD = 0.0003
PRIOR = Prior(depth_mean=0.0035, depth_std=0.002, shape_std=0.2)


def make_opening(radius: float = RADIUS) -> Opening:
    axis = (np.arange(41) - 20) * radius / 20
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    grid = grid[np.hypot(*grid.T) < radius]
    angle = np.linspace(0.0, 2.0 * math.pi, 60, endpoint=False)
    rim = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    pixels = np.stack([*grid.T, np.full(len(grid), math.pi * radius**2 / len(grid))])
    return Opening.from_pixels(pixels, rim, (0.0, 0.0), np.eye(2))


def read_cap(
    cap: EllipsoidCap, count: int, noise_m: float, rng: np.random.Generator, drift: tuple[float, float] = (0.0, 0.0)
) -> Readings:
    radius = 0.97 * cap.radius * np.sqrt(rng.uniform(0.0, 1.0, count))
    angle = rng.uniform(0.0, 2.0 * math.pi, count)
    entries = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    drifts = np.tile(np.array(drift), (count, 1))
    depths, _ = cap.trace(entries, drifts)
    return Readings(entries, drifts, depths + noise_m * rng.standard_normal(count), noise_m)


def test_a_rim_alone_tells_the_opening() -> None:
    # An ellipse of 8 x 4 mm, turned by 30 degrees, 1 mm beside the origin: a circle of 4 sqrt(2) mm.
    angle, turn = np.linspace(0.0, 2.0 * math.pi, 400, endpoint=False), math.radians(30.0)
    along, across = np.array([math.cos(turn), math.sin(turn)]), np.array([-math.sin(turn), math.cos(turn)])
    ellipse = 0.004 * np.cos(angle)[:, None] * along + 0.002 * np.sin(angle)[:, None] * across
    opening, centre, to_circle = Opening.from_rim(ellipse + np.array([0.001, 0.0]))
    assert opening.radius == pytest.approx(0.002 * math.sqrt(2.0), rel=1e-4)
    assert centre == pytest.approx((0.001, 0.0), abs=1e-9)
    np.testing.assert_allclose(np.hypot(*(ellipse @ to_circle.T).T), opening.radius, rtol=1e-3)
    np.testing.assert_allclose(opening.rim_stretch, 1.0, rtol=1e-3)
    # All of the area, spread over the cells as over those of a circle of pixels.
    assert opening.cell_areas.sum() == pytest.approx(math.pi * 0.004 * 0.002, rel=1e-4)
    shares = opening.cell_areas / opening.cell_areas.sum()
    expected = make_opening().cell_areas / make_opening().cell_areas.sum()
    inner = shape_prior._grid().places
    for ring in (0.0, 0.4, 0.8):
        within = np.hypot(*inner) < ring + 0.3
        assert shares[within].sum() == pytest.approx(expected[within].sum(), abs=0.02)


def test_the_readings_nearest_to_the_rim_tell_how_deep_it_is_there() -> None:
    radii, depths = 0.004 * np.array([0.1, 0.5, 0.65, 0.7, 0.95]), np.array([0.005, 0.004, 0.003, 0.002, 0.001])
    entries, nowhere = np.stack([radii, np.zeros(5)], axis=1), np.zeros((5, 2))
    read = make_opening(0.004).read(entries, nowhere, depths, 0.0001, (0.0, 0.0), np.eye(2))
    assert read.rim_mean == pytest.approx(0.001)
    # Without one beyond 0.9 radii: beyond 0.9 of the farthest, 0.63.
    read = make_opening(0.004).read(entries[:4], nowhere[:4], depths[:4], 0.0001, (0.0, 0.0), np.eye(2))
    assert read.rim_mean == pytest.approx(0.0025)
    # One alone, in the very middle, is the nearest, too.
    read = make_opening(0.004).read(nowhere[:1], nowhere[:1], depths[:1], 0.0001, (0.0, 0.0), np.eye(2))
    assert read.rim_mean == pytest.approx(0.005)


@given(ratio=st.floats(0.05, 2.0))
def test_cap_volume_is_the_integral_of_its_depth(ratio: float) -> None:
    cap = EllipsoidCap(1.0, ratio)
    radius = (np.arange(20000) + 0.5) / 20000
    depths, by_depth = cap.trace(np.stack([radius, np.zeros_like(radius)], axis=1), np.zeros((20000, 2)))
    rings = 2.0 * math.pi * radius / 20000
    assert float(depths @ rings) == pytest.approx(cap.volume, rel=2e-3)
    step = 0.001 * (1.0 if ratio >= 1.0 else -1.0)  # away from where the cap becomes half an ellipsoid
    per_depth = (EllipsoidCap(1.0, ratio + step).volume - cap.volume) / step
    assert float(by_depth @ rings) == pytest.approx(per_depth, rel=0.05)
    assert depths[0] == pytest.approx(ratio, rel=1e-6)


def test_cap_of_a_sphere() -> None:
    cap = EllipsoidCap(0.010, 0.004)
    assert cap.volume == pytest.approx(math.pi * 0.004 * (3 * 0.010**2 + 0.004**2) / 6)
    assert EllipsoidCap(0.010, 0.015).volume == pytest.approx(2 / 3 * math.pi * 0.010**2 * 0.015)
    # of a sphere of (10^2 + 4^2) / (2 * 4) mm; of half an ellipsoid, depth over the squared radius
    assert cap.curvature == pytest.approx(1.0 / 0.0145)
    assert EllipsoidCap(0.010, 0.015).curvature == pytest.approx(150.0)


@given(ratio=st.floats(0.1, 1.9), x=st.floats(-0.6, 0.6), y=st.floats(-0.6, 0.6), drift=st.floats(0.0, 1.7))
def test_a_traced_ray_ends_on_the_cap(ratio: float, x: float, y: float, drift: float) -> None:
    cap = EllipsoidCap(1.0, ratio)
    entry, along = np.array([[x, y]]), np.array([[drift, 0.0]])
    depth, _ = cap.trace(entry, along)
    end = entry + along * depth[0]
    assert np.hypot(*end[0]) <= 1.0 + 1e-9
    if np.hypot(*end[0]) < 0.98:
        assert cap.trace(end, np.zeros((1, 2)))[0][0] == pytest.approx(depth[0], rel=1e-6)


@pytest.mark.parametrize('ratio', [0.2, 0.7, 1.4])
@pytest.mark.parametrize('drift', [0.0, 1.0])
def test_many_readings_decide(ratio: float, drift: float) -> None:
    cap = EllipsoidCap(RADIUS, ratio * RADIUS)
    readings = read_cap(cap, 300, 0.00005, np.random.default_rng(0), (drift, 0.0))
    cavity = fit_cavity(make_opening(), readings, PRIOR, LATERAL_STD, use_depth_prior=False)
    assert cavity.volume.mean == pytest.approx(cap.volume, rel=0.02)
    assert cavity.depth_max.mean == pytest.approx(cap.depth, rel=0.02)
    assert abs(cavity.volume.mean - cap.volume) < 3.0 * cavity.volume.std


def test_hidden_wall_enlarges_the_deviation() -> None:
    rng = np.random.default_rng(1)
    cap = EllipsoidCap(RADIUS, RADIUS)
    straight = fit_cavity(make_opening(), read_cap(cap, 200, 2e-5, rng), PRIOR, LATERAL_STD, use_depth_prior=False)
    oblique = fit_cavity(
        make_opening(), read_cap(cap, 200, 2e-5, rng, (1.7, 0.0)), PRIOR, LATERAL_STD, use_depth_prior=False
    )
    assert oblique.volume.shape_variance > 4.0 * straight.volume.shape_variance


def test_readings_that_say_nothing_leave_the_prior() -> None:
    cap = EllipsoidCap(RADIUS, PRIOR.depth_mean)
    readings = read_cap(cap, 3, 1.0, np.random.default_rng(2))
    cavity = fit_cavity(make_opening(), readings, PRIOR, LATERAL_STD, use_depth_prior=True)
    assert cavity.volume.mean == pytest.approx(cap.volume, rel=0.05)
    assert cavity.volume.std == pytest.approx(cavity.volume_prior_std, rel=0.1)
    assert cavity.depth_max.std == pytest.approx(math.hypot(PRIOR.depth_std, 0.2 * PRIOR.depth_mean), rel=0.1)


@pytest.mark.parametrize(
    ('white', 'squared', 'excess'),
    [
        # half of the variance is white; the rest is three times, and once, what was expected of it
        (0.5, 0.5 + 3 * 0.5, (4 + 3 * 36) / (4 + 35)),
        (0.5, 1.0, (4 + 36) / (4 + 35)),
        (0.0, 0.25, (4 + 36) / (4 + 143)),
        (1.0, 0.1, 1.0),  # all of it is white: nothing is learnt
    ],
)
def test_variance_beyond_white_noise_over_what_was_expected(white: float, squared: float, excess: float) -> None:
    """144 independent cells of unit variance, four of prior weight, and one for the depth."""
    deviations = np.full(144, math.sqrt(squared))
    found = shape_prior._find_excess(deviations, deviations, np.eye(144), np.full(144, white))
    assert found == pytest.approx(excess, rel=1e-9)


def test_few_good_readings_move_the_prior() -> None:
    cap = EllipsoidCap(RADIUS, 0.0020)
    readings = read_cap(cap, 4, 0.0001, np.random.default_rng(3))
    cavity = fit_cavity(make_opening(), readings, PRIOR, LATERAL_STD, use_depth_prior=True)
    assert cavity.volume.std < 0.3 * cavity.volume_prior_std
    assert abs(cavity.volume.mean - cap.volume) < 2.0 * cavity.volume.std


def test_outliers_are_left_out() -> None:
    rng = np.random.default_rng(4)
    cap = EllipsoidCap(RADIUS, 0.003)
    readings = read_cap(cap, 200, 0.0001, rng)
    spoiled = readings.depths.copy()
    spoiled[:10] += rng.choice([-1.0, 1.0], 10) * 0.02
    cavity = fit_cavity(
        make_opening(),
        Readings(readings.entries, readings.drifts, spoiled, 0.0001),
        PRIOR,
        LATERAL_STD,
        use_depth_prior=False,
    )
    assert cavity.volume.mean == pytest.approx(cap.volume, rel=0.02)
    assert cavity.depth_max.mean == pytest.approx(cap.depth, rel=0.03)


def test_a_common_error_moves_the_volume_by_its_response() -> None:
    readings = read_cap(EllipsoidCap(RADIUS, 0.003), 200, 0.0001, np.random.default_rng(5))
    shifted = Readings(readings.entries, readings.drifts, readings.depths + 0.00005, readings.std)
    before, after = (
        fit_cavity(make_opening(), r, PRIOR, LATERAL_STD, use_depth_prior=False).volume for r in (readings, shifted)
    )
    assert after.mean - before.mean == pytest.approx(before.common_response * 0.00005, rel=0.1)
