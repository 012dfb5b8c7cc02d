"""A robot that moves along a simulated wall with a camera and a range sensor: live frames, bags and data sets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmml_ros.bag.writer import BagWriter
from cmml_ros.errors import SceneError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.simulation.camera import Look, Rendering, render
from cmml_ros.simulation.light import Light, draw_light
from cmml_ros.simulation.range_sensor import DepthCamera, LineProfiler, RangeSensor, describe_sensor, make_sensor
from cmml_ros.simulation.response import Response, draw_response
from cmml_ros.simulation.scene import Scene, make_scene
from cmml_ros.simulation.wall import Kind
from cmml_ros.version import read_version

Array = NDArray[np.float64]

MAP_FRAME = 'map'
ODOM_FRAME = 'odom'
BASE_FRAME = 'base_link'
CAMERA_FRAME = 'camera_optical_frame'

CAMERA = Camera(1280, 720, 1052.0, 1050.5, 642.3, 357.8, 'plumb_bob', (-0.12, 0.06, 0.0004, -0.0003, 0.0))
DEPTH_UNIT_M = 0.0001

_WALL_SIZE_M = (1.2, 0.8)
_AIRHOLES_PER_M2 = 100.0
_TRANSFORM_PERIOD_NS = 10_000_000
_CLOUD_DELAY_NS = (2_000_000, 4_000_000)
_SWAY_RAD = 0.025
_SWAY_M = 0.005

# base_link: x along the wall, y towards it, z up.
_T_base_camera = SE3(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]), np.array([0.12, 0.05, 0.30]))
_T_map_odom = SE3.from_rotation_vector((0.0, 0.0, 0.03), (0.25, -0.10, 0.02))


@dataclass(frozen=True)
class TimedTransform:
    """One edge of the transform tree at one time."""

    parent: str
    child: str
    stamp_ns: int
    T_parent_child: SE3


@dataclass(frozen=True)
class SimulatedFrame:
    """What the robot sends from one stop of the clock to the next, with the truth.

    cloud: in the frame of the range sensor, taken at cloud_stamp_ns, a few milliseconds after the picture. transforms:
    the moving edges since the frame before, in the order of their stamps, the last ones after both stamps.
    T_map_camera: at stamp_ns; the map frame is that of the scene.
    """

    index: int
    stamp_ns: int
    cloud_stamp_ns: int
    rendering: Rendering
    cloud: Cloud
    transforms: tuple[TimedTransform, ...]
    T_map_camera: SE3


@dataclass(frozen=True)
class Scenario:
    """A wall and a robot that sweeps it in rows at constant speed, swaying a little, there and back for ever.

    The same fields give the same frames, each on its own: `frame(7)` does not need the frames before it. Raises
    SceneError for a field out of range.
    """

    kind: Kind = 'plane'
    sensor_name: str = 'depth_camera'
    seed: int = 0
    look: Look = 'fast'
    rate_hz: float = 5.0
    distance_m: float = 0.5
    speed_m_s: float = 0.05
    range_noise_m: float | None = None
    start_ns: int = 1_700_000_000_000_000_000

    def __post_init__(self) -> None:
        for name, choices in (('kind', get_args(Kind)), ('look', get_args(Look))):
            if getattr(self, name) not in choices:
                raise SceneError(f'{name} must be one of {", ".join(choices)}, got "{getattr(self, name)}"')
        if self.seed < 0:
            raise SceneError(f'the seed must not be negative, got {self.seed}')
        for name, unit, low, high in (
            ('rate_hz', 'Hz', 0.1, 30.0),
            ('distance_m', 'm', 0.2, 1.0),
            ('speed_m_s', 'm/s', 0.001, 2.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise SceneError(f'{name} must be in [{low:g}, {high:g}] {unit}, got {getattr(self, name):g}')
        make_sensor(self.sensor_name, self.range_noise_m)

    @property
    def camera(self) -> Camera:
        """The robot's camera, 1280x720 with a little distortion."""
        return CAMERA

    @cached_property
    def sensor(self) -> RangeSensor:
        """The robot's range sensor."""
        return make_sensor(self.sensor_name, self.range_noise_m)

    @cached_property
    def scene(self) -> Scene:
        """The wall; its frame is the map frame."""
        width_m, height_m = _WALL_SIZE_M
        return make_scene(
            self.kind, self.seed, width_m=width_m, height_m=height_m, airhole_density_per_m2=_AIRHOLES_PER_M2
        )

    @cached_property
    def light(self) -> Light:
        """The light of this day, drawn at random."""
        return draw_light(np.random.default_rng(self.seed), self.distance_m)

    @cached_property
    def extrinsic(self) -> SE3:
        """T_camera_sensor: how the range sensor is mounted beside the camera."""
        if isinstance(self.sensor, DepthCamera):
            # To the right, turned in so that both see the same part of the wall.
            return SE3.from_rotation_vector((0.010, -0.120, 0.015), (0.065, 0.012, -0.008))
        if isinstance(self.sensor, LineProfiler):
            # Its line stands upright, across the robot's motion.
            upright = SE3(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.array([0.02, -0.07, 0.01]))
            return upright @ SE3.from_rotation_vector((0.012, -0.010, 0.008), (0.0, 0.0, 0.0))
        forward = SE3(np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]), np.array([0.015, -0.09, -0.03]))
        return forward @ SE3.from_rotation_vector((0.010, 0.015, -0.012), (0.0, 0.0, 0.0))

    @property
    def static_transforms(self) -> tuple[TimedTransform, ...]:
        """Where camera and range sensor are on the robot."""
        T_base_sensor = _T_base_camera @ self.extrinsic
        return (
            TimedTransform(BASE_FRAME, CAMERA_FRAME, self.start_ns, _T_base_camera),
            TimedTransform(BASE_FRAME, self.sensor.frame_id, self.start_ns, T_base_sensor),
        )

    def camera_pose(self, stamp_ns: int) -> SE3:
        """T_map_camera: where the camera's optical frame is on the map."""
        elapsed_s = (stamp_ns - self.start_ns) * 1e-9
        wall = self.scene.wall
        developed = self._place(self.speed_m_s * elapsed_s)[None]
        towards_wall = -wall.normals(developed)[0]
        along = np.cross(towards_wall, (0.0, 0.0, 1.0))
        along /= np.linalg.norm(along)
        T_map_robot = SE3(
            np.column_stack([along, towards_wall, np.cross(along, towards_wall)]),
            wall.points(developed, -np.array([self.distance_m]))[0],
        )
        periods_s, phases = self._sway
        sway = np.sin(2.0 * math.pi * elapsed_s / periods_s + phases)
        T_nominal_camera = SE3.from_rotation_vector(_SWAY_RAD * sway[:3], (0.0, 0.0, _SWAY_M * sway[3]))
        return T_map_robot @ SE3(_T_base_camera.rotation, np.zeros(3)) @ T_nominal_camera

    def transforms(self, stamp_ns: int) -> tuple[TimedTransform, TimedTransform]:
        """The moving edges of the transform tree at one time: map to odom, odom to base_link."""
        T_map_base = self.camera_pose(stamp_ns) @ _T_base_camera.inverse()
        return (
            TimedTransform(MAP_FRAME, ODOM_FRAME, stamp_ns, _T_map_odom),
            TimedTransform(ODOM_FRAME, BASE_FRAME, stamp_ns, _T_map_odom.inverse() @ T_map_base),
        )

    @property
    def sweep_s(self) -> float:
        """How long it takes to see the whole wall once."""
        return float(self._path[1][-1]) / self.speed_m_s

    def frame(self, index: int) -> SimulatedFrame:
        """Frame `index`, 0 and up, of this scenario."""
        rng = np.random.default_rng([self.seed, index])
        stamp_ns = self._stamp_ns(index)
        cloud_stamp_ns = stamp_ns + int(rng.integers(*_CLOUD_DELAY_NS))
        T_map_camera = self.camera_pose(stamp_ns)
        T_map_sensor = self.camera_pose(cloud_stamp_ns) @ self.extrinsic
        return SimulatedFrame(
            index=index,
            stamp_ns=stamp_ns,
            cloud_stamp_ns=cloud_stamp_ns,
            rendering=render(self.scene, self.camera, T_map_camera, self.light, Response(), rng, look=self.look),
            cloud=self.sensor.scan(self.scene, T_map_sensor, rng),
            transforms=self._transforms_since(index),
            T_map_camera=T_map_camera,
        )

    def visible_airholes(self, T_map_camera: SE3) -> dict[int, float]:
        """Ids of the airholes whose whole rim is in the picture, with their equivalent diameter in pixels."""
        T_camera_map = T_map_camera.inverse()
        diameters_px: dict[int, float] = {}
        for hole in self.scene.holes:
            pixels, visible = self.camera.project(T_camera_map.apply(hole.rim))
            faces_camera = (T_map_camera.translation - hole.centre) @ hole.normal > 0.0
            if visible.all() and faces_camera:
                area_px = cv2.contourArea(pixels.astype(np.float32))
                diameters_px[hole.id] = 2.0 * math.sqrt(area_px / math.pi)
        return diameters_px

    def _stamp_ns(self, index: int) -> int:
        return self.start_ns + round(index * 1e9 / self.rate_hz)

    def _transforms_since(self, index: int) -> tuple[TimedTransform, ...]:
        """Edges at the ticks after those of the frame before, up to the first tick after this frame's stamps."""
        first, last = (
            -(-(self._stamp_ns(i) - self.start_ns + _CLOUD_DELAY_NS[1]) // _TRANSFORM_PERIOD_NS)
            for i in (index - 1, index)
        )
        first = first + 1 if index > 0 else 0
        ticks_ns = (self.start_ns + tick * _TRANSFORM_PERIOD_NS for tick in range(first, last + 1))
        return tuple(edge for stamp_ns in ticks_ns for edge in self.transforms(stamp_ns))

    def _place(self, travelled_m: float) -> Array:
        """Developed coordinates in front of the camera, (2,)."""
        corners, lengths_m = self._path
        # There and back: a triangle wave.
        along_m = lengths_m[-1] - abs(lengths_m[-1] - travelled_m % (2.0 * lengths_m[-1]))
        return np.array([np.interp(along_m, lengths_m, corners[:, axis]) for axis in (0, 1)])

    @cached_property
    def _path(self) -> tuple[Array, Array]:
        """Corners of the rows in developed coordinates (n, 2), and how far along the path each one is (n,)."""
        size_m = np.array(_WALL_SIZE_M)
        view_m = self.distance_m * np.array([CAMERA.width / CAMERA.fx, CAMERA.height / CAMERA.fy])
        low = np.minimum(0.5 * view_m + 2.0 * _SWAY_RAD * self.distance_m, 0.5 * size_m)
        high = size_m - low
        rows = 1 + math.ceil((high[1] - low[1]) / (0.7 * view_m[1]))
        corners = [
            (s, t)
            for row, t in enumerate(np.linspace(low[1], high[1], rows))
            for s in ((low[0], high[0]) if row % 2 == 0 else (high[0], low[0]))
        ]
        steps_m = np.linalg.norm(np.diff(corners, axis=0), axis=1)
        return np.array(corners), np.concatenate([[0.0], np.cumsum(steps_m)])

    @cached_property
    def _sway(self) -> tuple[Array, Array]:
        """Periods in seconds and phases of three rotations and of the distance, (4,) each."""
        rng = np.random.default_rng(self.seed)
        return rng.uniform(5.0, 12.0, 4), rng.uniform(0.0, 2.0 * math.pi, 4)


def simulate_bag(out: Path, scenario: Scenario, n_frames: int) -> None:
    """Write a rosbag2 folder (MCAP) of the first frames, and the truth about them as `truth.json` in the same folder.

    Topics: /camera/image, /camera/camera_info, /lidar/points, /tf, /tf_static. Raises SceneError when `out` is in use
    or n_frames is not positive, BagError when the bag cannot be written.
    """
    _claim_folder(out, n_frames)
    frames: list[dict[str, Any]] = []
    with BagWriter(out) as writer:
        messages = FrameMessages(writer.types)
        for topic, type_name in _TOPICS.items():
            writer.add_topic(topic, type_name, latched=topic == '/tf_static')
        writer.write('/tf_static', messages.transforms(scenario.static_transforms), scenario.start_ns)
        for index in tqdm(range(n_frames), desc='simulate', unit='frame', disable=None):
            frame = scenario.frame(index)
            for stamp_ns, topic, message in messages.of_frame(frame, scenario):
                writer.write(topic, message, stamp_ns)
            frames.append(describe_frame(frame, scenario))
    _write_json(out / 'truth.json', {**describe_scenario(scenario), 'frames': frames})


def simulate_dataset(out: Path, scenario: Scenario, n_pictures: int) -> None:
    """Write pictures to learn from: images/, labels/ and depths/ with the same file names, and intrinsics.json.

    Each picture shows a place drawn at random on a wall of its own, made with the next seed, by a camera drawn at
    random from clean to poor. labels: 16-bit PNG, 0 where there is no airhole, else its number. depths: 16-bit PNG,
    along the optical axis in units of 0.1 mm, 0 for nothing.
    Raises SceneError when `out` is in use or n_pictures is not positive.
    """
    _claim_folder(out, n_pictures)
    for folder in ('images', 'labels', 'depths'):
        (out / folder).mkdir(parents=True)
    for number in tqdm(range(n_pictures), desc='simulate', unit='picture', disable=None):
        wall = dataclasses.replace(scenario, seed=scenario.seed + number, speed_m_s=1.0)
        rng = np.random.default_rng(wall.seed)
        T_map_camera = wall.camera_pose(wall.start_ns + round(rng.uniform(0.0, wall.sweep_s) * 1e9))
        rendering = render(wall.scene, wall.camera, T_map_camera, wall.light, draw_response(rng), rng, look=wall.look)
        depth_m = np.where(np.isfinite(rendering.depth_m), rendering.depth_m, 0.0)
        pictures: dict[str, NDArray[Any]] = {
            'images': rendering.image,
            'labels': np.maximum(rendering.hole_ids, 0).astype(np.uint16),
            'depths': np.clip(np.round(depth_m / DEPTH_UNIT_M), 0, 65535).astype(np.uint16),
        }
        for folder, picture in pictures.items():
            path = out / folder / f'{number:06d}.png'
            if not cv2.imwrite(str(path), picture):
                raise SceneError(f'{path}: cannot be written; check the disk')
    intrinsics = {
        **_describe_camera(scenario.camera),
        'depth_unit_m': DEPTH_UNIT_M,
        'scene': scenario.kind,
        'look': scenario.look,
        'seeds': [scenario.seed, scenario.seed + n_pictures - 1],
        'package_version': read_version(),
    }
    _write_json(out / 'intrinsics.json', intrinsics)


_TOPICS = {
    '/camera/image': 'sensor_msgs/msg/Image',
    '/camera/camera_info': 'sensor_msgs/msg/CameraInfo',
    '/lidar/points': 'sensor_msgs/msg/PointCloud2',
    '/tf': 'tf2_msgs/msg/TFMessage',
    '/tf_static': 'tf2_msgs/msg/TFMessage',
}


class FrameMessages:
    """Frames as ROS messages, made from the classes of a rosbags type store."""

    def __init__(self, types: Mapping[str, Any]) -> None:
        self._types = types

    def of_frame(self, frame: SimulatedFrame, scenario: Scenario) -> list[tuple[int, str, Any]]:
        """(stamp_ns, topic, message) of everything in one frame, in the order of the stamps."""
        edges: dict[int, list[TimedTransform]] = {}
        for edge in frame.transforms:
            edges.setdefault(edge.stamp_ns, []).append(edge)
        stamped = [(stamp_ns, '/tf', self.transforms(group)) for stamp_ns, group in edges.items()]
        stamped += [
            (frame.stamp_ns, '/camera/image', self.image(frame.rendering.image, frame.stamp_ns)),
            (frame.stamp_ns, '/camera/camera_info', self.camera_info(scenario.camera, frame.stamp_ns)),
            (
                frame.cloud_stamp_ns,
                '/lidar/points',
                self.cloud(frame.cloud, scenario.sensor.frame_id, frame.cloud_stamp_ns),
            ),
        ]
        return sorted(stamped, key=lambda item: item[0])

    def image(self, image: NDArray[np.uint8], stamp_ns: int) -> Any:
        """sensor_msgs/Image of a picture, (H, W, 3) BGR."""
        height, width = image.shape[:2]
        return self._types['sensor_msgs/msg/Image'](
            header=self._header(stamp_ns, CAMERA_FRAME),
            height=height,
            width=width,
            encoding='bgr8',
            is_bigendian=0,
            step=3 * width,
            data=np.ascontiguousarray(image).reshape(-1),
        )

    def camera_info(self, camera: Camera, stamp_ns: int) -> Any:
        """sensor_msgs/CameraInfo."""
        region = self._types['sensor_msgs/msg/RegionOfInterest']
        return self._types['sensor_msgs/msg/CameraInfo'](
            header=self._header(stamp_ns, CAMERA_FRAME),
            height=camera.height,
            width=camera.width,
            distortion_model=camera.model,
            d=np.array(camera.distortion),
            k=camera.matrix.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=np.column_stack([camera.matrix, np.zeros(3)]).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=region(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
        )

    def cloud(self, cloud: Cloud, frame_id: str, stamp_ns: int) -> Any:
        """sensor_msgs/PointCloud2 with x, y, z, intensity."""
        field = self._types['sensor_msgs/msg/PointField']
        assert cloud.intensity is not None
        rows = np.column_stack([cloud.points, cloud.intensity]).astype('<f4')
        return self._types['sensor_msgs/msg/PointCloud2'](
            header=self._header(stamp_ns, frame_id),
            height=1,
            width=len(rows),
            fields=[
                field(name=name, offset=4 * column, datatype=field.FLOAT32, count=1)
                for column, name in enumerate(('x', 'y', 'z', 'intensity'))
            ],
            is_bigendian=False,
            point_step=16,
            row_step=16 * len(rows),
            data=rows.reshape(-1).view(np.uint8),
            is_dense=True,
        )

    def transforms(self, edges: Sequence[TimedTransform]) -> Any:
        """tf2_msgs/TFMessage."""
        return self._types['tf2_msgs/msg/TFMessage'](transforms=[self._transform(edge) for edge in edges])

    def _transform(self, edge: TimedTransform) -> Any:
        x, y, z = map(float, edge.T_parent_child.translation)
        qx, qy, qz, qw = map(float, edge.T_parent_child.quaternion_xyzw)
        return self._types['geometry_msgs/msg/TransformStamped'](
            header=self._header(edge.stamp_ns, edge.parent),
            child_frame_id=edge.child,
            transform=self._types['geometry_msgs/msg/Transform'](
                translation=self._types['geometry_msgs/msg/Vector3'](x=x, y=y, z=z),
                rotation=self._types['geometry_msgs/msg/Quaternion'](x=qx, y=qy, z=qz, w=qw),
            ),
        )

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        stamp = self._types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
        return self._types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)


def describe_scenario(scenario: Scenario) -> dict[str, Any]:
    """The truth that holds for all frames, ready for JSON: SI units, map frame."""
    wall = scenario.scene.wall
    holes = [
        {
            'id': hole.id,
            'shape': hole.shape,
            'centre_m': hole.centre.tolist(),
            'normal': hole.normal.tolist(),
            'rim_m': hole.rim.tolist(),
            'area_m2': hole.area_m2,
            'equivalent_diameter_m': hole.equivalent_diameter_m,
            'major_axis_m': hole.major_axis_m,
            'minor_axis_m': hole.minor_axis_m,
            'depth_max_m': hole.depth_max_m,
            'volume_m3': hole.volume_m3,
            'void_volume_m3': hole.void_volume_m3,
        }
        for hole in scenario.scene.holes
    ]
    distractors = [
        {'id': item.id, 'kind': item.kind, 'outline_m': wall.points(item.outline_developed).tolist()}
        for item in scenario.scene.distractors
    ]
    return {
        'package_version': read_version(),
        'scenario': dataclasses.asdict(scenario),
        'wall': {'kind': wall.kind, 'width_m': wall.width_m, 'height_m': wall.height_m},
        'map_frame': MAP_FRAME,
        'camera': _describe_camera(scenario.camera),
        'sensor': describe_sensor(scenario.sensor),
        'T_camera_sensor': _describe_transform(scenario.extrinsic),
        'airholes': holes,
        'distractors': distractors,
    }


def describe_frame(frame: SimulatedFrame, scenario: Scenario) -> dict[str, Any]:
    """The truth about one frame, ready for JSON; airholes: those whose whole rim is in the picture."""
    visible = scenario.visible_airholes(frame.T_map_camera)
    return {
        'stamp_ns': frame.stamp_ns,
        'cloud_stamp_ns': frame.cloud_stamp_ns,
        'T_map_camera': _describe_transform(frame.T_map_camera),
        'airholes': [{'id': hole_id, 'diameter_px': diameter_px} for hole_id, diameter_px in visible.items()],
    }


def _describe_camera(camera: Camera) -> dict[str, Any]:
    return dataclasses.asdict(camera)


def _describe_transform(transform: SE3) -> dict[str, Any]:
    return {
        'translation_m': transform.translation.tolist(),
        'quaternion_xyzw': transform.quaternion_xyzw.tolist(),
    }


def _claim_folder(out: Path, count: int) -> None:
    if count < 1:
        raise SceneError(f'the number of frames must be positive, got {count}')
    if out.exists():
        if not out.is_dir() or any(out.iterdir()):
            raise SceneError(f'{out} exists and is not empty; name another folder, or remove it')
        out.rmdir()  # a bag makes its own
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SceneError(f'{out}: cannot be written ({error.strerror}); check the path') from None


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document) + '\n', encoding='utf-8')
