from __future__ import annotations

from math import pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmml_ros.config import MeasurementConfig
from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.opening import EllipsoidCap
from cmml_ros.measurement.pooling import CavityReadings

Array = NDArray[np.float64]

RADIUS_M, DEPTH_M = 0.006, 0.004
AREA_M2 = pi * RADIUS_M**2
CAP = EllipsoidCap(RADIUS_M, DEPTH_M)
POINT_READINGS = MeasurementConfig(footprint_ratio=0.0)


def make_outline(ratio: float = 1.0) -> Array:
    """A circle, (64, 3), stretched along x by `ratio` and along y by its inverse: of the same area."""
    angles = np.linspace(0.0, 2.0 * pi, 64, endpoint=False)
    return RADIUS_M * np.column_stack([ratio * np.cos(angles), np.sin(angles) / ratio, np.zeros(64)])


def read_cap(count: int, seed: int, where: slice = slice(None), noise_m: float = 1e-5) -> CavityReadings:
    """`count` readings of the cap at random places, x (column 0) within `where`, in radii; drifts of up to a half."""
    rng = np.random.default_rng(seed)
    entries = np.empty((0, 2))
    while len(entries) < count:
        tried = rng.uniform(-1.0, 1.0, (4 * count, 2))
        inside = np.hypot(*tried.T) < 0.95
        if where.start is not None:
            inside &= tried[:, 0] >= where.start
        if where.stop is not None:
            inside &= tried[:, 0] < where.stop
        entries = np.concatenate([entries, RADIUS_M * tried[inside]])[:count]
    drifts = np.tile(rng.uniform(-0.2, 0.2, 2), (count, 1))
    depths = CAP.trace(entries, drifts)[0] + rng.normal(0.0, noise_m, count)
    readings = CavityReadings.of_view(np.eye(3)[:2], entries, drifts, depths, noise_m, AREA_M2)
    assert readings is not None
    return readings


def test_pooled_readings_of_a_cap_give_its_volume():
    pooled = read_cap(20, 1).joined(read_cap(20, 2)).joined(read_cap(20, 3))
    assert (pooled.views, len(pooled.rows)) == (3, 60)
    cavity = pooled.measure(make_outline(), AREA_M2, POINT_READINGS)
    assert cavity is not None
    assert cavity.volume == pytest.approx(CAP.volume, rel=0.015)


def test_another_view_fills_in_what_one_leaves_open():
    # Three quarters of the opening hidden from the one, the other quarter and a bit more from the other.
    left, right = read_cap(30, 4, slice(None, -0.4)), read_cap(30, 5, slice(-0.4, None))
    alone = left.measure(make_outline(), AREA_M2, POINT_READINGS)
    together = left.joined(right).measure(make_outline(), AREA_M2, POINT_READINGS)
    assert alone is not None
    assert together is not None
    assert together.shape_variance < 0.1 * alone.shape_variance
    assert alone.unseen_share > 0.4
    assert together.unseen_share < 0.05
    assert together.volume == pytest.approx(CAP.volume, rel=0.02)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-3.0, 3.0)] * 3), st.floats(-pi, pi), st.floats(0.7, 1.4))
def test_neither_the_frame_nor_the_axes_of_a_view_matter(rotation, turn, ratio):
    view, other = read_cap(25, 6), read_cap(25, 7)
    outline = make_outline(ratio)
    expected = view.joined(other).measure(outline, AREA_M2, POINT_READINGS)
    # The other view measured along axes of its own in the same plane, and all of it told in another frame.
    axes = np.array([[np.cos(turn), np.sin(turn), 0.0], [-np.sin(turn), np.cos(turn), 0.0]])
    plane = axes[:, :2]
    rows = other.rows.astype(np.float64)
    turned = CavityReadings.of_view(axes, rows[:, :2] @ plane.T, rows[:, 2:4] @ plane.T, rows[:, 4], 1e-5, AREA_M2)
    assert turned is not None
    frame = SE3.from_rotation_vector(rotation, np.zeros(3)).rotation
    pooled = view.rotated(frame).joined(turned.rotated(frame))
    cavity = pooled.measure(outline @ frame.T, AREA_M2, POINT_READINGS)
    assert cavity is not None
    assert expected is not None
    assert cavity.volume == pytest.approx(expected.volume, rel=1e-4)
    assert cavity.shape_variance == pytest.approx(expected.shape_variance, rel=1e-2)


def test_the_volume_is_that_of_the_rim_s_area_however_large_it_is_drawn():
    view = read_cap(60, 8)
    drawn = view.measure(make_outline(), AREA_M2, POINT_READINGS)
    smaller = view.measure(0.5 * make_outline(), AREA_M2, POINT_READINGS)
    clockwise = view.measure(make_outline()[::-1], AREA_M2, POINT_READINGS)
    assert drawn is not None
    assert smaller is not None
    assert clockwise is not None
    assert smaller.volume == pytest.approx(drawn.volume, rel=1e-9)
    assert clockwise.volume == pytest.approx(drawn.volume, rel=1e-6)


def test_readings_that_suffice_are_not_pooled():
    places = np.zeros((145, 2))
    assert CavityReadings.of_view(np.eye(3)[:2], places, places, np.ones(145), 1e-4, AREA_M2) is None
    assert CavityReadings.of_view(np.eye(3)[:2], places[:0], places[:0], np.ones(0), 1e-4, AREA_M2) is None


def test_memory_does_not_grow_with_time():
    view = read_cap(100, 9)
    pooled = view
    for _ in range(50):
        pooled = pooled.joined(view)
    assert pooled.rows.shape == (192, 5)
    assert pooled.rows.nbytes == 192 * 5 * 4
    np.testing.assert_array_equal(pooled.rows[:100], view.rows)


@pytest.mark.parametrize(
    ('outline', 'area_m2'),
    [(np.zeros((64, 3)), AREA_M2), (make_outline()[:2], AREA_M2), (make_outline(), float('nan'))],
)
def test_a_rim_without_area_has_no_cavity(outline: Array, area_m2: float):
    assert read_cap(20, 1).measure(outline, area_m2, POINT_READINGS) is None
