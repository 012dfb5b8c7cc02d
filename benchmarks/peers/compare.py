"""The plain script beside ours, on the same frames: walls of spherical caps, 4 to 22 mm wide, from half a metre.

    python benchmarks/peers/compare.py [--walls 4] [--masks true]

The script finds its holes in the points; ours takes the true masks, or with `--masks network` those of the network.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator

import numpy as np
from plain_script import find_holes

from cmml_ros.config import InspectorConfig
from cmml_ros.evaluation.measurement import (
    SENSORS,
    Grid,
    Sample,
    TestView,
    make_views,
    sample_measurements,
    total,
)
from cmml_ros.geometry.cloud import ProjectedCloud

GRID = Grid(
    (0.004, 0.006, 0.009, 0.013, 0.017, 0.022),
    (0.15, 0.25, 0.35, 0.5),
    (0.5,),
    (0.0,),
    1,
    kinds=('plane',),
    shape='cap',
)
SENSOR_NAMES = tuple(SENSORS)


class PlainScript:
    """Runs the script on every frame and keeps its relative errors by sensor."""

    def __init__(self) -> None:
        self.errors: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SENSOR_NAMES}
        self.found = dict.fromkeys(SENSOR_NAMES, 0)
        self.right = dict.fromkeys(SENSOR_NAMES, 0)
        self.true = dict.fromkeys(SENSOR_NAMES, 0)

    def watch(self, view: TestView, sensor: str, projected: ProjectedCloud) -> None:
        """Compare what it finds in one frame with the truth."""
        T_camera_scene = view.T_scene_camera.inverse()
        holes = [(T_camera_scene.apply(hole.centre[None])[0], hole) for hole in view.holes]
        taken: set[int] = set()
        blobs = find_holes(projected.points_camera)
        for blob in sorted(blobs, key=lambda item: -item.area_m2):
            gaps = [
                math.inf if i in taken else float(np.linalg.norm((blob.centre - centre)[:2]))
                for i, (centre, _) in enumerate(holes)
            ]
            nearest = int(np.argmin(gaps))
            if gaps[nearest] < max(0.5 * holes[nearest][1].equivalent_diameter_m, 0.003):
                taken.add(nearest)
                hole = holes[nearest][1]
                self.errors[sensor].append(
                    (
                        blob.area_m2 / hole.area_m2 - 1.0,
                        blob.depth_m / hole.depth_max_m - 1.0,
                        blob.volume_m3 / hole.volume_m3 - 1.0,
                    )
                )
        self.found[sensor] += len(blobs)
        self.right[sensor] += len(taken)
        self.true[sensor] += len(holes)


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--walls', type=int, default=4, help='how many (default: %(default)s)')
    parser.add_argument('--masks', choices=('true', 'network'), default='true')
    options = parser.parse_args()
    script = PlainScript()
    samples: list[Sample] = []

    def views() -> Iterator[TestView]:
        for seed in range(options.walls):
            yield from make_views(GRID, 1000 + seed)

    samples.extend(sample_measurements(views(), SENSOR_NAMES, InspectorConfig(), options.masks, watch=script.watch))
    print('| sensor | who | found | area error | depth error | volume error | volume in 95 % | volumes "measured" |')
    print('|---|---|---|---|---|---|---|---|')
    for name in SENSOR_NAMES:
        errors = np.abs(np.array(script.errors[name]).reshape(-1, 3))
        area, depth, volume = np.median(errors, axis=0) if len(errors) else [math.nan] * 3
        recall, precision = script.right[name] / script.true[name], script.right[name] / max(script.found[name], 1)
        print(
            f'| {name} | script | {recall:.0%} (precision {precision:.2f}) | {area:.1%} | {depth:.1%} | {volume:.1%} '
            f'| none stated | {script.found[name]} |'
        )
        ours = total([sample for sample in samples if sample.sensor == name])
        given = 'exact masks' if options.masks == 'true' else f'{ours.airholes / script.true[name]:.0%}'
        print(
            f'| {name} | ours | {given} | {ours.area.error:.1%} '
            f'| {ours.depth.error:.1%} | {ours.volume.error:.1%} | {ours.volume.covered:.0%} | {ours.volume.count} |'
        )
    return 0


if __name__ == '__main__':
    sys.exit(main())
