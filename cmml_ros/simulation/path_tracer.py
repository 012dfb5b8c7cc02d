"""Light inside one cavity, path-traced by Mitsuba 3."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.simulation.light import Light

Array = NDArray[np.float64]

_MAX_DEPTH = 10
# Mitsuba computes in single precision and starts secondary rays at a distance that grows with the coordinates:
# millimetres about the cavity keep that below a few micrometres.
_PER_M = 1000.0


def trace_cavity(
    vertices: Array,
    faces: NDArray[np.int32],
    reflectance: float,
    camera: Camera,
    T_scene_camera: SE3,
    light: Light,
    samples: int,
    seed: int,
) -> Array:
    """Irradiance (H, W, 3), BGR, of the inside of a cavity, times the share of each pixel through which it is seen.

    vertices, faces: the shell, scene frame, normals into the void. The wall around it need not be there: the shell is
    closed but for its rim and one-sided, so what enters through the rim meets its front, and whatever passes beside the
    rim meets its back, which is black.
    """
    mi = _mitsuba()
    ideal, maps = _without_distortion(camera)
    origin = vertices.mean(axis=0)
    T_local_camera = T_scene_camera.matrix.copy()
    T_local_camera[:3, 3] = (T_local_camera[:3, 3] - origin) * _PER_M
    # Mitsuba's camera looks along z with x to the left and y up.
    to_world = mi.ScalarTransform4f(T_local_camera @ np.diag([-1.0, -1.0, 1.0, 1.0]))
    sensor = mi.load_dict(
        {
            'type': 'perspective',
            'fov': math.degrees(2 * math.atan(ideal.width / (2 * ideal.fx))),
            'fov_axis': 'x',
            'principal_point_offset_x': 0.5 - (ideal.cx + 0.5) / ideal.width,
            'principal_point_offset_y': 0.5 - (ideal.cy + 0.5) / ideal.height,
            'near_clip': 1.0,
            'far_clip': 1e6,
            'to_world': to_world,
            'film': {
                'type': 'hdrfilm',
                'width': ideal.width,
                'height': ideal.height,
                'rfilter': {'type': 'box'},
                'pixel_format': 'rgb',
                'component_format': 'float32',
            },
            'sampler': {'type': 'stratified', 'sample_count': samples},
        }
    )
    scene: dict[str, Any] = {
        'type': 'scene',
        'integrator': {'type': 'path', 'max_depth': _MAX_DEPTH, 'hide_emitters': True},
        'shell': _mesh(mi, (vertices - origin) * _PER_M, faces, reflectance),
        'sky': {'type': 'constant', 'radiance': _rgb(light.sky / math.pi)},
    }
    if np.any(light.sun > 0):
        direction = (-light.sun_direction).tolist()
        scene['sun'] = {'type': 'directional', 'direction': direction, 'irradiance': _rgb(light.sun)}
    for index, position in enumerate(light.lamps):
        place = (T_scene_camera.apply(position) - origin) * _PER_M
        scene[f'lamp{index}'] = {
            'type': 'point',
            'position': place.tolist(),
            'intensity': _rgb(light.lamp_power * _PER_M**2),
        }
    radiance: Array = np.array(mi.render(mi.load_dict(scene), sensor=sensor, seed=seed), dtype=np.float64)[..., ::-1]
    irradiance: Array = np.nan_to_num(radiance * (math.pi / reflectance))
    if maps is not None:
        irradiance = np.asarray(cv2.remap(irradiance, *maps, cv2.INTER_LINEAR), dtype=np.float64)
    return irradiance


def _mitsuba() -> ModuleType:
    import mitsuba

    if mitsuba.variant() is None:
        mitsuba.set_variant('scalar_rgb')
    return mitsuba


def _mesh(mi: ModuleType, vertices: Array, faces: NDArray[np.int32], reflectance: float) -> Any:
    properties = mi.Properties()
    properties['mesh_bsdf'] = mi.load_dict({'type': 'diffuse', 'reflectance': _rgb(np.full(3, reflectance))})
    mesh = mi.Mesh('shell', vertex_count=len(vertices), face_count=len(faces), props=properties)
    parameters = mi.traverse(mesh)
    parameters['vertex_positions'] = vertices.astype(np.float32).ravel()
    parameters['faces'] = faces.astype(np.uint32).ravel()
    parameters.update()
    return mesh


def _rgb(bgr: Array) -> dict[str, Any]:
    return {'type': 'rgb', 'value': bgr[::-1].tolist()}


def _without_distortion(camera: Camera) -> tuple[Camera, tuple[NDArray[np.float32], NDArray[np.float32]] | None]:
    """A pinhole camera with square pixels that sees what `camera` sees, and where the pixels of `camera` lie in it."""
    if camera.fx == camera.fy and camera.model != 'equidistant' and not any(camera.distortion):
        return camera, None
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = camera.rays(np.stack([u.ravel(), v.ravel()], axis=1)) * camera.fx
    left, top = np.floor(np.nanmin(rays[:, 0])) - 1, np.floor(np.nanmin(rays[:, 1])) - 1
    width, height = int(np.nanmax(rays[:, 0]) - left) + 3, int(np.nanmax(rays[:, 1]) - top) + 3
    ideal = Camera(width, height, camera.fx, camera.fx, -left, -top)
    maps = [
        (rays[:, axis] - low).reshape(camera.height, camera.width).astype(np.float32)
        for axis, low in enumerate((left, top))
    ]
    return ideal, (maps[0], maps[1])
