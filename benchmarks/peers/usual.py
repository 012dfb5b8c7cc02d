"""The parts of the pipeline as they are usually written, to be compared with ours.

cv_bridge, sensor_msgs_py and message_filters are no wheels; what they do is written out here in their own way.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open3d as o3d
import torch
from mcap_ros2.reader import read_ros2_messages
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.network import MultitaskNetwork

_FORMATS = {1: 'b', 2: 'B', 3: 'h', 4: 'H', 5: 'i', 6: 'I', 7: 'f', 8: 'd'}
_CODES = {'rgb8': cv2.COLOR_RGB2BGR, 'mono8': cv2.COLOR_GRAY2BGR}


def copy_bytes(msg: Any) -> NDArray[np.uint8]:
    """A memcpy of the message's data: the floor for whatever keeps them."""
    return np.frombuffer(msg.data, np.uint8).copy()


def image_to_bgr(msg: Any) -> NDArray[np.uint8]:
    """imgmsg_to_cv2(msg, 'bgr8') of cv_bridge, for 8 bits: a view, then always a conversion or a copy."""
    channels = msg.step // msg.width
    view = np.ndarray((msg.height, msg.step // channels, channels), np.uint8, msg.data)[:, : msg.width]
    return view.copy() if msg.encoding == 'bgr8' else cv2.cvtColor(view, _CODES[msg.encoding])


def read_points(msg: Any) -> NDArray[np.float64]:
    """x, y, z point by point, (N, 3): read_points of sensor_msgs_py up to Foxy, still what most nodes carry around."""
    fields = {field.name: field for field in msg.fields}
    readers = [
        (struct.Struct(('>' if msg.is_bigendian else '<') + _FORMATS[fields[name].datatype]), fields[name].offset)
        for name in 'xyz'
    ]
    data, points = bytes(msg.data), []
    for row in range(msg.height):
        for column in range(msg.width):
            start = row * msg.row_step + column * msg.point_step
            point = [reader.unpack_from(data, start + offset)[0] for reader, offset in readers]
            if not any(map(math.isnan, point)):
                points.append(point)
    return np.array(points)


class ApproximateTimeSynchronizer:
    """The algorithm of message_filters.ApproximateTimeSynchronizer (Python), with integer stamps."""

    def __init__(self, topics: int, queue_size: int, slop_ns: int, callback: Callable[..., None]) -> None:
        self._queues: list[dict[int, Any]] = [{} for _ in range(topics)]
        self._queue_size, self._slop_ns, self._callback = queue_size, slop_ns, callback

    def add(self, index: int, stamp_ns: int, msg: Any) -> None:
        """One message of topic `index`."""
        own = self._queues[index]
        own[stamp_ns] = msg
        while len(own) > self._queue_size:
            del own[min(own)]
        stamps = []
        for queue in (queue for queue in self._queues if queue is not own):
            near = sorted((abs(s - stamp_ns), s) for s in queue if abs(s - stamp_ns) <= self._slop_ns)
            if not near:
                return
            stamps.append([s for _, s in near])
        for others in itertools.product(*stamps):
            chosen = [*others[:index], stamp_ns, *others[index:]]
            if max(chosen) - min(chosen) < self._slop_ns and all(
                s in queue for queue, s in zip(self._queues, chosen, strict=True)
            ):
                self._callback(*[queue.pop(s) for queue, s in zip(self._queues, chosen, strict=True)])
                break


def project(
    points: NDArray[np.float64], camera: Camera, T_camera_lidar: NDArray[np.float64]
) -> tuple[o3d.geometry.PointCloud, NDArray[np.int64]]:
    """The cloud in the camera frame (Open3D) and the pixel of each point, -1 outside the image."""
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)).transform(T_camera_lidar)
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    xyz = np.asarray(cloud.points)
    uv, _ = cv2.projectPoints(xyz, np.zeros(3), np.zeros(3), matrix, np.array(camera.distortion or (0.0,) * 5))
    pixels = np.rint(uv[:, 0]).astype(int)
    outside = (pixels < 0).any(axis=1) | (pixels >= (camera.width, camera.height)).any(axis=1) | (xyz[:, 2] <= 0)
    pixels[outside] = -1
    return cloud, pixels


def fit_plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Plane (4,) by Open3D's RANSAC with its usual settings."""
    model, _ = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)).segment_plane(0.002, 3, 1000)
    return np.asarray(model)


def measure(
    masks: Sequence[InstanceMask], cloud: o3d.geometry.PointCloud, pixels: NDArray[np.int64], camera: Camera
) -> list[tuple[float, float, float]]:
    """Area, depth and volume (SI) of each airhole: RANSAC plane around it, hull, mean depth."""
    measured = []
    seen = pixels[:, 0] >= 0
    u, v = pixels.T
    for mask in masks:
        inside = np.zeros((camera.height, camera.width), np.uint8)
        left, top, width, height = mask.roi
        inside[top : top + height, left : left + width] = mask.coverage >= 0.5
        reach = max(round(mask.equivalent_diameter_px), 12)
        around = cv2.dilate(inside, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) - cv2.dilate(
            inside, np.ones((5, 5))
        )
        ring = cloud.select_by_index(np.flatnonzero(seen & (around[v, u] > 0)))
        if len(ring.points) < 3:
            continue
        (a, b, c, d), _ = ring.segment_plane(0.002, 3, 1000)
        hole = np.asarray(cloud.select_by_index(np.flatnonzero(seen & (inside[v, u] > 0))).points)
        if len(hole) < 4:
            continue
        depths = np.abs(hole @ (a, b, c) + d)
        area = ConvexHull(hole[:, :2]).volume / abs(c)
        measured.append((area, float(depths.max()), area * float(depths.mean())))
    return measured


@torch.inference_mode()
def segment(
    network: MultitaskNetwork, image: NDArray[np.uint8], range_maps: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Probabilities (2, H, W) of the network in eager torch, as one writes it."""
    batch = torch.from_numpy(image).permute(2, 0, 1).float().unsqueeze(0) / 255.0
    return network(batch, torch.from_numpy(range_maps).unsqueeze(0)).sigmoid()[0].numpy()


class UNet(torch.nn.Module):
    """Ronneberger et al. (MICCAI 2015) with padding, batch normalisation and half the channels."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        self.down = torch.nn.ModuleList(
            [self._block(before, after) for before, after in itertools.pairwise((3, *channels))]
        )
        upwards = list(itertools.pairwise(reversed(channels)))
        self.up = torch.nn.ModuleList([torch.nn.ConvTranspose2d(deep, fine, 2, 2) for deep, fine in upwards])
        self.join = torch.nn.ModuleList([self._block(2 * fine, fine) for _, fine in upwards])
        self.logits = torch.nn.Conv2d(channels[0], 2, 1)

    @staticmethod
    def _block(before: int, after: int) -> torch.nn.Sequential:
        layers: list[torch.nn.Module] = []
        for channels in (before, after):
            layers += [
                torch.nn.Conv2d(channels, after, 3, padding=1, bias=False),
                torch.nn.BatchNorm2d(after),
                torch.nn.ReLU(),
            ]
        return torch.nn.Sequential(*layers)

    @torch.inference_mode()
    def segment(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (2, H, W)."""
        features = torch.from_numpy(image).permute(2, 0, 1).float().unsqueeze(0) / 255.0
        kept: list[torch.Tensor] = []
        for block in self.down:
            features = block(torch.nn.functional.max_pool2d(features, 2) if kept else features)
            kept.append(features)
        for up, join, skipped in zip(self.up, self.join, reversed(kept[:-1]), strict=True):
            features = join(torch.cat([skipped, up(features)], dim=1))
        return self.logits(features).sigmoid()[0].numpy()


def solve_pnp(points: NDArray[np.float64], pixels: NDArray[np.float64], camera: Camera) -> NDArray[np.float64]:
    """Rotation vector and translation (6,) by OpenCV's RANSAC and Levenberg-Marquardt on its inliers."""
    distortion = np.array(camera.distortion)
    _, turn, shift, inliers = cv2.solvePnPRansac(
        points, pixels, camera.matrix, distortion, reprojectionError=5.0, iterationsCount=1000, confidence=0.9999
    )
    inside = inliers[:, 0]
    turn, shift = cv2.solvePnPRefineLM(points[inside], pixels[inside], camera.matrix, distortion, turn, shift)
    return np.concatenate([turn[:, 0], shift[:, 0]])


def find_blobs(mask: NDArray[np.float32]) -> list[InstanceMask]:
    """One mask per connected blob of 3 px and more."""
    count, _, stats, _ = cv2.connectedComponentsWithStats((mask >= 0.5).astype(np.uint8))
    boxes = [tuple(int(value) for value in stats[index, :4]) for index in range(1, count) if stats[index, 4] >= 7]
    return [InstanceMask(np.ascontiguousarray(mask[t : t + h, x : x + w]), x, t, 1.0) for x, t, w, h in boxes]


def read_bag(path: Path) -> Iterator[Any]:
    """Every message, decoded, by mcap and mcap-ros2-support."""
    for item in read_ros2_messages(next(path.glob('*.mcap'))):
        yield item.ros_msg
