from __future__ import annotations

import math

import numpy as np
import pytest
from test_measurement_opening import RADIUS, make_opening

from cmml_ros.measurement import shape_prior
from cmml_ros.measurement.opening import EllipsoidCap, Readings
from cmml_ros.measurement.shape_prior import Prior, fit_cavity

LATERAL_STD = 0.0003
PRIOR = Prior(depth_mean=0.0035, depth_std=0.002, shape_std=0.2)


def read_cap(
    cap: EllipsoidCap, count: int, noise_m: float, rng: np.random.Generator, drift: tuple[float, float] = (0.0, 0.0)
) -> Readings:
    radius = 0.97 * cap.radius * np.sqrt(rng.uniform(0.0, 1.0, count))
    angle = rng.uniform(0.0, 2.0 * math.pi, count)
    entries = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    drifts = np.tile(np.array(drift), (count, 1))
    depths, _ = cap.trace(entries, drifts)
    return Readings(entries, drifts, depths + noise_m * rng.standard_normal(count), noise_m)


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
