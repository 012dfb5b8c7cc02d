"""The rim of an airhole: from a soft mask in the image to a polygon and an area on the surface."""

from __future__ import annotations

import math
from dataclasses import dataclass

import contourpy
import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.surface import Surface

Array = NDArray[np.float64]

_EXACT_SOFTNESS = 1.0 / 6.0
_MIN_BOUNDARY_STD_PX = 0.01


def find_rim_level(mask: InstanceMask) -> float:
    """The coverage that separates inside from outside: one half, or less in a mask that never gets there."""
    return 0.5 * min(1.0, float(mask.coverage.max()))


def find_boundary_std(mask: InstanceMask, perimeter_px: float) -> float:
    """Deviation of the rim, pixels, all around alike, from how soft the mask is across it.

    Read as the probability that the rim lies farther out, a mask that falls off logistically with scale w puts the rim
    at a deviation of pi w / sqrt(3), and the sum of p (1 - p) per pixel of rim is w. An exact mask has 1/6 there, the
    mean over all places of a rim in a pixel, which is no doubt; a binary one has 0, and does not tell where in its
    pixels the rim lies.
    """
    coverage = mask.coverage.astype(np.float64)
    softness = float((coverage * (1.0 - coverage)).sum()) / perimeter_px
    return max(math.pi / math.sqrt(3.0) * abs(softness - _EXACT_SOFTNESS), _MIN_BOUNDARY_STD_PX)


def outline_in_image(mask: InstanceMask) -> Array:
    """The rim polygon in pixels, (n, 2), where half of a pixel is covered; empty for a mask without area.

    The largest one, should the mask fall into several.
    """
    if mask.coverage.size == 0 or not mask.coverage.max() > 0.0:
        return np.empty((0, 2))
    coverage = np.pad(mask.coverage.astype(np.float64), 1)
    contours = contourpy.contour_generator(z=coverage, name='serial').lines(find_rim_level(mask))
    polygons = [np.asarray(contour)[:-1] for contour in contours]
    largest = max(polygons, key=lambda polygon: abs(_signed_area(polygon)))
    return np.asarray(largest + np.array([mask.left - 1.0, mask.top - 1.0]))


@dataclass(frozen=True, eq=False)
class Rim:
    """The opening on its surface.

    position: (3,) centroid. outline: (n, 3) polygon, counter-clockwise seen from outside. area: m2. perimeter_px: its
    length in the image. centre: (2,) and moments: (2, 2), m2, first and second moments along x and y of the surface.
    pixel_xy: (N, 2), pixel_areas: (N,) covered part of each pixel, projected on the x-y plane of the surface, m2.
    """

    position: Array
    outline: Array
    area: float
    perimeter_px: float
    centre: Array
    moments: Array
    pixel_xy: Array
    pixel_areas: Array

    @classmethod
    def from_mask(cls, mask: InstanceMask, camera: Camera, surface: Surface) -> Rim:
        """The exact integral of the coverage over the surface: each pixel's corners are cast on it.

        Raises SurfaceError when the mask reaches beyond the surface.
        """
        height, width = mask.coverage.shape
        u = np.arange(width + 1) + (mask.left - 0.5)
        v = np.arange(height + 1) + (mask.top - 0.5)
        corners_px = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
        outline_px = outline_in_image(mask)
        # Lens models are inverted by iteration: once for all is cheaper.
        rays = camera.rays(np.concatenate([corners_px, outline_px]))
        with np.errstate(invalid='ignore'):  # NaN where a ray misses, told below
            cast = surface.to_local(surface.intersect(rays))
        corners = cast[: len(corners_px)].reshape(height + 1, width + 1, 3)
        falling = corners[1:, 1:] - corners[:-1, :-1]
        rising = corners[1:, :-1] - corners[:-1, 1:]
        cross = np.cross(falling, rising)
        covered = mask.coverage > 0.0
        coverage = mask.coverage[covered].astype(np.float64)
        areas = 0.5 * np.sqrt(np.einsum('ij,ij->i', cross[covered], cross[covered])) * coverage
        flat_areas = 0.5 * np.abs(cross[covered][:, 2]) * coverage
        centres = 0.25 * (corners[1:, 1:] + corners[:-1, :-1] + corners[1:, :-1] + corners[:-1, 1:])[covered][:, :2]
        area = float(areas.sum())
        if not math.isfinite(area):
            raise SurfaceError('the mask reaches beyond the surface')

        share = flat_areas / flat_areas.sum()
        centre = share @ centres
        offsets = centres - centre
        # Sampling a soft mask adds the moment of a pixel (Sheppard's correction).
        edge_u, edge_v = (share @ (0.5 * (falling - sign * rising))[covered][:, :2] for sign in (1.0, -1.0))
        pixel_moments = (np.outer(edge_u, edge_u) + np.outer(edge_v, edge_v)) / 12.0
        moments = (offsets * share[:, None]).T @ offsets
        floor = 0.5 * float(np.trace(pixel_moments))
        values, vectors = np.linalg.eigh(moments - pixel_moments)
        moments = (vectors * np.maximum(values, floor)) @ vectors.T

        outline = cast[len(corners_px) :]
        if _signed_area(outline) < 0.0:
            outline = outline[::-1]
        elevation = surface.elevation(centre[:1], centre[1:])
        return cls(
            position=surface.from_local(np.concatenate([centre, elevation])),
            outline=surface.from_local(outline),
            area=area,
            perimeter_px=float(np.linalg.norm(outline_px - np.roll(outline_px, 1, axis=0), axis=1).sum()),
            centre=centre,
            moments=moments,
            pixel_xy=centres,
            pixel_areas=flat_areas,
        )

    @property
    def axes(self) -> tuple[float, float]:
        """Major and minor axis (full lengths) of the ellipse with the same second moments, metres."""
        values = np.linalg.eigvalsh(self.moments)
        return 4.0 * math.sqrt(values[1]), 4.0 * math.sqrt(values[0])

    @property
    def to_circle(self) -> Array:
        """(2, 2) area-preserving map that makes the ellipse of the moments a circle."""
        values, vectors = np.linalg.eigh(self.moments)
        mean = math.sqrt(math.sqrt(values[0] * values[1]))
        return np.asarray((vectors * (mean / np.sqrt(values))) @ vectors.T)


def _signed_area(polygon: Array) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))
