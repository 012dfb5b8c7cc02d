"""What 8 bits cost and save: IoU on simulated walls that training never saw, and the time of the network.

python benchmarks/compare_precision.py [--frames 6]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from cmml_ros.config import DetectionConfig
from cmml_ros.evaluation.network import UNSEEN_SEED, make_frames
from cmml_ros.geometry.cloud import project_cloud
from cmml_ros.model.runtime import Segmenter


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--frames', type=int, default=6)
    options = parser.parse_args()
    views = make_frames('depth_camera', options.frames, UNSEEN_SEED, 'fast')
    print('| precision | IoU, depth camera | IoU, picture alone | network stage, CPU, 1 thread |\n|---|---|---|---|')
    for precision in ('float32', 'int8'):
        segmenter = Segmenter(DetectionConfig(device='cpu', precision=precision, threads=1))
        segmenter.probabilities(views[0].image, None)
        times_s: list[float] = []
        shares = []
        for ranged in (True, False):
            both = either = 0
            for view in views:
                projected = project_cloud(view.cloud, view.camera, view.T_camera_lidar) if ranged else None
                started_s = time.process_time()
                mask = segmenter.probabilities(view.image, projected)[0] >= 0.5
                times_s += [time.process_time() - started_s] if ranged else []
                truth = view.hole_ids > 0
                both += int(np.count_nonzero(mask & truth))
                either += int(np.count_nonzero(mask | truth))
            shares.append(both / either)
        print(f'| {precision} | {shares[0]:.4f} | {shares[1]:.4f} | {1e3 * statistics.median(times_s):.0f} ms |')


if __name__ == '__main__':
    main()
