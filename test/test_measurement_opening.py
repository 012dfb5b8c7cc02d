from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmml_ros.measurement import shape_prior
from cmml_ros.measurement.opening import EllipsoidCap, Opening

Array = NDArray[np.float64]
RADIUS = 0.005


def make_opening(radius: float = RADIUS) -> Opening:
    axis = (np.arange(41) - 20) * radius / 20
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    grid = grid[np.hypot(*grid.T) < radius]
    angle = np.linspace(0.0, 2.0 * math.pi, 60, endpoint=False)
    rim = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    pixels = np.stack([*grid.T, np.full(len(grid), math.pi * radius**2 / len(grid))])
    return Opening.from_pixels(pixels, rim, (0.0, 0.0), np.eye(2))


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
