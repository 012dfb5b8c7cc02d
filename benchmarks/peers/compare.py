"""The plain script beside ours, on the same frames: walls of spherical caps, 4 to 22 mm wide, from half a metre.

    python benchmarks/peers/compare.py [--walls 4] [--masks true]

The script finds its holes in the points; ours takes the true masks, or with `--masks network` those of the network. As
"script, exact masks" the usual code (RANSAC plane around a mask, area times mean depth) is given the true ones.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator

import numpy as np
import open3d as o3d
from plain_script import find_holes
from usual import measure

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
from cmml_ros.simulation.scenario import CAMERA

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
# What a volume is off by to be called wrong.
WRONG = 0.2


class PlainScript:
    """Runs the script on every frame and keeps its relative errors by sensor."""

    def __init__(self) -> None:
        self.errors: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SENSOR_NAMES}
        self.given: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SENSOR_NAMES}
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
        self._measure_given(view, sensor, projected)

    def _measure_given(self, view: TestView, sensor: str, projected: ProjectedCloud) -> None:
        """What the usual code makes of the true masks."""
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(projected.points_camera))
        pixels = np.rint(projected.pixels).astype(np.int64)
        pixels[((pixels < 0) | (pixels >= (CAMERA.width, CAMERA.height))).any(axis=1)] = -1
        for mask, hole in zip(view.masks, view.holes, strict=True):
            for area_m2, depth_m, volume_m3 in measure([mask], cloud, pixels, CAMERA):
                self.given[sensor].append(
                    (
                        area_m2 / hole.area_m2 - 1.0,
                        depth_m / hole.depth_max_m - 1.0,
                        volume_m3 / hole.volume_m3 - 1.0,
                    )
                )


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
        given_errors = np.abs(np.array(script.given[name]).reshape(-1, 3))
        area, depth, volume = np.median(given_errors, axis=0) if len(given_errors) else [math.nan] * 3
        print(
            f'| {name} | script, exact masks | exact masks | {area:.1%} | {depth:.1%} | {volume:.1%} | none stated '
            f'| {len(given_errors)}, {np.sum(given_errors[:, 2] > WRONG)} of them wrong |'
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
