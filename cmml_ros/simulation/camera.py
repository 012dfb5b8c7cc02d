"""Pictures of a scene with exact labels.

picture = response(shading * albedo). Albedo comes from the look of the wall, shading from its geometry: `fast` (shadow
rays, ambient occlusion and a closed formula for the light between the sides of a cavity) or `path` (path-traced).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import SceneError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.simulation.light import Light
from cmml_ros.simulation.path_tracer import trace_cavity
from cmml_ros.simulation.response import Response, compose
from cmml_ros.simulation.scene import Scene

Array = NDArray[np.float64]
Image = NDArray[np.float32]
Look = Literal['fast', 'path']

_GRID = 8  # sub-pixels along each side of a pixel that a rim crosses
_RIM_SAMPLES = 4  # of which so many are shaded
_AMBIENT_RAYS = 8
_SKIN_M = 2e-5  # secondary rays start this far from the surface they leave
_BACKGROUND = 0.05  # shading times albedo of whatever lies beside the wall


@dataclass(frozen=True, eq=False)
class View:
    """What each pixel of a camera sees.

    pixel_m: size of a pixel on the wall, at its median depth. developed: (H, W, 2) float32, where the ray of the
    pixel's centre enters the wall surface, NaN beside the wall. normals: (H, W, 3) float32 of the intact wall.
    hole_ids: (H, W) int32 of the airhole at the pixel's centre, 0 for the wall, -1 for nothing. depth_m: (H, W) float32
    along z, inf for nothing. coverage: (H, W) float32, share of the pixel inside the rim of an airhole; opening: the
    same with tie holes. cavities: (H, W) int32, index of a cavity that the pixel sees, even in part, -1 for none.
    sample_*: rays that enter cavities: flat pixel index (n,), point and normal (n, 3) where they end, cavity (n,).
    """

    camera: Camera
    T_scene_camera: SE3
    pixel_m: float
    developed: Image
    normals: Image
    hole_ids: NDArray[np.int32]
    depth_m: Image
    coverage: Image
    opening: Image
    cavities: NDArray[np.int32]
    sample_pixels: NDArray[np.int64]
    sample_points: Array
    sample_normals: Array
    sample_cavities: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Rendering:
    """A picture and what is true about each of its pixels; arrays as in View.

    image: (H, W, 3) uint8 BGR. shading: (H, W, 3) float32 BGR, irradiance over that of the unshadowed wall in the
    middle of the picture. albedo: (H, W, 3) float32 BGR, with the small bumps of the surface under this light.
    """

    image: NDArray[np.uint8]
    hole_ids: NDArray[np.int32]
    coverage: Image
    depth_m: Image
    shading: Image
    albedo: Image


def render(
    scene: Scene,
    camera: Camera,
    T_scene_camera: SE3,
    light: Light,
    response: Response,
    rng: np.random.Generator,
    *,
    look: Look = 'fast',
    samples: int = 64,
) -> Rendering:
    """The picture that `camera` takes at `T_scene_camera`, and its truth.

    samples: paths per pixel of look 'path'. Raises SceneError when no pixel sees the wall.
    """
    if look not in get_args(Look):
        raise SceneError(f'unknown look "{look}"; known are {", ".join(get_args(Look))}')
    view = see(scene, camera, T_scene_camera, rng)
    if look == 'fast':
        shading = shade_fast(scene, view, light, rng)
    else:
        shading = shade_path(scene, view, light, samples, int(rng.integers(2**31)))
    albedo = look_at(scene, view, light)
    image = compose(shading, albedo, response, rng)
    return Rendering(image, view.hole_ids, view.coverage, view.depth_m, shading, albedo)


def see(scene: Scene, camera: Camera, T_scene_camera: SE3, rng: np.random.Generator) -> View:
    """What each pixel sees: ids, depth and coverage. Raises SceneError when no pixel sees the wall."""
    height, width = camera.height, camera.width
    rays = _pixel_rays(camera)
    lengths = np.linalg.norm(rays, axis=1)
    directions = (rays / lengths[:, None]) @ T_scene_camera.rotation.T
    origin = T_scene_camera.translation
    distance = scene.wall.intersect(np.broadcast_to(origin, rays.shape), directions)
    on_wall = np.isfinite(distance)
    if not on_wall.any():
        raise SceneError(f'the camera at {origin.round(3).tolist()} does not see the wall; move or turn it')
    points = origin + np.where(on_wall, distance, 0.0)[:, None] * directions
    developed = np.where(on_wall[:, None], scene.wall.develop(points), np.nan)
    normals = np.where(on_wall[:, None], scene.wall.normals(developed), 0.0)

    hole_ids = np.where(on_wall, 0, -1).astype(np.int32)
    cavities = np.full(height * width, -1, dtype=np.int32)
    inside, edge = _near_rims(scene, camera, T_scene_camera)
    inside &= on_wall.reshape(height, width)
    edge &= on_wall.reshape(height, width)

    # One ray through the centre of every pixel that may see a cavity ...
    pixels = np.flatnonzero(inside | edge)
    cavities[pixels] = scene.find_cavities(developed[pixels])
    hole_ids[pixels] = _hole_ids(scene, cavities[pixels])
    pixels = pixels[cavities[pixels] >= 0]
    deeper, centre_normals, _ = scene.cast_inside(points[pixels], directions[pixels])
    reached = np.isfinite(deeper)
    distance[pixels[reached]] += deeper[reached]
    whole = reached & ~edge.ravel()[pixels]
    sample_pixels = [pixels[whole]]
    sample_points = [points[pixels[whole]] + deeper[whole, None] * directions[pixels[whole]]]
    sample_normals = [centre_normals[whole]]
    sample_cavities = [cavities[pixels[whole]]]

    # ... and a grid of rays through every pixel that a rim may cross.
    opening = (cavities >= 0).astype(np.float32)
    coverage = (hole_ids > 0).astype(np.float32)
    pixels = np.flatnonzero(edge)
    steps = (np.arange(_GRID) + 0.5) / _GRID - 0.5
    right, down = (np.reshape(offset, (1, -1, 1)) for offset in np.meshgrid(steps, steps))
    # Within a pixel the lens is linear: its inverse for every sub-pixel would take longer than all else.
    middle = np.stack([pixels % width, pixels // width], axis=1).astype(np.float64)
    along_u, along_v = (camera.rays(middle + half) - camera.rays(middle - half) for half in 0.5 * np.eye(2))
    fine = (rays[pixels, None] + right * along_u[:, None] + down * along_v[:, None]).reshape(-1, 3)
    fine = fine @ T_scene_camera.rotation.T
    fine /= np.linalg.norm(fine, axis=1, keepdims=True)
    reach = scene.wall.intersect(np.broadcast_to(origin, fine.shape), fine)
    entry = origin + np.where(np.isfinite(reach), reach, 0.0)[:, None] * fine
    crossing = scene.find_cavities(np.where(np.isfinite(reach)[:, None], scene.wall.develop(entry), -1.0))
    per_pixel = crossing.reshape(-1, _GRID**2)
    opening[pixels] = (per_pixel >= 0).mean(axis=1)
    coverage[pixels] = ((per_pixel >= 0) & (per_pixel < len(scene.holes))).mean(axis=1)
    cavities[pixels] = np.maximum(cavities[pixels], per_pixel.max(axis=1, initial=-1))
    order = np.argsort(np.where(per_pixel >= 0, rng.random(per_pixel.shape), 2.0), axis=1)[:, :_RIM_SAMPLES]
    chosen = (np.arange(len(pixels))[:, None] * _GRID**2 + order).ravel()
    chosen = chosen[crossing[chosen] >= 0]
    deeper, fine_normals, _ = scene.cast_inside(entry[chosen], fine[chosen])
    met = np.isfinite(deeper)
    chosen, deeper, fine_normals = chosen[met], deeper[met], fine_normals[met]
    sample_pixels.append(pixels[chosen // _GRID**2])
    sample_points.append(entry[chosen] + deeper[:, None] * fine[chosen])
    sample_normals.append(fine_normals)
    sample_cavities.append(crossing[chosen])

    depth_m = np.where(on_wall, distance / lengths, np.inf)
    middle_depth_m = float(np.median(depth_m[on_wall]))
    return View(
        camera,
        T_scene_camera,
        middle_depth_m / camera.fx,
        developed.reshape(height, width, 2).astype(np.float32),
        normals.reshape(height, width, 3).astype(np.float32),
        hole_ids.reshape(height, width),
        depth_m.reshape(height, width).astype(np.float32),
        coverage.reshape(height, width),
        opening.reshape(height, width),
        cavities.reshape(height, width),
        np.concatenate(sample_pixels),
        np.vstack(sample_points),
        np.vstack(sample_normals),
        np.concatenate(sample_cavities),
    )


def look_at(scene: Scene, view: View, light: Light) -> Image:
    """Albedo (H, W, 3), BGR: reflectance of the wall, the tint inside airholes, small bumps under `light`."""
    albedo = scene.appearance.reflectance(view.developed, view.pixel_m)
    albedo *= scene.appearance.relief(view.developed, view.pixel_m, _slope(scene, view, light))[..., None]
    return albedo * tint_holes(scene, view)


def tint_holes(scene: Scene, view: View) -> Image:
    """Reflectance of the inside of airholes over that of the wall around them, 1 elsewhere; (H, W, 3), BGR."""
    tints = np.ones((*view.coverage.shape, 3), dtype=np.float32)
    row, column = np.nonzero((view.cavities >= 0) & (view.cavities < len(scene.holes)))
    tint = scene.appearance.hole_tints[view.cavities[row, column]]
    tints[row, column] -= (view.coverage[row, column, None] * (1 - tint)).astype(np.float32)
    return tints


def shade_fast(scene: Scene, view: View, light: Light, rng: np.random.Generator) -> Image:
    """Shading (H, W, 3), BGR, of wall and cavities, without a path tracer.

    Light between the sides of a cavity: a shell of area S and reflectance p under a rim of area R loses the share
    F = R / S of what it reflects through the rim (reciprocity), so that the flux E R through the rim makes a mean
    irradiance of E F / (1 - p (1 - F)). What exceeds the direct part is spread by how much of the shell each point
    sees.
    """
    points, normals, cavities = view.sample_points, view.sample_normals, view.sample_cavities
    start = points + _SKIN_M * normals
    direct = np.zeros_like(points)
    for direction, power in light.sources(points, view.T_scene_camera):
        cosine = np.einsum('ij,ij->i', normals, direction)
        lit = np.flatnonzero(cosine > 0)
        distance, _, _ = scene.cast_inside(start[lit], np.asarray(direction[lit]))
        lit = lit[np.isinf(distance)]
        direct[lit] += power[lit] * cosine[lit, None]
    count = len(points)
    around = _cosine_directions(np.repeat(normals, _AMBIENT_RAYS, axis=0), rng)
    distance, _, _ = scene.cast_inside(np.repeat(start, _AMBIENT_RAYS, axis=0), around)
    open_share = np.isinf(distance).reshape(count, _AMBIENT_RAYS).mean(axis=1)[:, None]

    irradiance = direct + light.sky * open_share
    seen, of_sample = np.unique(cavities, return_inverse=True)
    middles = np.array([scene.cavities[index].middle for index in seen]).reshape(-1, 2)
    entering = light.irradiance(scene.wall.points(middles), scene.wall.normals(middles), view.T_scene_camera)
    shares = np.array([scene.cavities[index].rim_area_m2 / scene.cavities[index].interior_area_m2 for index in seen])
    reflectance = np.array([_inner_reflectance(scene, index) for index in seen])
    kept = reflectance * (1 - shares)
    indirect = entering * (shares * kept / (1 - kept) / np.maximum(1 - shares, 1e-6)).reshape(-1, 1)
    irradiance += indirect[of_sample] * (1 - open_share)

    total = np.zeros((view.opening.size, 3))
    number = np.bincount(view.sample_pixels, minlength=len(total))
    for channel in range(3):
        total[:, channel] = np.bincount(view.sample_pixels, irradiance[:, channel], minlength=len(total))
    mean = total / np.maximum(number, 1)[:, None]
    return _blend(view, light, mean * view.opening.reshape(-1, 1))


def shade_path(scene: Scene, view: View, light: Light, samples: int, seed: int) -> Image:
    """Shading (H, W, 3), BGR, with every cavity path-traced; `samples` paths per pixel."""
    height, width = view.opening.shape
    through_rims = np.zeros((height, width, 3))
    for index in np.unique(view.cavities[view.cavities >= 0]):
        rows, columns = np.nonzero(view.cavities == index)
        left, top = max(int(columns.min()) - 1, 0), max(int(rows.min()) - 1, 0)
        right, bottom = min(int(columns.max()) + 2, width), min(int(rows.max()) + 2, height)
        crop = view.camera.cropped(left, top, right - left, bottom - top)
        vertices, faces = scene.shell(int(index))
        through_rims[top:bottom, left:right] += trace_cavity(
            vertices, faces, _inner_reflectance(scene, int(index)), crop, view.T_scene_camera, light, samples, seed
        )
    return _blend(view, light, through_rims.reshape(-1, 3))


def _blend(view: View, light: Light, through_rims: Array) -> Image:
    """Shading from irradiance inside cavities, weighted by opening (H * W, 3), and that of the wall around them."""
    depth_m = np.where(np.isfinite(view.depth_m), view.depth_m, 1.0).reshape(-1, 1)
    points = view.T_scene_camera.apply(_pixel_rays(view.camera) * depth_m)
    wall = light.irradiance(points, view.normals.reshape(-1, 3).astype(np.float64), view.T_scene_camera)
    opening = view.opening.reshape(-1, 1)
    shading = through_rims + (1 - opening) * wall
    on_wall = view.hole_ids.ravel() >= 0
    # The middle of the picture, or what of the wall comes nearest to it.
    rows, columns = np.nonzero(view.hole_ids >= 0)
    middle = int(np.argmin(np.hypot(rows - view.camera.height / 2, columns - view.camera.width / 2)))
    shading /= max(float(wall[rows[middle] * view.camera.width + columns[middle]].mean()), 1e-12)
    shading[~on_wall] = _BACKGROUND
    return shading.reshape(*view.opening.shape, 3).astype(np.float32)


def _slope(scene: Scene, view: View, light: Light) -> tuple[float, float]:
    """Mean tangents of the incoming light along (s, t) in the middle of the picture."""
    on_wall = np.isfinite(view.developed[..., 0])
    developed = np.median(view.developed[on_wall], axis=0)[None].astype(np.float64)
    point, normal = scene.wall.points(developed), scene.wall.normals(developed)
    step = 1e-4
    along = [(scene.wall.points(developed + step * axis) - point) / step for axis in np.eye(2)]
    slope = np.zeros(2)
    for direction, power in light.sources(point, view.T_scene_camera):
        if float((direction * normal).sum()) > 0:
            slope += [float(power.mean() * (direction * axis).sum()) for axis in along]
    slope /= light.irradiance(point, normal, view.T_scene_camera).mean()
    return float(slope[0]), float(slope[1])


def _inner_reflectance(scene: Scene, index: int) -> float:
    """Grey reflectance of the shell of one cavity."""
    tint = scene.appearance.hole_tints[index].mean() if index < len(scene.holes) else 1.0
    return float(np.clip(scene.appearance.base.mean() * tint, 0.02, 0.9))


def _hole_ids(scene: Scene, cavities: NDArray[np.int32]) -> NDArray[np.int32]:
    """Airhole ids of indices into `cavities`; 0 for tie holes and for the wall."""
    return np.where(cavities < len(scene.holes), cavities + 1, 0).astype(np.int32)


def _near_rims(scene: Scene, camera: Camera, T_scene_camera: SE3) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels (H, W) that lie in a rim, and pixels that a rim may cross; both generous by a pixel."""
    inside = np.zeros((camera.height, camera.width), np.uint8)
    edge = np.zeros_like(inside)
    T_camera_scene = T_scene_camera.inverse()
    limit = 4 * max(camera.width, camera.height)
    for cavity in scene.cavities:
        middle = cavity.middle[None]
        rim = scene.wall.points(cavity.rim)
        if float((scene.wall.normals(middle) * (T_scene_camera.translation - rim[:1])).sum()) <= 0:
            continue  # on the far side of a column
        pixels, visible = camera.project(T_camera_scene.apply(rim))
        if not visible.any() and not camera.contains(np.nan_to_num(pixels.mean(axis=0, keepdims=True), nan=-10.0))[0]:
            continue
        pixels = pixels[np.isfinite(pixels).all(axis=1) & (np.abs(pixels) < limit).all(axis=1)]
        if len(pixels) < 3:
            continue
        polygon = [np.round(pixels * 16).astype(np.int32)]
        cv2.fillPoly(inside, polygon, 1, cv2.LINE_8, 4)
        cv2.polylines(edge, polygon, True, 1, 3, cv2.LINE_8, 4)
    return inside.astype(bool), edge.astype(bool)


def _cosine_directions(normals: Array, rng: np.random.Generator) -> Array:
    """Random directions (N, 3), cosine-distributed about normals (N, 3): a point on the unit sphere about the tip."""
    sphere = rng.standard_normal(normals.shape)
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    directions = normals + 0.999 * sphere
    return np.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True))


@lru_cache(maxsize=4)
def _pixel_rays(camera: Camera) -> Array:
    """Directions (H * W, 3) of all pixel centres, row by row."""
    v, u = np.mgrid[: camera.height, : camera.width]
    return camera.rays(np.stack([u.ravel(), v.ravel()], axis=1))
