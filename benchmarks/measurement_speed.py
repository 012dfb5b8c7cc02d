"""How long it takes to measure 100 airholes in one frame of 1280x720 pixels and 300,000 points.

    python benchmarks/measurement_speed.py [--repeats 20]

Prints the median of the process time, so the load of the machine matters little; set OMP_NUM_THREADS=1 for one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from cmml_ros.config import InspectorConfig
from cmml_ros.evaluation.measurement import SENSORS, Grid, make_views
from cmml_ros.measurement.defect import Status
from cmml_ros.measurement.measure import measure
from cmml_ros.simulation.scenario import CAMERA

AIRHOLES = 100
GRID = Grid((0.003, 0.004, 0.005, 0.006, 0.008), (0.15, 0.25, 0.35, 0.5), (0.6,), (0.0,), 6, kinds=('plane',))


def main() -> int:
    """Print the time of one frame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=20)
    options = parser.parse_args()
    view = next(make_views(GRID, 0))
    config = InspectorConfig()
    masks = view.masks[:AIRHOLES]
    projected = view.project(SENSORS['depth_camera 0.1 mm'])
    times_s = []
    for _ in range(options.repeats):
        started = time.process_time()
        results = measure(masks, projected, CAMERA, config.surface, config.measurement)
        times_s.append(time.process_time() - started)
    measured = sum(result.volume_status is Status.MEASURED for result in results)
    print(
        f'{len(results)} airholes ({measured} MEASURED), {len(projected)} points: '
        f'{1e3 * statistics.median(times_s):.0f} ms of one core (fastest {1e3 * min(times_s):.0f} ms)'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
