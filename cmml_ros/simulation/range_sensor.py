"""Range sensors as they fail in practice: noise, bias, gaps, mixed pixels and shadows, not only rays.

What these sensors return decides what may be claimed about an airhole. Each class is one kind of sensor; its fields are
the figures of a data sheet, and the docstrings say where the defaults come from.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from cmml_ros.errors import SceneError
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.simulation.scene import Hits, Scene

Array = NDArray[np.float64]

_REFLECTIVITY_SCALE = 255.0  # intensity of a white surface seen head-on, as most drivers scale it
_RED = 2
_TEXEL_M = 0.001
_SHADOW_TOLERANCE_M = 1e-4  # a surface does not shade itself


@dataclass(frozen=True)
class _Echoes:
    """What single rays see: range along the ray (inf for nothing), cosine of incidence, reflectance (0 for nothing)."""

    range_m: Array
    cosine: Array
    reflectance: Array

    @property
    def signal(self) -> Array:
        """Lambert: the share of light that comes back, range compensated, as drivers report it."""
        return self.reflectance * self.cosine


@dataclass(frozen=True)
class DepthCamera:
    """A close stereo or structured-light camera: x right, y down, z forward, one point per pixel.

    The defaults are those of a good industrial camera at half a metre. The deviation of the depth z is range_noise_m +
    range_noise_growth * z^2: errors of triangulation grow with the square of the range (Khoshelham and Elberink,
    Sensors 12, 2012). Each pixel correlates a patch of `patch_rad`, which is smaller than the spacing of points when a
    driver has thinned them out; where the patch holds a step, it fails or mixes both depths, the nearer one winning
    (edge fattening). What the projector or second camera at `baseline_m` along x cannot see is missing.
    """

    frame_id: ClassVar[str] = 'depth_optical_frame'

    width: int = 298
    height: int = 168
    horizontal_fov_deg: float = 64.0
    baseline_m: float = 0.05
    range_noise_m: float = 0.0002
    range_noise_growth: float = 0.0
    bias_m: float = 0.0002
    bias_length_rad: float = 0.3
    quantisation_m: float = 0.0001
    patch_rad: float = 0.002
    edge_step_m: float = 0.002
    edge_gap_ratio: float = 0.5
    edge_fattening: float = 0.2
    max_incidence_deg: float = 75.0
    min_range_m: float = 0.1
    max_range_m: float = 2.0
    serial: int = 0

    def scan(self, scene: Scene, T_scene_sensor: SE3, rng: np.random.Generator) -> Cloud:
        """One depth picture as points in the sensor frame; `serial` fixes the calibration error, `rng` the rest."""
        focal_px = 0.5 * self.width / math.tan(math.radians(0.5 * self.horizontal_fov_deg))
        v, u = np.mgrid[: self.height, : self.width].reshape(2, -1)
        centre = np.array([0.5 * (self.width - 1), 0.5 * (self.height - 1)])
        offsets_px = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]) * (0.4 * self.patch_rad * focal_px)
        pixels = np.column_stack([u, v])[:, None, :] + offsets_px  # (N, 5, 2)
        rays = np.concatenate([(pixels - centre) / focal_px, np.ones((*pixels.shape[:2], 1))], axis=2)
        lengths = np.linalg.norm(rays, axis=2)
        echoes = _cast(scene, T_scene_sensor, np.zeros_like(rays), rays / lengths[..., None])

        depths_m = echoes.range_m / lengths
        near_m, far_m = depths_m.min(axis=1), depths_m.max(axis=1)
        seen = (near_m >= self.min_range_m) & (far_m <= self.max_range_m)
        seen &= echoes.cosine[:, 0] >= math.cos(math.radians(self.max_incidence_deg))
        stepped = far_m > near_m + self.edge_step_m
        seen &= ~stepped | (rng.random(len(seen)) >= self.edge_gap_ratio)
        rays, depths_m, near_m, stepped = rays[seen, 0], depths_m[seen], near_m[seen], stepped[seen]
        lit = _sees(scene, T_scene_sensor, np.array([self.baseline_m, 0.0, 0.0]), rays * depths_m[:, :1])

        depth_m = depths_m.mean(axis=1)
        depth_m -= np.where(stepped, self.edge_fattening * (depth_m - near_m), 0.0)
        noise_m = self.range_noise_m + self.range_noise_growth * depth_m**2
        depth_m += noise_m * rng.standard_normal(len(depth_m))
        depth_m += self.bias_m * _smooth_field(np.random.default_rng(self.serial), rays, self.bias_length_rad)
        if self.quantisation_m > 0.0:
            depth_m = np.round(depth_m / self.quantisation_m) * self.quantisation_m
        intensity = _REFLECTIVITY_SCALE * echoes.signal[seen, 0]
        return _make_cloud(rays * depth_m[:, None], intensity, lit)


@dataclass(frozen=True)
class LineProfiler:
    """A laser triangulation profiler moved along the surface: lines along x, motion along y, laser plane at z forward.

    The profiles of one sweep come as one cloud in the frame of the middle profile, as drivers that know the motion give
    it. The camera sits `baseline_m` beside the laser along y: it does not see steep walls that face away from it. The
    default noise lies within the 0.02-0.1 mm of such sensors at this size of field.
    """

    frame_id: ClassVar[str] = 'profiler_optical_frame'

    points_per_profile: int = 1024
    profiles: int = 320
    profile_step_m: float = 0.00075
    field_of_view_deg: float = 40.0
    baseline_m: float = 0.15
    range_noise_m: float = 0.00005
    bias_m: float = 0.00003
    bias_length_rad: float = 0.2
    max_incidence_deg: float = 80.0
    min_range_m: float = 0.1
    max_range_m: float = 1.0
    serial: int = 0

    def scan(self, scene: Scene, T_scene_sensor: SE3, rng: np.random.Generator) -> Cloud:
        """One sweep as points in the sensor frame; `serial` fixes the calibration error, `rng` the rest."""
        half_width = math.tan(math.radians(0.5 * self.field_of_view_deg))
        rays = np.zeros((self.profiles, self.points_per_profile, 3))
        rays[..., 0] = np.linspace(-half_width, half_width, self.points_per_profile)
        rays[..., 2] = 1.0
        starts = np.zeros_like(rays)
        starts[..., 1] = self.profile_step_m * (np.arange(self.profiles) - 0.5 * (self.profiles - 1))[:, None]
        directions = (rays / np.linalg.norm(rays, axis=2, keepdims=True)).reshape(-1, 3)
        origins = starts.reshape(-1, 3)
        echoes = _cast(scene, T_scene_sensor, origins, directions)

        seen = (echoes.range_m >= self.min_range_m) & (echoes.range_m <= self.max_range_m)
        seen &= echoes.cosine >= math.cos(math.radians(self.max_incidence_deg))
        origins, directions, range_m = origins[seen], directions[seen], echoes.range_m[seen]
        camera = origins + np.array([0.0, self.baseline_m, 0.0])
        visible = _sees(scene, T_scene_sensor, camera, origins + directions * range_m[:, None])
        range_m = range_m + self.range_noise_m * rng.standard_normal(len(range_m))
        # Lens and laser line are the same for all profiles: so is the error of their calibration.
        range_m += self.bias_m * _smooth_field(np.random.default_rng(self.serial), directions, self.bias_length_rad)
        intensity = _REFLECTIVITY_SCALE * echoes.signal[seen]
        return _make_cloud(origins + directions * range_m[:, None], intensity, visible)


@dataclass(frozen=True)
class TofLidar:
    """A time-of-flight LiDAR: x forward, z up, spinning rings or a rosette of two rotating prisms that never repeats.

    Deviations of 10-30 mm are what data sheets state (Livox HAP: below 2 cm, 1 sigma, and a systematic error of up to
    3 cm, at 20 m). `bias_m` is the deviation of an offset common to one scan; `walk_m` is how much later a black or
    grazing surface returns than a white one head-on. Both are the same for all points of an airhole, so averaging does
    not remove them. The beam widens from the optics on (Velodyne VLS-128: 3.0 x 1.5 mrad), and its return is the mean
    over the footprint, weighted by what each part sends back, hence mixed ranges at edges.
    rosette: see Liu, Zhang and Hong, "Low-cost retina-like robotic lidars based on incommensurable scanning", 2021.
    """

    frame_id: ClassVar[str] = 'lidar_frame'

    pattern: Literal['rosette', 'spinning'] = 'rosette'
    points: int = 50_000
    scan_s: float = 0.2
    field_of_view_deg: float = 70.0
    rings: int = 64
    ring_fov_deg: float = 60.0
    beam_divergence_rad: float = 0.003
    beam_diameter_m: float = 0.006
    range_noise_m: float = 0.02
    bias_m: float = 0.004
    walk_m: float = 0.005
    dropout_ratio: float = 0.02
    min_signal: float = 0.02
    min_range_m: float = 0.1
    max_range_m: float = 40.0

    def scan(self, scene: Scene, T_scene_sensor: SE3, rng: np.random.Generator) -> Cloud:
        """The returns of one scan as points in the sensor frame. Raises SceneError for an unknown pattern."""
        directions = self._directions(rng)
        directions = directions[rng.random(len(directions)) >= self.dropout_ratio]
        origins, beams = self._beam(directions)
        echoes = _cast(scene, T_scene_sensor, origins, beams)
        signals = echoes.signal  # (N, 7)
        ranges_m = np.where(np.isfinite(echoes.range_m), echoes.range_m, 0.0)
        signal = signals.mean(axis=1)
        seen = signal >= self.min_signal
        directions, signal = directions[seen], signal[seen]
        range_m = (signals[seen] * ranges_m[seen]).mean(axis=1) / signal

        in_range = (range_m >= self.min_range_m) & (range_m <= self.max_range_m)
        range_m += self.bias_m * rng.standard_normal() + self.walk_m * np.clip(1.0 - signal, 0.0, 1.0)
        range_m += self.range_noise_m * rng.standard_normal(len(range_m))
        return _make_cloud(directions * range_m[:, None], _REFLECTIVITY_SCALE * signal, in_range)

    def _directions(self, rng: np.random.Generator) -> Array:
        """Unit directions of one scan, (N, 3); where in its pattern the scan begins is random."""
        if self.pattern == 'spinning':
            step = 2.0 * math.pi * self.rings / self.points
            azimuth = np.arange(0.0, 2.0 * math.pi, step) + rng.random() * step
            elevation = np.radians(np.linspace(-0.5, 0.5, self.rings) * self.ring_fov_deg)
            elevation, azimuth = (angle.ravel() for angle in np.meshgrid(elevation, azimuth))
            level = np.cos(elevation)
            return np.column_stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)])
        if self.pattern == 'rosette':
            # Two prisms bend the beam by the same angle; their speeds (1/s) have no common period.
            time_s = np.linspace(0.0, self.scan_s, self.points, endpoint=False)
            first, second = 2.0 * math.pi * (np.outer([121.57, -77.73], time_s) + rng.random((2, 1)))
            bend = math.radians(0.25 * self.field_of_view_deg)
            left, up = bend * (np.cos(first) + np.cos(second)), bend * (np.sin(first) + np.sin(second))
            angle = np.hypot(left, up)
            across = np.sinc(angle / math.pi)  # sin(angle) / angle
            return np.column_stack([np.cos(angle), across * left, across * up])
        raise SceneError(f'unknown scan pattern "{self.pattern}"; there are "rosette" and "spinning"')

    def _beam(self, directions: Array) -> tuple[Array, Array]:
        """Origins and unit directions of the seven rays of each beam, (N, 7, 3): the axis and six round it."""
        side = np.cross(directions, np.where(np.abs(directions[:, 2:]) < 0.9, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]))
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        angles = np.arange(6) * (math.pi / 3.0)
        circle = 0.8 * np.vstack([(0.0, 0.0), np.column_stack([np.cos(angles), np.sin(angles)])])
        section = circle[:, :1] * side[:, None] + circle[:, 1:] * np.cross(directions, side)[:, None]  # (N, 7, 3)
        rays = directions[:, None] + 0.5 * self.beam_divergence_rad * section
        return 0.5 * self.beam_diameter_m * section, rays / np.linalg.norm(rays, axis=2, keepdims=True)


RangeSensor = DepthCamera | LineProfiler | TofLidar

SENSORS: dict[str, type[RangeSensor]] = {
    'depth_camera': DepthCamera,
    'line_profiler': LineProfiler,
    'tof_lidar': TofLidar,
}


def make_sensor(name: str, range_noise_m: float | None = None) -> RangeSensor:
    """A sensor by its name in SENSORS, with another white noise where it is given.

    Raises SceneError for an unknown name or a negative noise.
    """
    if name not in SENSORS:
        raise SceneError(f'unknown sensor "{name}"; there are {", ".join(SENSORS)}')
    if range_noise_m is None:
        return SENSORS[name]()
    if not 0.0 <= range_noise_m <= 0.1:
        raise SceneError(f'range noise must be in [0, 0.1] m, got {range_noise_m}')
    return SENSORS[name](range_noise_m=range_noise_m)


def describe_sensor(sensor: RangeSensor) -> dict[str, Any]:
    """Kind and figures of a sensor, SI units, ready for JSON."""
    return {'kind': type(sensor).__name__, 'frame_id': sensor.frame_id, **dataclasses.asdict(sensor)}


def _cast(scene: Scene, T_scene_sensor: SE3, origins_sensor: Array, directions_sensor: Array) -> _Echoes:
    """What rays of any shape (..., 3), unit directions, see of the scene."""
    shape = directions_sensor.shape[:-1]
    directions = directions_sensor.reshape(-1, 3) @ T_scene_sensor.rotation.T
    hits = scene.cast(T_scene_sensor.apply(origins_sensor.reshape(-1, 3)), directions)
    cosine = np.abs(np.einsum('ij,ij->i', hits.normals, directions))
    return _Echoes(hits.distance_m.reshape(shape), cosine.reshape(shape), _reflectance(scene, hits).reshape(shape))


def _reflectance(scene: Scene, hits: Hits) -> Array:
    """Share of light that the surface sends back, (N,); 0 for nothing."""
    s, t = np.nan_to_num(hits.developed.T) / _TEXEL_M
    sampled = map_coordinates(_reflectance_map(scene), [t, s], order=1, mode='nearest')
    tints = np.concatenate([[1.0], scene.appearance.hole_tints[:, _RED]])
    return np.where(np.isfinite(hits.distance_m), sampled * tints[np.maximum(hits.surface_id, 0)], 0.0)


@lru_cache(maxsize=1)
def _reflectance_map(scene: Scene) -> Array:
    """Reflectance of the intact wall in red, the channel nearest to the infrared of these sensors, (rows, columns)."""
    size = np.array([scene.wall.height_m, scene.wall.width_m])
    rows, columns = np.ceil(size / _TEXEL_M).astype(int) + 1
    t, s = np.mgrid[:rows, :columns].astype(np.float32) * np.float32(_TEXEL_M)
    return np.asarray(scene.appearance.reflectance(np.stack([s, t], axis=-1), _TEXEL_M)[..., _RED], dtype=np.float64)


def _sees(scene: Scene, T_scene_sensor: SE3, eye_sensor: Array, points_sensor: Array) -> NDArray[np.bool_]:
    """Whether nothing lies between the eye, (3,) or (N, 3), and each point, (N, 3)."""
    rays = points_sensor - eye_sensor
    origins = np.broadcast_to(T_scene_sensor.apply(eye_sensor), rays.shape)
    hits = scene.cast(origins, rays @ T_scene_sensor.rotation.T)
    return np.asarray(hits.distance_m > np.linalg.norm(rays, axis=1) - _SHADOW_TOLERANCE_M)


def _smooth_field(rng: np.random.Generator, directions: Array, length_rad: float) -> Array:
    """A random function of the direction, (N,), of unit deviation and given correlation length.

    Random Fourier features of a Gaussian kernel (Rahimi and Recht 2007).
    """
    waves = rng.standard_normal((3, 24)) / length_rad
    phases = rng.uniform(0.0, 2.0 * math.pi, 24)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(math.sqrt(2.0 / 24.0) * np.cos(unit @ waves + phases).sum(axis=1))


def _make_cloud(points: Array, intensity: Array, keep: NDArray[np.bool_]) -> Cloud:
    return Cloud(points[keep], np.clip(intensity[keep], 0.0, _REFLECTIVITY_SCALE).astype(np.float32))
