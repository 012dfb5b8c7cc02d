"""Shapes of what is missing from a wall: airholes and tie holes as meshes, with the exact volume of those meshes.

A cavity lives in the developed coordinates of its wall: (s, t, depth below the surface), metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from cmml_ros.errors import SceneError

Array = NDArray[np.float64]
Shape = Literal['cap', 'ellipsoid', 'irregular', 'undercut']


@dataclass(frozen=True, eq=False)
class Cavity:
    """A closed shell under its rim: rings of as many vertices as the rim has, from the rim down to one lowest vertex.

    middle: (2,). rim: (n, 2) counter-clockwise seen from outside, star-shaped about the middle. vertices: (v, 3);
    faces: (f, 3) with normals into the void.
    """

    middle: Array
    rim: Array
    vertices: Array
    faces: NDArray[np.int32]

    @cached_property
    def reach_m(self) -> float:
        """Largest distance of the shell from the middle, along the surface."""
        return float(np.linalg.norm(self.vertices[:, :2] - self.middle, axis=1).max())

    def moved(self, offset: Array) -> Cavity:
        """The same cavity about another middle, (2,)."""
        vertices = self.vertices + np.append(offset, 0.0)
        return Cavity(self.middle + offset, self.rim + offset, vertices, self.faces)

    def volumes(self, curvature_per_m: float) -> tuple[float, float]:
        """Void over the rim polygon down to the first surface seen along the inward normal, and the entire void, m3.

        Both sum, over faces, the developed area times the mean of w - k w^2 / 2 for depth w on a wall of curvature k:
        the column below one surface element tapers with 1 - k w. For the entire void, with faces under an overhang
        counting negative, this is the divergence theorem on the closed mesh. For the first, faces are clipped by the
        rim; where a shell folds over itself (below 0.05 % of a ragged rim), both layers count.
        """
        corners = self.vertices[self.faces]  # (f, 3, 3)
        areas = _signed_areas(corners)
        entire = float(np.sum(areas * _mean_height(corners[:, :, 2], curvature_per_m)))
        if np.all(areas >= 0):
            return entire, entire
        rim = shapely.Polygon(self.rim)
        shapely.prepare(rim)
        floor, floor_areas = corners[areas > 0], areas[areas > 0]
        triangles = np.asarray(shapely.polygons(floor[:, :, :2]))
        inside = shapely.contains(rim, triangles)
        visible = float(np.sum((floor_areas * _mean_height(floor[:, :, 2], curvature_per_m))[inside]))
        cut = np.flatnonzero(~inside & shapely.intersects(rim, triangles))
        parts = shapely.intersection(rim, triangles[cut])
        centroids = shapely.get_coordinates(shapely.centroid(parts))
        # A linear depth has its mean at the centroid; its variance within one cut triangle does not matter to w^2.
        depths = _interpolate(floor[cut], centroids)
        visible += float(np.sum(shapely.area(parts) * (depths - curvature_per_m / 2 * depths**2)))
        return visible, entire

    @cached_property
    def depth_max_m(self) -> float:
        """Depth of the lowest vertex inside the rim."""
        return float(self.vertices[np.flatnonzero(self._inside), 2].max())

    @cached_property
    def _inside(self) -> NDArray[np.bool_]:
        return np.asarray(shapely.intersects_xy(shapely.Polygon(self.rim), self.vertices[:, :2]))

    @cached_property
    def interior_area_m2(self) -> float:
        """Area of the shell (that of the flat mesh in developed coordinates)."""
        a, b, c = np.moveaxis(self.vertices[self.faces], 1, 0)
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    @cached_property
    def rim_area_m2(self) -> float:
        """Area of the rim polygon on the surface."""
        return polygon_area(self.rim)


def make_airhole(shape: Shape, diameter_m: float, depth_ratio: float, rng: np.random.Generator | None) -> Cavity:
    """An airhole whose rim polygon has the area of a disc of `diameter_m` and whose depth is about diameter * ratio.

    With rng None the ideal shape: a spherical cap ('cap') or the cap of an ellipsoid with axes 2 : 1 ('ellipsoid').
    """
    if shape not in get_args(Shape):
        raise SceneError(f'unknown shape of airhole "{shape}"; known are {", ".join(get_args(Shape))}')
    n = int(np.clip(diameter_m / 0.00015, 48, 96))
    angles = np.linspace(0.0, 2 * math.pi, n, endpoint=False)
    shift, roughness, flatness = np.zeros(2), 0.0, 1.0
    # A sphere cut at this angle from its lowest point has depth / diameter = tan(angle / 2) / 2.
    opening = 2 * math.atan(2 * depth_ratio)
    if rng is None:
        radius = _ellipse(angles, 2.0 if shape == 'ellipsoid' else 1.0, 0.0)
    elif shape in ('cap', 'ellipsoid'):
        aspect = 1.0 if shape == 'cap' else rng.uniform(1.15, 2.2)
        radius = _ellipse(angles, aspect, rng.uniform(0, math.pi)) * _wavy(angles, rng.uniform(0.01, 0.06), rng)
    else:
        radius = _angular(angles, rng) * _wavy(angles, rng.uniform(0.04, 0.13), rng)
        roughness = rng.uniform(0.03, 0.15)
        flatness = rng.uniform(0.6, 1.0)
        direction, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 0.35)
        shift = strength * float(radius.min()) * np.array([math.cos(direction), math.sin(direction)])
    if rng is not None:
        # Below a quarter turn nothing reaches beyond the rim.
        opening = rng.uniform(1.7, 2.35) if shape == 'undercut' else min(opening, rng.uniform(0.9, 1.55))
    rim = radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scale = math.sqrt(math.pi * diameter_m**2 / 4 / polygon_area(rim))
    return _shell(rim * scale, shift * scale, depth_ratio * diameter_m, opening, flatness, roughness, rng)


def make_tie_hole(diameter_m: float, depth_m: float, taper: float) -> Cavity:
    """A round recess with straight smooth walls and a flat bottom; `taper` is bottom over mouth diameter."""
    n = 64
    angles = np.arange(n) * (2 * math.pi / n)
    circle = diameter_m / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    levels = np.array([[1.0, 0.0], [(1 + taper) / 2, 0.5], [taper, 1.0], [taper / 2, 1.0]])
    rings = [np.column_stack([circle * f, np.full(n, h * depth_m)]) for f, h in levels]
    return _close(circle, rings, np.array([0.0, 0.0, depth_m]))


def polygon_area(polygon: Array) -> float:
    """Signed area of a polygon (n, 2), positive counter-clockwise."""
    x, y = polygon.T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def _shell(
    rim: Array,
    shift: Array,
    depth_m: float,
    opening: float,
    flatness: float,
    roughness: float,
    rng: np.random.Generator | None,
) -> Cavity:
    """Rings after the profile of a sphere cut at angle `opening`, scaled to the rim and the depth."""
    n = len(rim)
    count = max(24, round(16 * opening))  # 0.1 % of the volume of a spherical cap
    polar = opening * (1 - np.arange(count) / count)
    width = np.sin(polar) / math.sin(opening)
    height = (np.cos(polar) - math.cos(opening)) / (1 - math.cos(opening))
    height = 1 - (1 - height) ** (1 / flatness) if flatness != 1 else height
    depth = np.repeat(height[:, None] * depth_m, n, axis=1)
    plan = rim[None] * width[:, None, None] + shift * height[:, None, None]  # (rings, n, 2)
    if roughness and rng is not None:
        # None at the rim, which stays sharp, and none at the lowest vertex, where all angles meet.
        depth *= 1 + roughness * _bumps(plan, rng) * (4 * height * (1 - height))[:, None]
    rings = [np.column_stack([plan[k], depth[k]]) for k in range(count)]
    return _close(rim, rings, np.array([shift[0], shift[1], depth_m]))


def _bumps(plan: Array, rng: np.random.Generator) -> Array:
    """Smooth noise of about unit deviation, within +-3, at points (..., 2), some ten bumps across."""
    cells = gaussian_filter(rng.standard_normal((48, 48)), rng.uniform(1.0, 2.5), mode='wrap')
    place = (plan / np.abs(plan).max() + 1) * 23.5
    noise = map_coordinates(cells / cells.std(), [place[..., 0], place[..., 1]], order=1)
    clipped: Array = np.clip(noise, -3, 3)
    return clipped


def _close(rim: Array, rings: list[Array], lowest: Array) -> Cavity:
    """Rings, outermost first, joined by triangles, and the last one joined to the lowest vertex."""
    n, count = len(rim), len(rings)
    i = np.arange(n)
    j = (i + 1) % n
    faces = []
    for k in range(count - 1):
        a, b = k * n, (k + 1) * n
        faces += [np.stack([a + i, a + j, b + j], axis=1), np.stack([a + i, b + j, b + i], axis=1)]
    last = (count - 1) * n
    faces.append(np.stack([last + i, last + j, np.full(n, count * n)], axis=1))
    return Cavity(np.zeros(2), rim, np.vstack([*rings, lowest]), np.vstack(faces).astype(np.int32))


def _ellipse(angles: Array, aspect: float, turn: float) -> Array:
    """Radius of an ellipse of `aspect` = major / minor axis."""
    a, b = math.sqrt(aspect), 1 / math.sqrt(aspect)
    radius: Array = a * b / np.hypot(b * np.cos(angles - turn), a * np.sin(angles - turn))
    return radius


def _wavy(angles: Array, amplitude: float, rng: np.random.Generator) -> Array:
    """A radius factor about 1 with Fourier amplitudes falling as 1 / order."""
    orders = np.arange(2, 16)
    phases = rng.uniform(0, 2 * math.pi, len(orders))
    wave = np.cos(np.outer(angles, orders) + phases) @ (rng.standard_normal(len(orders)) / orders)
    factor: Array = np.clip(1 + amplitude * wave / max(float(wave.std()), 1e-12), 0.6, 1.4)
    return factor


def _angular(angles: Array, rng: np.random.Generator) -> Array:
    """Radius of a polygon with a few blunt corners, stretched: where a bubble's skin broke rather than curved."""
    corners = int(rng.integers(4, 9))
    at = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * math.pi / corners)
    points = rng.uniform(0.6, 1.25, corners)[:, None] * np.stack([np.cos(at), np.sin(at)], axis=1)
    stretch, turn = math.sqrt(rng.uniform(1.0, 2.0)), rng.uniform(0, math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = points @ (rotation @ np.diag([stretch, 1 / stretch]) @ rotation.T)
    ends = np.roll(points, -1, axis=0)
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # The ray from the middle meets the edge p + u (q - p) at radius cross(p, q - p) / cross(direction, q - p).
    edge = ends - points
    crossing = (points[:, 0] * edge[:, 1] - points[:, 1] * edge[:, 0]) / (
        np.outer(direction[:, 0], edge[:, 1]) - np.outer(direction[:, 1], edge[:, 0])
    )
    crossing[crossing <= 0] = np.inf
    # The line of another edge may be met nearer or further; the edge that is met lies in the sector of its ends.
    start, end = np.arctan2(points[:, 1], points[:, 0]), np.arctan2(ends[:, 1], ends[:, 0])
    within = (angles[:, None] - start) % (2 * math.pi) <= (end - start) % (2 * math.pi) + 1e-9
    radius = np.where(within, crossing, np.inf).min(axis=1)
    softened: Array = gaussian_filter1d(radius, rng.uniform(0.5, 1.8), mode='wrap')
    return softened


def _signed_areas(corners: Array) -> Array:
    """Developed area of triangles (f, 3, 3), negative for those under an overhang."""
    first, second = corners[:, 1, :2] - corners[:, 0, :2], corners[:, 2, :2] - corners[:, 0, :2]
    areas: Array = 0.5 * (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    # Vertical walls: zero but for rounding, which must not count as an overhang.
    areas[np.abs(areas) < 1e-18] = 0.0
    return areas


def _mean_height(depths: Array, curvature_per_m: float) -> Array:
    """Mean of w - k w^2 / 2 over triangles with corner depths (f, 3)."""
    a, b, c = depths.T
    mean: Array = (a + b + c) / 3 - curvature_per_m / 12 * (a * a + b * b + c * c + a * b + b * c + c * a)
    return mean


def _interpolate(corners: Array, points: Array) -> Array:
    """Depth (f,) of the planes of triangles (f, 3, 3) at developed points (f, 2)."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    offset = points - corners[:, 0, :2]
    double_area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    u = (offset[:, 0] * second[:, 1] - offset[:, 1] * second[:, 0]) / double_area
    v = (first[:, 0] * offset[:, 1] - first[:, 1] * offset[:, 0]) / double_area
    depths: Array = corners[:, 0, 2] + u * first[:, 2] + v * second[:, 2]
    return depths
