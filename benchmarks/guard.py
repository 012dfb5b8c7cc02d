"""Whether the parts of a frame still cost what they did, as multiples of a fixed loop timed in the same run.

    python benchmarks/guard.py [--write]

Fails when a part takes over 1.3 times its share in benchmarks/guard.json, which --write makes anew: after a change that
is meant to cost or to save time, and when the machine that runs the check becomes another.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from speed import CAMERA, make_messages, make_wall, pair_ours

from cmml_ros.config import InspectorConfig
from cmml_ros.geometry.cloud import Cloud, project_cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.measure import measure
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.engine import OpenVinoEngine
from cmml_ros.model.range_features import range_features
from cmml_ros.model.torch_engine import fuse_normalisation
from cmml_ros.stream.conversions import cloud_from_message, image_to_bgr

BASELINE = Path(__file__).with_suffix('.json')
ALLOWED = 1.3
ROUNDS = 15


def make_reference() -> Callable[[], object]:
    """About what a frame is made of: passes over arrays, small matrices, Python."""
    rng = np.random.default_rng(0)
    large, small = rng.random(200_000), rng.random((20, 20))

    def run() -> float:
        total = float(np.sqrt(large * large + 1.0).sum()) + float(np.sort(large[:50_000])[0])
        for _ in range(100):
            total += float(np.linalg.solve(small + np.eye(20), small).trace())
        return total + sum(value * 0.5 for value in range(20_000))

    return run


def make_parts() -> dict[str, Callable[[], object]]:
    """The parts that are watched, ready to run."""
    projected, masks = make_wall(50_000, 20)
    image_msg, cloud_msg = make_messages(projected.points_camera)
    T_camera_lidar = SE3.from_quaternion([0.01, -0.02, 0.01, 1.0], [0.05, 0.0, 0.0])
    cloud = Cloud(T_camera_lidar.inverse().apply(projected.points_camera))
    config = InspectorConfig()
    network, _ = load_network(find_weights('small'))
    engine = OpenVinoEngine(lambda: fuse_normalisation(network), 1, precision='int8')
    image = image_to_bgr(image_msg, 'image')[:240, :320]
    maps = np.zeros((3, 120, 160), np.float32)
    pixels, depths_m = projected.pixels, projected.points_camera[:, 2]
    return {
        'image': lambda: [image_to_bgr(image_msg, 'image') for _ in range(20)],
        'cloud': lambda: [cloud_from_message(cloud_msg, 'points') for _ in range(10)],
        'pairing': pair_ours,
        'projection': lambda: project_cloud(cloud, CAMERA, T_camera_lidar),
        'range features': lambda: range_features(pixels, depths_m, CAMERA.height, CAMERA.width),
        'network': lambda: engine(image, maps),
        'measurement': lambda: measure(masks, projected, CAMERA, config.surface, config.measurement),
    }


def measure_shares() -> dict[str, float]:
    """CPU time of each part over that of the reference: the median of ROUNDS ratios, each of two neighbours in time."""
    reference, parts = make_reference(), make_parts()
    ratios: dict[str, list[float]] = {name: [] for name in parts}
    for call in parts.values():
        call()
    for _ in range(ROUNDS):
        for name, call in parts.items():
            before_s, part_s, after_s = (_time(step) for step in (reference, call, reference))
            ratios[name].append(part_s / min(before_s, after_s))
    return {name: float(np.median(values)) for name, values in ratios.items()}


def _time(call: Callable[[], object]) -> float:
    started_s = time.process_time()
    call()
    return time.process_time() - started_s


def main() -> int:
    """Exit code: 0 when nothing got slower, 1 when something did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help='make these shares the baseline')
    options = parser.parse_args()
    shares = measure_shares()
    if options.write:
        BASELINE.write_text(json.dumps({name: round(share, 4) for name, share in shares.items()}, indent=2) + '\n')
        print(f'{BASELINE} written')
        return 0
    baseline = json.loads(BASELINE.read_text(encoding='utf-8'))
    slower = [name for name, share in shares.items() if share > ALLOWED * baseline[name]]
    for name, share in shares.items():
        print(f'{name:15} {share / baseline[name]:5.2f} times its share{"  SLOWER" if name in slower else ""}')
    return 1 if slower else 0


if __name__ == '__main__':
    sys.exit(main())
