from __future__ import annotations

import math

import pytest

from cmml_ros.measurement.uncertainty import Budget, assume_range_bias, find_undamaged_std


def test_variances_add() -> None:
    assert Budget(noise=9.0, surface=16.0).std == 5.0
    assert Budget(1.0, 1.0, 1.0, 1.0, 1.0, 4.0).std == 3.0


def test_more_views_average_what_is_new_in_each() -> None:
    # Shared: half of the shape, four fifths of the boundary, all of patches, bias and calibration.
    budget = Budget(
        noise=16.0, surface=14.0, scale=20.0, shape=8.0, patch=4.0, bias=5.0, boundary=10.0, calibration=4.0
    )
    assert (budget.std, budget.systematic_std) == (9.0, 5.0)


def test_time_of_flight_noise_implies_a_bias() -> None:
    assert assume_range_bias(0.001, 0.0) == 0.0
    assert assume_range_bias(0.020, 0.0) == 0.020
    assert assume_range_bias(0.020, 0.005) == 0.005
    assert assume_range_bias(0.0005, 0.002) == 0.002


def test_averaging_removes_noise_and_nothing_else() -> None:
    assert find_undamaged_std(0.001, 100, 0.0, 0.0) == pytest.approx(0.0001)
    assert find_undamaged_std(0.001, 10**8, 0.0003, 0.0004) == pytest.approx(0.0005, rel=1e-3)
    assert find_undamaged_std(0.001, 4, 0.0, 0.001) == pytest.approx(0.001 * math.sqrt(1.25))
