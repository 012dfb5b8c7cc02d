"""Light on a wall: sun, sky and lamps carried by the robot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.transforms import SE3

Array = NDArray[np.float64]


def _dark() -> Array:
    return np.zeros(3)


@dataclass(frozen=True, eq=False)
class Light:
    """One distant source, an even sky, and lamps on the camera; all BGR, in one arbitrary unit.

    sun: (3,) irradiance of a surface that faces it; sun_direction: (3,) unit vector to it, scene frame. sky: (3,)
    irradiance of the wall. lamps: (n, 3) positions in the camera frame; lamp_power: (3,) irradiance, by each, of a
    surface that faces it at 1 m.
    """

    sun: Array = field(default_factory=_dark)
    sun_direction: Array = field(default_factory=lambda: np.array([0.0, -1.0, 0.0]))
    sky: Array = field(default_factory=_dark)
    lamps: Array = field(default_factory=lambda: np.empty((0, 3)))
    lamp_power: Array = field(default_factory=_dark)

    def sources(self, points_scene: Array, T_scene_camera: SE3) -> list[tuple[Array, Array]]:
        """Every source but the sky: unit directions to it from points (N, 3), and irradiance facing it, both (N, 3)."""
        found = []
        if np.any(self.sun > 0):
            shape = points_scene.shape
            found.append((np.broadcast_to(self.sun_direction, shape), np.broadcast_to(self.sun, shape)))
        for position in self.lamps:
            offset = T_scene_camera.apply(position) - points_scene
            distance = np.linalg.norm(offset, axis=1, keepdims=True)
            found.append((offset / distance, self.lamp_power / distance**2))
        return found

    def irradiance(self, points_scene: Array, normals: Array, T_scene_camera: SE3) -> Array:
        """Of an unshadowed surface at points (N, 3) with normals (N, 3), BGR (N, 3)."""
        total = np.broadcast_to(self.sky, points_scene.shape).copy()
        for direction, power in self.sources(points_scene, T_scene_camera):
            total += power * np.maximum(np.einsum('ij,ij->i', normals, direction), 0.0)[:, None]
        return total


def draw_light(rng: np.random.Generator, distance_m: float) -> Light:
    """Light as an inspection robot meets it, for a camera about `distance_m` from the wall.

    Sun with sky, overcast sky, a lamp or a ring of lamps beside the lens, or lamps of the site.
    """
    kind = rng.choice(['sun', 'overcast', 'lamp', 'site'], p=[0.4, 0.15, 0.3, 0.15])
    tint = 1 + rng.normal(0, 0.03, 3)
    if kind == 'overcast':
        # Half of an overcast sky is ground: let one side be brighter than the other.
        return Light(_warm(rng) * rng.uniform(0.05, 0.4), _direction(rng, 20, 60), tint)
    if kind == 'sun':
        sky = rng.uniform(0.08, 0.45) * np.array([1.25, 1.05, 0.9]) * tint
        return Light(_warm(rng), _direction(rng, 15, 80), sky)
    if kind == 'site':
        return Light(_warm(rng) * tint, _direction(rng, 10, 75), tint * rng.uniform(0.15, 0.8))
    count = int(rng.choice([1, 2, 8]))
    radius, start = rng.uniform(0.03, 0.08) if count == 8 else rng.uniform(0.03, 0.35), rng.uniform(0, 2 * math.pi)
    angles = start + np.arange(count) * 2 * math.pi / count
    lamps = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.zeros(count)], axis=1)
    ambient = rng.choice([0.02, 0.1, 0.3]) * tint
    return Light(sky=ambient, lamps=lamps, lamp_power=_warm(rng) * distance_m**2 / count)


def _warm(rng: np.random.Generator) -> Array:
    warmth = rng.uniform(-0.02, 0.15)
    return np.array([1 - warmth, 1.0, 1 + 0.6 * warmth])


def _direction(rng: np.random.Generator, low_deg: float, high_deg: float) -> Array:
    """To a source at this angle from the normal of a wall that faces -y, mostly from above."""
    angle, turn = math.radians(rng.uniform(low_deg, high_deg)), math.radians(rng.normal(90, 50))
    return np.array([math.sin(angle) * math.cos(turn), -math.cos(angle), math.sin(angle) * math.sin(turn)])
