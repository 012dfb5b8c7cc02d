"""The wall of map_wall.py, but rendered, and measured by the real pipeline: network, measurement, map.

    python benchmarks/rendered_wall.py [--seeds 1] [--out out/rendered_wall]

60 frames of 2 x 1 m with 70 % overlap, look "fast", simulated depth camera with its preset, odometry noise of 2 mm and
0.1 degrees a step. What the frames told is kept in `out`, so that a second call only fuses it again.

A second table says what the errors of MEASURED views are made of, by analysis of variance over all walls: what is new
in every view and what the views of an airhole share, as they are and as they are stated, and what fusing can gain at
best where no view is better than another: with as many views as there are, and with any number.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import zstandard
from map_wall import CAMERA, DISTANCE_M, MIN_DIAMETER_PX, PX_PER_M, Array, Survey, judge, pass_by
from numpy.typing import NDArray
from score_wall import match_airholes
from tqdm import tqdm

from cmml_ros.config import InspectorConfig, load_config
from cmml_ros.frame import Frame
from cmml_ros.geometry.transforms import SE3
from cmml_ros.inspector import Inspector
from cmml_ros.mapping.defect_map import DefectMap
from cmml_ros.mapping.record import FrameRecord
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.simulation.camera import render
from cmml_ros.simulation.light import draw_light
from cmml_ros.simulation.range_sensor import make_sensor
from cmml_ros.simulation.response import Response
from cmml_ros.simulation.scenario import Scenario
from cmml_ros.simulation.scene import Scene, make_scene

PRESET = Path(__file__).parents[1] / 'config' / 'sensors' / 'depth_camera_simulated.yaml'
SIZE_M = (2.0, 1.0)
AIRHOLES_PER_M2 = 150.0
STEP_M, STEP_DEG = 0.002, 0.1
PERIOD_NS = 1_000_000_000
LARGEST_AREA_RATIO = 1.4  # drawn larger it is drawn as one with a neighbour or a tie hole
WELL_DRAWN = 0.12  # error of the mean area of an airhole's views
NEIGHBOUR_M = 0.05  # further apart no two airholes touch


@dataclass(frozen=True)
class Truth:
    """The airholes of a scene in the frame of the map: x right, y up, z out of the wall."""

    centres: Array
    diameters_m: Array
    areas_m2: Array
    depths_m: Array
    volumes_m3: Array

    @classmethod
    def of(cls, scene: Scene) -> Truth:
        """The truth of `scene`."""
        holes = scene.holes
        columns = ('equivalent_diameter_m', 'area_m2', 'depth_max_m', 'volume_m3')
        centres = place_scene(scene).apply(np.array([hole.centre for hole in holes]))
        return cls(centres, *(np.array([getattr(hole, name) for hole in holes]) for name in columns))


def place_scene(scene: Scene) -> SE3:
    """T_map_scene: the map has its origin in the lower left corner of the wall."""
    corner = scene.wall.points(np.zeros((1, 2)))[0]
    return SE3(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), corner).inverse()


def inspect_wall(seed: int, noise_m: float | None, config: InspectorConfig) -> list[FrameRecord]:
    """What the pipeline tells about each frame of one pass; T_map_camera as odometry tells it."""
    scene = make_scene('plane', seed, width_m=SIZE_M[0], height_m=SIZE_M[1], airhole_density_per_m2=AIRHOLES_PER_M2)
    light = draw_light(np.random.default_rng(seed), DISTANCE_M)
    sensor, extrinsic = make_sensor('depth_camera', noise_m), Scenario().extrinsic
    inspector = Inspector(config)
    records = []
    poses = list(pass_by(*SIZE_M, np.random.default_rng(seed), STEP_M, STEP_DEG))
    for number, (T_true, T_told) in enumerate(tqdm(poses, unit='frame', disable=None)):
        rng = np.random.default_rng([seed, number])
        T_scene_camera = place_scene(scene).inverse() @ T_true
        frame = Frame(
            image=render(scene, CAMERA, T_scene_camera, light, Response(), rng).image,
            camera=CAMERA,
            stamp_ns=number * PERIOD_NS,
            frame_id='camera',
            cloud=sensor.scan(scene, T_scene_camera @ extrinsic, rng),
            cloud_stamp_ns=number * PERIOD_NS,
            T_camera_lidar=extrinsic,
            T_map_camera=T_told,
        )
        inspection = inspector.inspect(frame)
        records.append(
            FrameRecord.of(
                frame,
                inspection.defects,
                (),
                inspection.model_id,
                inspection.T_camera_lidar,
                inspection.calibration,
                inspection.timings_s,
            )
        )
    return records


def fuse(
    seed: int, records: list[FrameRecord], truth: Truth, config: InspectorConfig
) -> tuple[Survey, dict[int, list[Array]]]:
    """The map of a pass, and by airhole `list_errors` of its MEASURED views.

    Which airhole each view is of tells the true pose of its frame.
    """
    result = Survey(DefectMap(config.map, measurement=config.measurement))
    errors: dict[int, list[Array]] = {}
    poses = pass_by(*SIZE_M, np.random.default_rng(seed), STEP_M, STEP_DEG)
    for record, (T_true, T_told) in zip(records, poses, strict=True):
        result.drift_m = max(result.drift_m, float(np.linalg.norm(T_told.translation - T_true.translation)))
        ids = result.defect_map.add(record.defects, T_told, record.stamp_ns, 'camera', CAMERA)
        names = name_views(record.defects, T_true, truth)
        for (airhole, *others), defect_id, defect in zip(names, ids, record.defects, strict=True):
            result.seen.setdefault(defect_id, Counter())[airhole] += 1
            view = defect.measurement
            large = airhole >= 0 and truth.diameters_m[airhole] * PX_PER_M >= MIN_DIAMETER_PX
            if (
                large
                and not others
                and view.volume_status is Status.MEASURED
                and view.area_m2 <= LARGEST_AREA_RATIO * truth.areas_m2[airhole]
            ):
                errors.setdefault(airhole, []).append(list_errors(view, truth, airhole))
    result.single_errors = {airhole: [float(view[-1, 0]) for view in views] for airhole, views in errors.items()}
    return result, errors


def list_errors(view: Measurement, truth: Truth, airhole: int) -> Array:
    """Error, variance that is stated as new, and as shared, of area, depth and volume over the true ones: (3, 3)."""
    rows = (
        (truth.areas_m2, view.area_m2, view.area_std_m2, view.area_systematic_std_m2),
        (truth.depths_m, view.depth_max_m, view.depth_max_std_m, view.depth_max_systematic_std_m),
        (truth.volumes_m3, view.volume_m3, view.volume_std_m3, view.volume_systematic_std_m3),
    )
    value, std, systematic = np.array([[number / true[airhole] for number in found] for true, *found in rows]).T
    return np.column_stack([value - 1.0, std**2 - systematic**2, systematic**2])


def format_parts(views: list[Array]) -> str:
    """The second table. views: per airhole, (views, 3, 3) of `list_errors`."""
    lines = [
        '| | airholes | views | new in a view | stated | shared by views | stated | share of variance | stated '
        '| gain with these views | with any number |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    well_drawn = [each for each in views if abs(each[:, 0, 0].mean()) < WELL_DRAWN]
    for name, row, chosen in (
        ('area', 0, views),
        ('depth', 1, views),
        ('volume', 2, views),
        (f'volume, area right to {WELL_DRAWN:.0%}', 2, well_drawn),
    ):
        counts = np.array([len(each) for each in chosen])
        scatter = sum(float(((each[:, row, 0] - each[:, row, 0].mean()) ** 2).sum()) for each in chosen)
        new = scatter / (counts - 1).sum()
        left = new * float(np.mean(1.0 / counts))
        shared = max(float(np.mean([each[:, row, 0].mean() ** 2 for each in chosen])) - left, 1e-12)
        stated_new, stated_shared = np.concatenate(chosen)[:, row, 1:].mean(axis=0)
        lines.append(
            f'| {name} | {len(chosen)} | {counts.sum()} | {new**0.5:.1%} | {stated_new**0.5:.1%} | {shared**0.5:.1%} '
            f'| {stated_shared**0.5:.1%} | {shared / (new + shared):.2f} '
            f'| {stated_shared / (stated_new + stated_shared):.2f} | {((new + shared) / (left + shared)) ** 0.5:.2f} '
            f'| {((new + shared) / shared) ** 0.5:.2f} |'
        )
    return '\n'.join(lines)


def name_views(defects: tuple[Defect, ...], T_true: SE3, truth: Truth) -> list[list[int]]:
    """Rows in `truth` of the airholes that each defect shows: one, several that are drawn as one, or [-1] for none.

    Several are in the order of their numbers, so that the first one names them all in the same way in every frame.
    """
    positions = np.array([defect.measurement.position for defect in defects]).reshape(-1, 3)
    placed = np.flatnonzero(np.isfinite(positions).all(axis=1))
    normals = np.tile([0.0, 0.0, 1.0], (len(truth.centres), 1))
    names = [[-1] for _ in defects]
    for airhole, row in match_airholes(truth.centres, normals, truth.diameters_m, T_true.apply(positions[placed])):
        index = int(placed[row])
        rim = T_true.apply(defects[index].measurement.outline)[:, :2].astype(np.float32)
        near = np.flatnonzero(np.linalg.norm(truth.centres - truth.centres[airhole], axis=1) < NEIGHBOUR_M)
        names[index] = sorted({airhole, *(k for k in near.tolist() if _holds(rim, truth.centres[k]))})
    return names


def _holds(rim: NDArray[np.float32], point: Array) -> bool:
    return len(rim) >= 3 and cv2.pointPolygonTest(rim, point[:2].tolist(), False) >= 0


def load_or_inspect(folder: Path, seed: int, noise_m: float | None, config: InspectorConfig) -> list[FrameRecord]:
    """The records of one wall, from `folder` when they are there."""
    path = folder / (f'wall_{seed}.json.zst' if noise_m is None else f'wall_{seed}_{1e6 * noise_m:.0f}_um.json.zst')
    if path.exists():
        document = json.loads(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
        return [FrameRecord.from_document(one) for one in document]
    records = inspect_wall(seed, noise_m, config)
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps([record.to_document() for record in records]).encode()
    path.write_bytes(zstandard.ZstdCompressor(level=3).compress(data))
    return records


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--first-seed', type=int, default=1)
    parser.add_argument('--noise', type=float, metavar='M', help='white noise of the range (default: of the sensor)')
    parser.add_argument('--out', type=Path, default=Path('out/rendered_wall'))
    options = parser.parse_args()
    print(
        '| wall | drift | airholes | found | duplicates | merged | volume gain, RMS | per airhole | median '
        '| area, depth, volume in 95 % |\n|---|---|---|---|---|---|---|---|---|---|'
    )
    views: list[Array] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        config = load_config(InspectorConfig, PRESET)
        records = load_or_inspect(options.out, seed, options.noise, config)
        scene = make_scene('plane', seed, width_m=SIZE_M[0], height_m=SIZE_M[1], airhole_density_per_m2=AIRHOLES_PER_M2)
        truth = Truth.of(scene)
        result, errors = fuse(seed, records, truth, config)
        views += [np.array(each) for each in errors.values()]
        figures = judge(truth, result, LARGEST_AREA_RATIO)
        coverage = ', '.join(f'{figures.coverage[name]:.1%}' for name in ('area', 'depth', 'volume'))
        print(
            f'| {seed} | {1e3 * result.drift_m:.0f} mm | {figures.airholes} | {figures.found / figures.airholes:.1%} '
            f'| {figures.duplicates / figures.airholes:.1%} | {figures.merged / figures.airholes:.1%} '
            f'| {figures.volume_gain:.2f} | {figures.paired_gain:.2f} | {figures.median_gain:.2f} | {coverage} |',
            flush=True,
        )
    print(f'\n{format_parts(views)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
