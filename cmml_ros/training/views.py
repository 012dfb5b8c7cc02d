"""Path-traced views of simulated walls: light, holes and depth are rendered once, concrete is put on them later."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmml_ros.config import setting
from cmml_ros.errors import ConfigError, SceneError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.simulation.camera import look_at, see, shade_path
from cmml_ros.simulation.light import draw_light
from cmml_ros.simulation.scene import Scene, make_scene
from cmml_ros.simulation.wall import Kind, Wall

log = logging.getLogger(__name__)

# Shading and albedo are stored as square roots in bytes: fine in the dark, where airholes are.
_BRIGHTEST = 2.0
VIEW_FOCAL_PX = 1000.0
_DRAWS = 100


@dataclass(frozen=True)
class ViewConfig:
    """How training views are rendered."""

    count: int = setting(400, 'views to render', low=1, high=10**7)
    width: int = setting(512, 'width of a view', unit='px', low=64, high=8192)
    height: int = setting(384, 'height of a view', unit='px', low=64, high=8192)
    samples: int = setting(24, 'light paths per pixel', low=1, high=4096)
    pixel_min_m: float = setting(1.0e-4, 'size of a pixel on the wall, closest view', unit='m', low=1e-6, high=0.1)
    pixel_max_m: float = setting(1.2e-3, 'size of a pixel on the wall, farthest view', unit='m', low=1e-6, high=0.1)
    large_share: float = setting(0.2, 'views of one to three large airholes, from near by', low=0.0, high=1.0)


@dataclass(frozen=True, eq=False)
class TrainingView:
    """One view, all (H, W[, 3]): light relative to a flat sound wall, reflectance of that wall, and what is true.

    shading, albedo: float32, linear BGR; the dirt inside airholes is in the shading. coverage: float32, share inside a
    rim. ids: int32, 0 for the wall. depth_m: float32, NaN as a whole when unknown.
    """

    shading: NDArray[np.float32]
    albedo: NDArray[np.float32]
    coverage: NDArray[np.float32]
    ids: NDArray[np.int32]
    depth_m: NDArray[np.float32]


def prepare_views(config: ViewConfig, folder: Path, seed: int) -> list[Path]:
    """Files of `config.count` views in `folder`; those that are there already are kept.

    Raises ConfigError for sizes of pixels in the wrong order.
    """
    if config.pixel_min_m > config.pixel_max_m:
        raise ConfigError(
            f'views.pixel_min_m {config.pixel_min_m:g} must not be larger than views.pixel_max_m {config.pixel_max_m:g}'
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'{seed}_{index:06d}.npz' for index in range(config.count)]
    missing = [(index, path) for index, path in enumerate(paths) if not path.exists()]
    for index, path in tqdm(missing, desc='path-tracing views', unit='view', disable=not missing):
        write_view(path, render_view(config, np.random.default_rng((seed, index))))
    return paths


def render_view(config: ViewConfig, rng: np.random.Generator) -> TrainingView:
    """A wall, a light and a viewpoint drawn at random."""
    scene, distance_m = _draw_scene(config, rng)
    width, height = config.width, config.height
    camera = Camera(width, height, VIEW_FOCAL_PX, VIEW_FOCAL_PX, (width - 1) / 2, (height - 1) / 2)
    T_scene_camera = _stand_before(scene.wall, distance_m, rng)
    light = draw_light(rng, distance_m)
    view = see(scene, camera, T_scene_camera, rng)
    shading = shade_path(scene, view, light, config.samples, int(rng.integers(2**31)))
    albedo = look_at(dataclasses.replace(scene, holes=()), view, light)
    dirt = look_at(scene, view, light) / np.maximum(albedo, 1e-6)
    depth_m = np.where(np.isfinite(view.depth_m), view.depth_m, np.float32(distance_m)).astype(np.float32)
    return TrainingView(
        np.nan_to_num(shading * dirt), np.nan_to_num(albedo), view.coverage, np.maximum(view.hole_ids, 0), depth_m
    )


def _draw_scene(config: ViewConfig, rng: np.random.Generator) -> tuple[Scene, float]:
    """A wall somewhat larger than the view, and the distance to it; drawn again when the airholes do not fit."""
    for _ in range(_DRAWS):
        large = rng.random() < config.large_share
        farthest_m = 2.5 * config.pixel_min_m if large else config.pixel_max_m
        pixel_m = float(np.exp(rng.uniform(math.log(config.pixel_min_m), math.log(farthest_m))))
        kind: Kind = rng.choice(get_args(Kind), p=[0.7, 0.15, 0.15])
        width_m, height_m = 1.6 * config.width * pixel_m, 1.6 * config.height * pixel_m
        if kind == 'column':
            width_m = min(width_m, 0.6)
        if large:
            # Where airholes are small against the view, what is large and dark is a tie hole or paint: not so here.
            smallest_m, largest_m = 0.12 * config.height * pixel_m, 0.45 * config.height * pixel_m
            count, distractor_density = int(rng.integers(1, 4)), float(rng.uniform(0.0, 0.5))
        else:
            # Airholes from a few pixels to a third of the picture: a wide range of sizes, whatever the distance.
            largest_m = float(np.clip(0.3 * config.height * pixel_m, 0.004, 0.030))
            smallest_m = min(max(0.002, 3.0 * pixel_m), 0.5 * largest_m)
            count = int(np.clip(rng.uniform(0.01, 0.05) * width_m * height_m / (smallest_m * largest_m), 4, 70))
            distractor_density = float(rng.uniform(0.5, 2.0))
        try:
            scene = make_scene(
                kind,
                int(rng.integers(2**31)),
                width_m=width_m,
                height_m=height_m,
                airhole_count=count,
                diameter_range_m=(smallest_m, largest_m),
                distractor_density=distractor_density,
            )
        except SceneError as error:
            log.debug('a wall is drawn again: %s', error)
            continue
        return scene, VIEW_FOCAL_PX * pixel_m
    raise SceneError(f'{_DRAWS} walls of {config.width}x{config.height} pixels had no room for their airholes')


def load_view(path: Path) -> TrainingView:
    """The view stored at `path`."""
    with np.load(path) as stored:
        return TrainingView(
            _decode(stored['shading']),
            _decode(stored['albedo']),
            stored['coverage'].astype(np.float32) / 255.0,
            stored['ids'].astype(np.int32),
            stored['depth_m'],
        )


def write_view(path: Path, view: TrainingView) -> None:
    """Store a view for `load_view`."""
    # Written beside and renamed: a run killed here leaves no half a view.
    beside = path.with_suffix('.new.npz')
    np.savez(
        beside,
        shading=_encode(view.shading),
        albedo=_encode(view.albedo),
        coverage=np.rint(view.coverage * 255.0).astype(np.uint8),
        ids=view.ids.astype(np.uint16),
        depth_m=view.depth_m,
    )
    os.replace(beside, path)


def _encode(linear: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(255.0 * np.sqrt(np.clip(linear / _BRIGHTEST, 0.0, 1.0))), np.uint8)


def _decode(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(_BRIGHTEST * np.square(stored.astype(np.float32) / 255.0), np.float32)


def _stand_before(wall: Wall, distance_m: float, rng: np.random.Generator) -> SE3:
    """A camera that looks at the middle of the wall, up to 45 degrees off its normal, rolled a little."""
    middle = np.array([[wall.width_m / 2, wall.height_m / 2]])
    target, normal = wall.points(middle)[0], wall.normals(middle)[0]
    tilt = math.radians(45.0) * float(rng.beta(1.2, 2.5))
    around = rng.uniform(0.0, 2.0 * math.pi)
    sideways = np.cross(normal, [0.0, 0.0, 1.0])
    across = math.cos(around) * sideways + math.sin(around) * np.cross(sideways, normal)
    forward = -(math.cos(tilt) * normal + math.sin(tilt) * across)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    upright = np.stack([right, np.cross(forward, right), forward], axis=1)  # columns: x right, y down, z forward
    roll = SE3.from_rotation_vector([0.0, 0.0, rng.normal(0.0, 0.1)], np.zeros(3)).rotation
    return SE3(upright @ roll, target - distance_m * forward)
