from __future__ import annotations

import math

import contourpy
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.surface import Surface
from cmml_ros.measurement.rim import Rim, find_boundary_std, outline_in_image, see_rims

Array = NDArray[np.float64]
CAMERA = Camera(640, 480, 800.0, 780.0, 319.5, 239.5)


def make_surface(incidence_rad: float = 0.0, curvature: float = 0.0, distance_m: float = 0.5) -> Surface:
    c, s = math.cos(incidence_rad), math.sin(incidence_rad)
    axes = np.array([[c, 0.0, s], [0.0, -1.0, 0.0], [s, 0.0, -c]])
    coefficients = np.array([0.0, 0.0, 0.0, curvature, 0.0, 0.0])
    return Surface(np.array([0.0, 0.0, distance_m]), axes, coefficients, np.zeros((6, 6)), 0.0, 0.0, 100)


def draw_ellipse(
    surface: Surface, camera: Camera, semi_x: float, semi_y: float, box: tuple[int, int, int, int]
) -> InstanceMask:
    """Soft mask of an ellipse around the surface's origin, along its axes; 16 x 16 rays a pixel."""
    left, top, width, height = box
    steps = (np.arange(16) + 0.5) / 16 - 0.5
    u = (left + np.arange(width)[:, None] + steps).ravel()
    v = (top + np.arange(height)[:, None] + steps).ravel()
    pixels = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    x, y, _ = surface.cast(camera.rays(pixels).T)
    inside = (x / semi_x) ** 2 + (y / semi_y) ** 2 < 1.0
    coverage = inside.reshape(height, 16, width, 16).mean(axis=(1, 3))
    return InstanceMask(coverage.astype(np.float32), left, top, 1.0)


def put_on_surface(mask: InstanceMask, camera: Camera, surface: Surface) -> Rim:
    (seen,) = see_rims([mask], camera)
    assert seen is not None
    return Rim.on_surface(seen, surface)


@pytest.mark.parametrize('incidence_deg', [0, 30, 60])
def test_disc_of_20_mm_has_314_mm2(incidence_deg: int) -> None:
    surface = make_surface(math.radians(incidence_deg))
    rim = put_on_surface(draw_ellipse(surface, CAMERA, 0.010, 0.010, (295, 215, 50, 50)), CAMERA, surface)
    assert rim.area * 1e6 == pytest.approx(314.159, rel=0.003)
    assert rim.middle.position == pytest.approx([0.0, 0.0, 0.5], abs=1e-5)
    assert rim.axes == pytest.approx((0.020, 0.020), rel=0.01)


def test_a_pixel_has_the_area_of_the_formula() -> None:
    surface = make_surface(math.radians(50.0), distance_m=0.7)
    mask = InstanceMask(np.ones((1, 1), np.float32), 400, 100, 1.0)
    ray = np.array([(400 - CAMERA.cx) / CAMERA.fx, (100 - CAMERA.cy) / CAMERA.fy, 1.0])
    normal = surface.at(0.0, 0.0).normal
    area = float(normal @ surface.origin) ** 2 / (CAMERA.fx * CAMERA.fy * abs(normal @ ray) ** 3)
    assert put_on_surface(mask, CAMERA, surface).area == pytest.approx(area, rel=1e-5)


def test_axes_of_a_small_ellipse() -> None:
    surface = make_surface(math.radians(20.0))
    mask = draw_ellipse(surface, CAMERA, 0.003, 0.0045, (305, 225, 30, 30))
    rim = put_on_surface(mask, CAMERA, surface)
    assert mask.equivalent_diameter_px < 12
    assert rim.axes == pytest.approx((0.009, 0.006), rel=0.01)
    x, y, areas = rim.pixels
    on_circle = (np.stack([x, y], axis=1) - rim.centre) @ rim.to_circle
    radius = math.sqrt(rim.area / math.pi)
    assert np.hypot(*on_circle.T)[areas > 0.9 * areas.max()].max() < radius


def test_lens_distortion_and_curvature_do_not_matter() -> None:
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5, 'plumb_bob', (-0.25, 0.08, 0.001, -0.002, 0.0))
    surface = make_surface(0.3, curvature=-1.0 / 0.6)
    rim = put_on_surface(draw_ellipse(surface, camera, 0.015, 0.015, (290, 210, 60, 60)), camera, surface)
    # arc length of h = -x^2 / 0.6 over the disc: 1 + mean of (2 x / 0.6)^2 / 2
    assert rim.area == pytest.approx(math.pi * 0.015**2 * (1.0 + 0.5 * (2.0 / 0.6) ** 2 * 0.015**2 / 4.0), rel=0.003)


def test_outline_is_the_rim_seen_from_outside() -> None:
    surface = make_surface(0.5)
    rim = put_on_surface(draw_ellipse(surface, CAMERA, 0.010, 0.010, (295, 215, 50, 50)), CAMERA, surface)
    x, y, z = surface.axes @ (rim.outline - surface.origin).T
    assert np.abs(z).max() < 1e-9
    assert np.hypot(x, y) == pytest.approx(0.010, rel=0.02)
    turning = np.cross(rim.outline, np.roll(rim.outline, -1, axis=0)).sum(axis=0)
    assert float(turning @ surface.at(0.0, 0.0).normal) / 2.0 == pytest.approx(math.pi * 0.010**2, rel=0.01)


def test_outline_in_image_lies_between_pixels() -> None:
    coverage = np.zeros((6, 7), np.float32)
    coverage[2:4, 2:5] = 1.0  # pixels 2..4 x 2..3: the square from 1.5 to 4.5
    outline = outline_in_image(InstanceMask(coverage, 10, 20, 1.0))
    assert outline.min(axis=0) == pytest.approx([11.5, 21.5])
    assert outline.max(axis=0) == pytest.approx([14.5, 23.5])
    assert outline_in_image(InstanceMask(np.zeros((3, 3), np.float32), 0, 0, 1.0)).shape == (0, 2)


def test_outline_is_the_largest_contour() -> None:
    """As the contours of a maintained library: noise has saddles, holes and islands."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        smooth = ndimage.gaussian_filter(rng.random((25, 30)), rng.uniform(0.5, 3.0))
        coverage = np.clip((smooth - smooth.min()) / np.ptp(smooth), 0.0, 1.0).astype(np.float32)
        lines = contourpy.contour_generator(z=np.pad(coverage.astype(float), 1)).lines(0.5 * float(coverage.max()))
        areas = [abs(line[:-1, 0] @ line[1:, 1] - line[1:, 0] @ line[:-1, 1]) for line in lines]
        outline = outline_in_image(InstanceMask(coverage, 1, 1, 1.0))
        expected = lines[int(np.argmax(areas))][:-1]
        assert len(outline) == len(expected)
        start = np.linalg.norm(expected - outline[0], axis=1).argmin()
        turned = np.roll(expected, -start, axis=0)
        backwards = np.roll(expected[::-1], start + 1, axis=0)
        assert min(np.abs(turned - outline).max(), np.abs(backwards - outline).max()) < 1e-6


def test_mask_beyond_the_horizon_is_refused() -> None:
    mask = InstanceMask(np.ones((480, 640), np.float32), 0, 0, 1.0)
    with pytest.raises(SurfaceError, match='beyond the surface'):
        put_on_surface(mask, CAMERA, make_surface(math.radians(80.0)))


def test_the_boundary_is_as_uncertain_as_the_mask_is_soft() -> None:
    """A disc of 40 px: exact, rounded to whole pixels, and falling off logistically over 0.5 px."""
    size, radius = 61, 20.0
    fine = (np.arange(size * 8) + 0.5) / 8 - 0.5 - size // 2
    distance = np.hypot(*np.meshgrid(fine, fine)) - radius
    perimeter = 2.0 * math.pi * radius

    def std_of_mask(mask: InstanceMask) -> float:
        (seen,) = see_rims([mask], CAMERA)
        assert seen is not None
        return find_boundary_std(seen.softness_px * seen.perimeter_px / perimeter, perimeter)  # per pixel of the circle

    def std_of(coverage: np.ndarray) -> float:
        mean = coverage.reshape(size, 8, size, 8).mean(axis=(1, 3)).astype(np.float32)
        return std_of_mask(InstanceMask(mean, 0, 0, 1.0))

    # 8 x 8 rays a pixel: 0.0125 px over the root of 126 px of rim
    assert std_of((distance < 0.0).astype(float)) == pytest.approx(0.0125 / math.sqrt(perimeter), rel=1e-6)
    soft = std_of(1.0 / (1.0 + np.exp(distance / 0.5)))
    # 0.5 px of scale and a pixel's own sixth: pi / sqrt(3) (0.5 - 1/6), to the softness that a pixel adds.
    assert soft == pytest.approx(math.pi / math.sqrt(3.0) * (0.5 + 0.06 - 1.0 / 6.0), rel=0.15)
    whole = (np.hypot(*np.meshgrid(np.arange(size) - size // 2, np.arange(size) - size // 2)) < radius).astype(
        np.float32
    )
    # Where a rim lies within its pixels is unknown: one pixel over the square root of twelve.
    assert std_of_mask(InstanceMask(whole, 0, 0, 1.0)) == pytest.approx(1.0 / math.sqrt(12.0), rel=0.06)
