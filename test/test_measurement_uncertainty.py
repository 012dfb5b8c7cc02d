from __future__ import annotations

import math

import pytest

from cmml_ros.measurement.uncertainty import (
    Budget,
    Footprint,
    assume_range_bias,
    find_lateral_std,
    find_undamaged_std,
)


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


def test_a_footprint_costs_volume_along_the_rim_and_depth_at_the_floor() -> None:
    footprint = Footprint.of_readings(0.5, 0.002, 0.006)
    assert footprint.width_m == 0.001
    assert Footprint.of_readings(1.0, 0.005, 0.006).width_m == pytest.approx(0.0024)  # two fifths of a radius at most
    assert footprint.lost_volume(0.04, 0.003) == pytest.approx(0.1 * 0.001 * 0.04 * 0.003)
    assert footprint.lost_volume(0.04, math.nan) == 0.0
    assert footprint.lost_depth(120.0) == pytest.approx(1e-5)


def test_a_reading_belongs_to_half_a_distance_alone_and_to_its_footprint_among_those_of_other_views() -> None:
    assert find_lateral_std(0.002, 0.006) == pytest.approx(0.0010)
    assert find_lateral_std(0.004, 0.006) == pytest.approx(0.0012)  # a fifth of a radius at most
    # A millimetre wide, evenly spread; 0.05 radii of 6 mm beside that.
    assert Footprint(0.001).lateral_std(0.006) == pytest.approx(math.hypot(0.001 / math.sqrt(12.0), 0.0003))
    assert Footprint(0.0).lateral_std(0.006) == pytest.approx(0.0003)


def test_beside_the_cavity_and_its_rim_are_surface_and_bias() -> None:
    budget = Budget(noise=1.0, surface=2.0, scale=3.0, shape=4.0, patch=5.0, bias=6.0, boundary=7.0, calibration=8.0)
    assert budget.beside_cavity.std == pytest.approx(math.sqrt(2 + 3 + 5 + 6 + 8))
