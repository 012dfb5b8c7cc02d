"""Intact concrete surfaces in closed form: plane, column and tunnel lining.

Scene frame: x along the wall, z up, the robot at y < 0. Developed coordinates (s, t), metres: s to the right and t up
as seen by the robot, in [0, width_m] x [0, height_m]; lengths and areas in them are those on the surface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmml_ros.errors import SceneError

Array = NDArray[np.float64]
Kind = Literal['plane', 'column', 'tunnel']


@dataclass(frozen=True)
class Wall:
    """A plane at y = 0, a convex column with a vertical axis, or a concave tunnel lining with its axis along x.

    The curved ones touch the plane y = 0 along their middle line. radius_m is infinite for a plane. Raises SceneError
    for a size that does not exist.
    """

    kind: Kind
    width_m: float
    height_m: float
    radius_m: float = math.inf

    def __post_init__(self) -> None:
        if self.kind not in ('plane', 'column', 'tunnel'):
            raise SceneError(f'unknown kind of wall "{self.kind}"; known are plane, column, tunnel')
        if not (0 < self.width_m < math.inf and 0 < self.height_m < math.inf):
            raise SceneError(f'a wall needs a positive size, got {self.width_m} x {self.height_m} m')
        if (self.kind == 'plane') != math.isinf(self.radius_m) or not self.radius_m > 0:
            raise SceneError(f'a {self.kind} cannot have the radius {self.radius_m} m')
        if self._arc_m > 2 * math.pi * self.radius_m:
            raise SceneError(f'{self._arc_m} m do not fit round a {self.kind} of radius {self.radius_m} m')

    @property
    def _arc_m(self) -> float:
        """Extent along the curved direction."""
        return self.height_m if self.kind == 'tunnel' else self.width_m

    @property
    def curvature_per_m(self) -> float:
        """1 / radius, positive where the surface bulges towards the robot."""
        return {'plane': 0.0, 'column': 1.0, 'tunnel': -1.0}[self.kind] / (
            self.radius_m if self.kind != 'plane' else 1.0
        )

    def contains(self, developed: Array) -> NDArray[np.bool_]:
        """Which developed coordinates (N, 2) lie on the wall, (N,)."""
        s, t = developed.T
        inside: NDArray[np.bool_] = (s >= 0) & (s <= self.width_m) & (t >= 0) & (t <= self.height_m)
        return inside

    def normals(self, developed: ArrayLike) -> Array:
        """Unit normals (N, 3), out of the wall, at developed coordinates (N, 2)."""
        s, t = np.asarray(developed, dtype=np.float64).T
        zero = np.zeros_like(s)
        if self.kind == 'plane':
            return np.stack([zero, zero - 1.0, zero], axis=1)
        if self.kind == 'column':
            angle = (s - self.width_m / 2) / self.radius_m
            return np.stack([np.sin(angle), -np.cos(angle), zero], axis=1)
        angle = (t - self.height_m / 2) / self.radius_m
        return np.stack([zero, -np.cos(angle), -np.sin(angle)], axis=1)

    def points(self, developed: ArrayLike, depths_m: ArrayLike = 0.0) -> Array:
        """Points (N, 3) in the scene frame, `depths_m` (N,) below developed coordinates (N, 2)."""
        coordinates = np.asarray(developed, dtype=np.float64)
        s, t = coordinates.T
        depth = np.broadcast_to(np.asarray(depths_m, dtype=np.float64), s.shape)
        if self.kind == 'plane':
            return np.stack([s, depth, t], axis=1)
        if self.kind == 'column':
            angle, radius = (s - self.width_m / 2) / self.radius_m, self.radius_m - depth
            return np.stack(
                [self.width_m / 2 + radius * np.sin(angle), self.radius_m - radius * np.cos(angle), t], axis=1
            )
        angle, radius = (t - self.height_m / 2) / self.radius_m, self.radius_m + depth
        return np.stack([s, radius * np.cos(angle) - self.radius_m, self.height_m / 2 + radius * np.sin(angle)], axis=1)

    def develop(self, points_scene: ArrayLike) -> Array:
        """Developed coordinates (N, 2) below or above points (N, 3)."""
        x, y, z = np.asarray(points_scene, dtype=np.float64).T
        if self.kind == 'plane':
            return np.stack([x, z], axis=1)
        if self.kind == 'column':
            angle = np.arctan2(x - self.width_m / 2, self.radius_m - y)
            return np.stack([self.width_m / 2 + self.radius_m * angle, z], axis=1)
        angle = np.arctan2(z - self.height_m / 2, y + self.radius_m)
        return np.stack([x, self.height_m / 2 + self.radius_m * angle], axis=1)

    def intersect(self, origins: Array, directions: Array) -> Array:
        """Distance (N,) along unit `directions` to where the rays enter the wall from outside; inf where they do not.

        origins, directions: (N, 3), scene frame.
        """
        if self.kind == 'plane':
            with np.errstate(divide='ignore', invalid='ignore'):
                distance = -origins[:, 1] / directions[:, 1]
            found = (distance >= 0) & (directions[:, 1] > 0)
        else:
            if self.kind == 'column':
                axes, centre = [0, 1], np.array([self.width_m / 2, self.radius_m])
            else:
                axes, centre = [1, 2], np.array([-self.radius_m, self.height_m / 2])
            offset, slope = origins[:, axes] - centre, directions[:, axes]
            a = np.einsum('ij,ij->i', slope, slope)
            b = np.einsum('ij,ij->i', offset, slope)
            c = np.einsum('ij,ij->i', offset, offset) - self.radius_m**2
            with np.errstate(divide='ignore', invalid='ignore'):
                root = np.sqrt(b * b - a * c)  # NaN: the ray misses
                # A column is entered where the ray meets it first, a tunnel lining where it leaves the tube.
                distance = (-b - root) / a if self.kind == 'column' else (-b + root) / a
            found = distance >= 0
        distance = np.where(found, distance, np.inf)
        hit = np.flatnonzero(found)
        outside = ~self.contains(self.develop(origins[hit] + distance[hit, None] * directions[hit]))
        distance[hit[outside]] = np.inf
        return np.asarray(distance)
