"""Our parts and the usual ones on the same inputs in one run, as ratios of CPU time and of wall time.

    python benchmarks/speed.py [--bag FOLDER] [--rounds 7]

Every round runs each of a pair once, one after the other; the figures are medians over the rounds. CPU time counts all
threads and does not suffer from what else the machine does; wall time does.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import usual
from tqdm import tqdm

from cmml_ros.bag.reader import BagReader
from cmml_ros.config import InspectorConfig, SyncConfig
from cmml_ros.frame import Frame
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud, ProjectedCloud, project_cloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.surface import fit_surface
from cmml_ros.geometry.transforms import SE3
from cmml_ros.inspector import Inspector
from cmml_ros.measurement.measure import measure
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.engine import OpenVinoEngine
from cmml_ros.model.pose import estimate_pose
from cmml_ros.model.torch_engine import fuse_normalisation
from cmml_ros.simulation.scenario import Scenario, simulate_bag
from cmml_ros.stream.assembler import Assembler
from cmml_ros.stream.conversions import cloud_from_message, image_to_bgr, stamp_to_ns
from cmml_ros.stream.synchronizer import Synchronizer

CAMERA = Camera(1280, 720, 1200.0, 1200.0, 639.5, 359.5)
WALL_M = 0.5
# What takes less than a millisecond is called more often: the first calls of it find caches cold.
BRIEF_S = 1e-3
BRIEF_ROUNDS = 20
# Of one call that compares whole frames, several of which are in work at once.
FRAMES_IN_A_ROW = 6


@dataclass(frozen=True)
class Comparison:
    """Medians of one pair, seconds. target: at least so many times as fast as the peer."""

    what: str
    peer: str
    ours_cpu_s: float
    peer_cpu_s: float
    ours_wall_s: float
    peer_wall_s: float
    target: float | None = None

    @property
    def cpu_ratio(self) -> float:
        """How many times the CPU time the peer takes."""
        return self.peer_cpu_s / self.ours_cpu_s

    @property
    def wall_ratio(self) -> float:
        """How many times as long the peer takes."""
        return self.peer_wall_s / self.ours_wall_s


def compare(
    what: str,
    ours: Callable[[], object],
    peer_name: str,
    peer: Callable[[], object],
    *,
    rounds: int,
    target: float | None = None,
    count: int = 1,
) -> Comparison:
    """Both, warmed up, alternately. count: of what one call does, each; times are of one."""
    ours(), peer()
    started_s = time.perf_counter()
    ours(), peer()
    brief = time.perf_counter() - started_s < BRIEF_S
    times = np.empty((rounds * BRIEF_ROUNDS if brief else rounds, 2, 2))
    for row in times:
        for cell, call in zip(row, (ours, peer), strict=True):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            call()
            cell[:] = time.process_time() - cpu_s, time.perf_counter() - wall_s
    (ours_cpu_s, ours_wall_s), (peer_cpu_s, peer_wall_s) = np.median(times / count, axis=0).tolist()
    return Comparison(what, peer_name, ours_cpu_s, peer_cpu_s, ours_wall_s, peer_wall_s, target)


def make_wall(points: int, airholes: int, camera: Camera = CAMERA) -> tuple[ProjectedCloud, list[InstanceMask]]:
    """A flat wall at WALL_M, `points` over the whole image, with caps a quarter of their width deep."""
    rng = np.random.default_rng(0)
    across = round((points * camera.width / camera.height) ** 0.5)
    u, v = np.meshgrid(
        np.linspace(1.0, camera.width - 2.0, across), np.linspace(1.0, camera.height - 2.0, points // across)
    )
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)
    columns = max(round((airholes * camera.width / camera.height) ** 0.5), 1)
    rows = -(-airholes // columns)
    pitch_px = min(camera.width / columns, camera.height / rows)
    radius_px = min(0.2 * pitch_px, 16.0)
    depths_m = np.zeros(len(pixels))
    masks = []
    for index in range(airholes):
        row, column = divmod(index, columns)
        centre = np.array([(column + 0.5) * camera.width / columns, (row + 0.5) * camera.height / rows])
        share = 1.0 - ((pixels - centre) ** 2).sum(axis=1) / radius_px**2
        depths_m += 0.5 * radius_px * WALL_M / camera.fx * np.clip(share, 0.0, None)
        size = 2 * int(radius_px) + 5
        left, top = (centre - size / 2).round().astype(int).tolist()
        y, x = np.mgrid[:size, :size]
        distance_px = np.hypot(x + left - centre[0], y + top - centre[1])
        masks.append(InstanceMask(np.clip(radius_px + 0.5 - distance_px, 0, 1).astype(np.float32), left, top, 0.9))
    z = WALL_M + depths_m + rng.normal(0.0, 0.0002, len(pixels))
    return ProjectedCloud(camera.rays(pixels) * z[:, None], pixels), masks


def make_messages(points: NDArray[np.float64]) -> tuple[SimpleNamespace, SimpleNamespace]:
    """An Image (rgb8) and a PointCloud2 (x y z intensity) as rclpy hands them over."""
    rng = np.random.default_rng(0)
    image = SimpleNamespace(
        width=1280, height=720, step=3840, encoding='rgb8', is_bigendian=0,
        data=rng.integers(0, 256, 1280 * 720 * 3).astype(np.uint8),
    )  # fmt: skip
    values = np.concatenate([points, rng.random((len(points), 1))], axis=1).astype(np.float32)
    fields = [
        SimpleNamespace(name=name, offset=4 * i, datatype=7, count=1)
        for i, name in enumerate(('x', 'y', 'z', 'intensity'))
    ]
    cloud = SimpleNamespace(
        width=len(points), height=1, point_step=16, row_step=16 * len(points), is_bigendian=False, fields=fields,
        data=values.view(np.uint8).ravel(),
    )  # fmt: skip
    return image, cloud


def compare_parts(rounds: int) -> list[Comparison]:
    """Every part that does not need a recording."""
    projected, masks = make_wall(50_000, 100)
    image_msg, cloud_msg = make_messages(projected.points_camera)
    T_camera_lidar = SE3.from_quaternion([0.01, -0.02, 0.01, 1.0], [0.05, 0.0, 0.0])
    points_lidar = T_camera_lidar.inverse().apply(projected.points_camera)
    cloud = Cloud(points_lidar)
    o3d_cloud, pixels = usual.project(points_lidar, CAMERA, T_camera_lidar.matrix)
    ring = projected.points_camera[np.hypot(*(projected.pixels - (640, 360)).T) < 150][:4000]
    config = InspectorConfig()
    network, _ = load_network(find_weights('small'))
    image = image_to_bgr(image_msg, 'image')
    maps = np.zeros((3, 360, 640), np.float32)
    engines = {
        (precision, threads): OpenVinoEngine(
            lambda: fuse_normalisation(copy.deepcopy(network)), threads, precision=precision
        )
        for precision in ('int8', 'float32')
        for threads in (0, 1)
    }

    def eager(threads: int) -> Callable[[], object]:
        def run() -> object:
            torch.set_num_threads(threads)
            return usual.segment(network, image, maps)

        return run

    cores = torch.get_num_threads()
    unet = usual.UNet().eval()
    matched, seen = make_matches(projected)

    def run_unet() -> object:
        torch.set_num_threads(1)
        return unet.segment(image)

    pairs: list[tuple[str, Callable[[], object], str, Callable[[], object], float | None]] = [
        (
            'image message to BGR array',
            lambda: image_to_bgr(image_msg, 'image'),
            'memcpy of its bytes',
            lambda: usual.copy_bytes(image_msg),
            1 / 1.2,
        ),
        (
            'cloud message to points',
            lambda: cloud_from_message(cloud_msg, 'points'),
            'memcpy of its bytes',
            lambda: usual.copy_bytes(cloud_msg),
            1 / 1.2,
        ),
        (
            'image message to BGR array',
            lambda: image_to_bgr(image_msg, 'image'),
            'cv_bridge style',
            lambda: usual.image_to_bgr(image_msg),
            None,
        ),
        (
            'cloud message to points',
            lambda: cloud_from_message(cloud_msg, 'points'),
            'point by point',
            lambda: usual.read_points(cloud_msg),
            None,
        ),
        ('1,000 images and clouds paired', pair_ours, 'message_filters algorithm', pair_usual, None),
        (
            '50,000 points into the image, hidden ones out',
            lambda: project_cloud(cloud, CAMERA, T_camera_lidar),
            'Open3D and OpenCV, none out',
            lambda: usual.project(points_lidar, CAMERA, T_camera_lidar.matrix),
            None,
        ),
        (
            'surface through 4,000 points, with deviation',
            lambda: fit_surface(ring, np.array([0.0, 0.0, 1.0]), patch_angle_rad=0.02, curvature_significance=0.001),
            'Open3D RANSAC plane',
            lambda: usual.fit_plane(ring),
            None,
        ),
        (
            '100 airholes measured',
            lambda: measure(masks, projected, CAMERA, config.surface, config.measurement),
            'script with Open3D, one by one',
            lambda: usual.measure(masks, o3d_cloud, pixels, CAMERA),
            10.0,
        ),
        *(
            (
                f'network in {precision}, 1280x720, {threads or cores} thread(s)',
                functools.partial(engine, image, maps),
                'the same in eager PyTorch',
                eager(threads or cores),
                2.5,
            )
            for (precision, threads), engine in engines.items()
        ),
        (
            'network in int8, 1280x720, 1 thread(s)',
            functools.partial(engines['int8', 1], image, maps),
            'U-Net of 32 to 512 channels in eager PyTorch',
            run_unet,
            None,
        ),
        (
            'pose from 1,000 matches, 60 % of them wrong',
            lambda: estimate_pose(matched, seen, CAMERA, 5.0),
            'OpenCV RANSAC and refinement',
            lambda: usual.solve_pnp(matched, seen, CAMERA),
            None,
        ),
    ]
    return [
        compare(what, ours, peer_name, peer, rounds=rounds, target=target)
        for what, ours, peer_name, peer, target in tqdm(pairs, desc='parts', unit='pair')
    ]


def make_matches(projected: ProjectedCloud) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1,000 points of a cloud with a pixel of noise, 60 % of them matched with any other pixel."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(projected.pixels), 1000, replace=False)
    pixels = projected.pixels[chosen] + rng.normal(0.0, 1.0, (1000, 2))
    wrong = rng.random(1000) < 0.6
    pixels[wrong] = rng.uniform((0, 0), (CAMERA.width - 1, CAMERA.height - 1), (int(wrong.sum()), 2))
    inside = np.clip(pixels, 0.0, (CAMERA.width - 1, CAMERA.height - 1))
    return projected.points_camera[chosen], inside


def pair_ours() -> int:
    """1,000 images at 10 Hz with clouds a little off; how many were paired."""
    synchronizer: Synchronizer[int, int] = Synchronizer(SyncConfig())
    paired = 0
    for index in range(1000):
        stamp_ns = 10**9 + index * 10**8
        paired += len(synchronizer.add_cloud(stamp_ns + (index * 7919) % 20_000_000 - 10_000_000, index))
        paired += len(synchronizer.add_image(stamp_ns, index))
    return paired + len(synchronizer.flush())


def pair_usual() -> int:
    """The same with the algorithm of message_filters."""
    paired: list[tuple[int, int]] = []
    synchronizer = usual.ApproximateTimeSynchronizer(
        2, 10, 50_000_000, lambda image, cloud: paired.append((image, cloud))
    )
    for index in range(1000):
        stamp_ns = 10**9 + index * 10**8
        synchronizer.add(1, stamp_ns + (index * 7919) % 20_000_000 - 10_000_000, index)
        synchronizer.add(0, stamp_ns, index)
    return len(paired)


def compare_recording(bag: Path, rounds: int) -> list[Comparison]:
    """Reading, and the whole of one frame."""

    def read_ours() -> int:
        with BagReader(bag) as reader:
            return sum(1 for _ in reader.messages(list(reader.topics())))

    config = InspectorConfig()
    inspector = Inspector(config)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as it is by itself
    network, _ = load_network(find_weights(config.detection.model))
    image_msg, cloud_msg, frame = read_first_frame(bag, config)

    def decode_ours() -> Iterator[Frame]:
        for _ in range(FRAMES_IN_A_ROW):
            picture, cloud = image_to_bgr(image_msg, 'image'), cloud_from_message(cloud_msg, 'points')
            yield dataclasses.replace(frame, image=picture, cloud=cloud)

    def whole_ours() -> int:
        return sum(len(inspected.result().defects) for inspected in inspector.inspect_all(decode_ours()))

    def whole_usual() -> int:
        found = 0
        for _ in range(FRAMES_IN_A_ROW):
            picture, points = usual.image_to_bgr(image_msg), usual.read_points(cloud_msg)
            cloud, pixels = usual.project(points, frame.camera, frame.T_camera_lidar.matrix)
            probabilities = usual.segment(network, np.ascontiguousarray(picture), np.zeros((3, 360, 640), np.float32))
            found += len(usual.measure(usual.find_blobs(probabilities[0]), cloud, pixels, frame.camera))
        return found

    return [
        compare(
            'bag read and decoded',
            read_ours,
            'mcap and mcap-ros2-support',
            lambda: sum(1 for _ in usual.read_bag(bag)),
            rounds=rounds,
        ),
        compare(
            f'whole frame, 1280x720 and 50,000 points, {FRAMES_IN_A_ROW} in a row',
            whole_ours,
            'script of the usual parts',
            whole_usual,
            rounds=rounds,
            target=3.0,
            count=FRAMES_IN_A_ROW,
        ),
    ]


def read_first_frame(bag: Path, config: InspectorConfig) -> tuple[Any, Any, Frame]:
    """The first image with its cloud, as messages and as a frame."""
    with BagReader(bag) as reader:
        topics = reader.find_sensor_topics()
        assembler = Assembler(config.sync, topics.image, topics.camera_info, topics.points or 'points')
        clouds, images = {}, {}
        for topic, message, _ in reader.sensor_messages(topics):
            if topic == topics.image:
                images[stamp_to_ns(message.header.stamp)] = message
                assembler.add_image(message)
            elif topic == topics.camera_info:
                assembler.add_camera_info(message)
            elif topic == topics.points:
                clouds[stamp_to_ns(message.header.stamp)] = message
                assembler.add_cloud(message)
            else:
                assembler.add_transforms(message, static=topic.endswith('tf_static'))
            for frame in assembler.take():
                if frame.cloud is not None and frame.T_camera_lidar is not None:
                    return images[frame.stamp_ns], clouds[frame.cloud_stamp_ns], frame
    raise SystemExit(f'{bag}: no frame with a cloud')


def make_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown, one row a pair."""
    lines = [
        '| what | against | ours, CPU | theirs, CPU | times as fast by CPU | by wall | target |',
        '|---|---|---|---|---|---|---|',
    ]
    for pair in comparisons:
        target = '' if pair.target is None else f'{pair.target:.2g}'
        lines.append(
            f'| {pair.what} | {pair.peer} | {1e3 * pair.ours_cpu_s:.2f} ms | {1e3 * pair.peer_cpu_s:.2f} ms '
            f'| {pair.cpu_ratio:.2g} | {pair.wall_ratio:.2g} | {target} |'
        )
    return '\n'.join(lines)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bag', type=Path, default=Path('out/speed'), help='simulated here when it is not there')
    parser.add_argument('--rounds', type=int, default=7)
    options = parser.parse_args()
    if not options.bag.exists():
        simulate_bag(options.bag, Scenario(seed=1), 10)
    print(make_table(compare_parts(options.rounds) + compare_recording(options.bag, options.rounds)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
