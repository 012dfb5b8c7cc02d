from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.surface import Surface, fit_surface

Array = NDArray[np.float64]
FORWARD = np.array([0.0, 0.0, 1.0])


def ring_rays(rng: np.random.Generator, count: int = 600, inner: float = 0.02, outer: float = 0.05) -> Array:
    """Directions, z = 1, evenly over a ring around the optical axis."""
    radius = np.sqrt(rng.uniform(inner**2, outer**2, count))
    angle = rng.uniform(0.0, 2.0 * math.pi, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.ones(count)], axis=1)


def see_plane(rays: Array, incidence_rad: float, distance_m: float = 0.5) -> Array:
    normal = np.array([math.sin(incidence_rad), 0.0, -math.cos(incidence_rad)])
    return np.asarray(rays * (distance_m * normal[2] / (rays @ normal))[:, None])


def see_column(rays: Array, radius_m: float, distance_m: float = 0.5) -> Array:
    """An upright column (axis along y) whose nearest line is `distance_m` ahead."""
    axis_z = distance_m + radius_m
    a, b, c = rays[:, 0] ** 2 + rays[:, 2] ** 2, -axis_z * rays[:, 2], axis_z**2 - radius_m**2
    return np.asarray(rays * ((-b - np.sqrt(b * b - a * c)) / a)[:, None])


def add_range_noise(points: Array, std_m: float, rng: np.random.Generator) -> Array:
    ranges = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points * (1.0 + std_m * rng.standard_normal((len(points), 1)) / ranges))


def fit(points: Array, **settings: float) -> Surface:
    defaults = {'patch_angle_rad': 0.02, 'curvature_significance': 0.001}
    return fit_surface(points, FORWARD, **{**defaults, **settings})


def is_plane(surface: Surface) -> bool:
    return not surface.coefficients[3:].any()


def to_local(surface: Surface, points: Array) -> Array:
    """Rows x, y, z."""
    return np.asarray(surface.axes @ (points - surface.origin).T)


def intersect(surface: Surface, rays: Array) -> Array:
    return np.asarray(surface.cast(rays.T).T @ surface.axes + surface.origin)


def slopes(surface: Surface, points: Array) -> tuple[Array, Array]:
    _, b, c, d, e, f = surface.coefficients
    x, y, _ = to_local(surface, points)
    return b + 2.0 * d * x + e * y, c + e * x + 2.0 * f * y


def height_above(surface: Surface, points: Array) -> Array:
    """To first order: along z of the surface, times the cosine of the slope."""
    x, y, z = to_local(surface, points)
    slope_x, slope_y = slopes(surface, points)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
    return np.asarray((z - surface.coefficients @ terms) / np.sqrt(1.0 + slope_x**2 + slope_y**2))


def outward(surface: Surface, points: Array) -> Array:
    """Normals, not of length one."""
    slope_x, slope_y = slopes(surface, points)
    return np.stack([-slope_x, -slope_y, np.ones_like(slope_x)], axis=1) @ surface.axes


def test_plane_is_recovered() -> None:
    tilt = math.radians(40.0)
    surface = fit(see_plane(ring_rays(np.random.default_rng(0)), tilt))
    assert is_plane(surface)
    assert surface.origin == pytest.approx([0.0, 0.0, 0.5], abs=1e-9)
    assert surface.at(0.0, 0.0).normal == pytest.approx([math.sin(tilt), 0.0, -math.cos(tilt)], abs=1e-7)
    inside = np.array([[0.0, 0.0, 0.503]])
    assert height_above(surface, inside) == pytest.approx(-0.003 * math.cos(tilt), rel=1e-6)


def test_strong_range_noise_does_not_tilt_an_oblique_plane() -> None:
    rng = np.random.default_rng(1)
    normals = []
    for _ in range(40):
        points = add_range_noise(see_plane(ring_rays(rng, 2000), math.radians(45.0)), 0.02, rng)
        normals.append(fit(points, curvature_significance=0.0).at(0.0, 0.0).normal)
    mean = np.mean(normals, axis=0)
    assert math.degrees(math.atan2(mean[0], -mean[2])) == pytest.approx(45.0, abs=2.0)


def test_noise_and_deviations_are_those_of_the_data() -> None:
    rng = np.random.default_rng(2)
    fits = [fit(add_range_noise(see_plane(ring_rays(rng), 0.5), 0.0005, rng)) for _ in range(200)]
    assert np.median([f.range_noise_m for f in fits]) == pytest.approx(0.0005, rel=0.05)
    errors = np.array([height_above(f, np.array([[0.0, 0.0, 0.5]]))[0] for f in fits])
    claimed = np.median([f.at(0.0, 0.0).elevation_std for f in fits])
    assert errors.std() == pytest.approx(claimed, rel=0.2)


@pytest.mark.parametrize(('incidence_deg', 'radius_m'), [(0, math.inf), (50, math.inf), (0, 0.3)])
def test_the_deviation_of_an_area_is_that_of_many_fits(incidence_deg: int, radius_m: float) -> None:
    rng = np.random.default_rng(3)
    corners = 0.005 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    rays = np.column_stack([corners, np.ones(4)])
    areas, claimed = [], []
    for _ in range(200):
        seen = ring_rays(rng)
        wall = see_plane(seen, math.radians(incidence_deg)) if math.isinf(radius_m) else see_column(seen, radius_m)
        surface = fit(add_range_noise(wall, 0.0005, rng))
        a, b, c, d = intersect(surface, rays)
        areas.append(0.5 * float(np.linalg.norm(np.cross(c - a, d - b))))
        claimed.append(surface.at(0.0, 0.0).area_std_ratio)
    # Half a millimetre on 600 readings, 2 cm away from the middle at most: a tilt of 0.05 degrees.
    assert np.median(claimed) == pytest.approx(np.std(areas) / np.mean(areas), rel=0.15)


def test_outliers_do_not_move_the_plane() -> None:
    rng = np.random.default_rng(3)
    points = add_range_noise(see_plane(ring_rays(rng), 0.2), 0.0002, rng)
    points[:180] *= rng.uniform(1.005, 1.03, (180, 1))  # three in ten lie 2.5 to 15 mm behind
    surface = fit(points)
    assert height_above(surface, np.array([[0.0, 0.0, 0.5]]))[0] == pytest.approx(0.0, abs=0.0001)


@pytest.mark.parametrize('noise_m', [0.0, 0.0001])
def test_column_is_a_quadric(noise_m: float) -> None:
    rng = np.random.default_rng(4)
    surface = fit(add_range_noise(see_column(ring_rays(rng, 2000), 0.3), noise_m, rng))
    assert not is_plane(surface)
    axis = see_column(FORWARD[None], 0.3)
    assert height_above(surface, axis)[0] == pytest.approx(0.0, abs=0.00002)
    assert intersect(surface, FORWARD[None])[0] == pytest.approx(axis[0], abs=0.00002)
    # h = -x^2 / (2 R) across the axis
    assert min(surface.coefficients[[3, 5]]) == pytest.approx(-1.0 / 0.6, rel=0.05)


def test_a_plane_is_rarely_called_curved() -> None:
    rng = np.random.default_rng(5)
    curved = [not is_plane(fit(add_range_noise(see_plane(ring_rays(rng), 0.3), 0.001, rng))) for _ in range(300)]
    assert sum(curved) <= 3


def test_texture_counts_as_deviation_of_whole_patches() -> None:
    rng = np.random.default_rng(6)
    rays = ring_rays(rng, 3000)
    points = see_plane(rays, 0.0)
    waves = 0.0005 * np.sin(rays[:, 0] / 0.004) * np.sin(rays[:, 1] / 0.004)
    rough = add_range_noise(points * (1.0 + waves / 0.5)[:, None], 0.0001, rng)
    smooth = fit(add_range_noise(points, 0.0001, rng))
    textured = fit(rough)
    assert smooth.patch_std_m == 0.0
    assert textured.patch_std_m > 0.0001
    assert textured.at(0.0, 0.0).elevation_std > 3.0 * smooth.at(0.0, 0.0).elevation_std


@given(
    curvature=st.tuples(*[st.floats(-2.0, 2.0)] * 3),
    tilt=st.tuples(st.floats(-0.8, 0.8), st.floats(-0.8, 0.8)),
)
@settings(max_examples=50, deadline=None)
def test_intersections_lie_on_the_surface_and_on_their_rays(
    curvature: tuple[float, float, float], tilt: tuple[float, float]
) -> None:
    facing = np.diag([1.0, -1.0, -1.0])
    axes = facing @ Rotation.from_euler('xy', tilt).as_matrix()
    coefficients = np.array([0.0, 0.01, -0.02, *curvature])
    surface = Surface(np.array([0.0, 0.0, 0.5]), axes, coefficients, np.zeros((6, 6)), 0.0, 0.0, 100)
    rays = ring_rays(np.random.default_rng(0), 50)
    points = intersect(surface, rays)
    assert np.isfinite(points).all()
    assert height_above(surface, points) == pytest.approx(0.0, abs=1e-12)
    assert points / points[:, 2:] == pytest.approx(rays, abs=1e-12)
    assert (np.einsum('ij,ij->i', outward(surface, points), rays) < 0.0).all()


def test_points_that_are_no_surface_are_refused() -> None:
    rng = np.random.default_rng(7)
    line = np.stack([np.linspace(-0.05, 0.05, 100), np.full(100, 0.03), np.ones(100)], axis=1)
    with pytest.raises(SurfaceError, match='one line'):
        fit(see_plane(line, 0.0))
    with pytest.raises(SurfaceError, match='no surface'):
        fit(see_plane(ring_rays(rng, 4), 0.0))
    aside = ring_rays(rng, 500, 0.0, 0.01) + np.array([0.05, 0.0, 0.0])
    with pytest.raises(SurfaceError, match='one side'):
        fit(see_plane(aside, 0.0))


def test_half_a_ring_is_enough() -> None:
    rays = ring_rays(np.random.default_rng(8))
    surface = fit(see_plane(rays[rays[:, 0] > -0.005], 0.3))
    assert surface.origin == pytest.approx([0.0, 0.0, 0.5], abs=1e-6)


def test_a_column_is_continued_beside_its_points_and_doubted_far_from_them() -> None:
    rng = np.random.default_rng(9)

    def see_strip(left: float, right: float) -> Array:
        rays = np.column_stack([rng.uniform(left, right, 3000), rng.uniform(-0.1, 0.1, 3000), np.ones(3000)])
        return add_range_noise(see_column(rays, 0.3), 0.00005, rng)

    beside, far = fit(see_strip(0.02, 0.25)), fit(see_strip(0.045, 0.19))
    # 0.135 from the middle of points that spread by 0.23 / sqrt(12); of the square of that a quadric is wrong
    assert beside.extrapolation == pytest.approx(1.0 + 12.0 * (0.135 / 0.23) ** 2, rel=0.15)
    # A plane through these points passes 7 mm before the column.
    assert height_above(beside, see_column(FORWARD[None], 0.3))[0] == pytest.approx(0.0, abs=0.0001)
    assert beside.at(0.0, 0.0).elevation_std < 0.0001
    assert far.extrapolation > 6.0
    assert far.at(0.0, 0.0).elevation_std > 0.001


def test_nothing_is_extrapolated_amid_the_points() -> None:
    assert fit(see_plane(ring_rays(np.random.default_rng(10), 3000), 0.0)).extrapolation == pytest.approx(1.0, abs=0.01)
