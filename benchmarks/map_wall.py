"""A robot passes a wall and sees every airhole many times: how well is each counted once, and how well is it known?

    python benchmarks/map_wall.py                 # table over drift, and time of an update with 10,000 airholes

Detections are drawn from the truth with the errors of a depth camera; nothing is rendered.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cmml_ros.config import MapConfig
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.mapping.defect_map import DefectMap, MapEntry
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.measurement.opening import EllipsoidCap
from cmml_ros.measurement.pooling import CavityReadings

Array = NDArray[np.float64]

CAMERA = Camera(width=1100, height=800, fx=1000.0, fy=1000.0, cx=549.5, cy=399.5)
DISTANCE_M = 0.5
PX_PER_M = CAMERA.fx / DISTANCE_M
OVERLAP = 0.7
MIN_DIAMETER_PX = 8.0
# Errors of one view: what is new in every view, and what is the same in all views of an airhole.
BOUNDARY_PX = (0.15, 0.25)
DEPTH_SHARE = (0.10, 0.04)
RAY_M, ACROSS_M = 0.0003, 0.00005
DETECTED = 0.95
FALSE_ALARMS = 0.3  # per frame


@dataclass
class Wall:
    """Airholes on the plane z = 0 of the map, facing +z; caps with volume area * depth / 2."""

    centres: Array
    diameters_m: Array
    depths_m: Array
    boundary_errors: Array
    depth_errors: Array

    @classmethod
    def make(cls, width_m: float, height_m: float, count: int, generator: np.random.Generator) -> Wall:
        """`count` airholes that keep 2 mm of concrete between them."""
        centres: list[Array] = []
        diameters: list[float] = []
        while len(centres) < count:
            diameter = float(np.clip(generator.lognormal(math.log(0.006), 0.5), 0.003, 0.030))
            centre = generator.uniform([0.0, 0.0], [width_m, height_m])
            if centres:
                gaps = np.linalg.norm(np.array(centres) - centre, axis=1) - (np.array(diameters) + diameter) / 2
                if gaps.min() < 0.002:
                    continue
            centres.append(centre)
            diameters.append(diameter)
        sizes = np.array(diameters)
        depths = sizes * np.clip(generator.normal(0.35, 0.1, count), 0.12, None)
        return cls(
            np.column_stack([centres, np.zeros(count)]),
            sizes,
            depths,
            generator.standard_normal(count),
            generator.standard_normal(count),
        )

    @property
    def areas_m2(self) -> Array:
        """Of the rims."""
        return np.pi / 4 * self.diameters_m**2

    @property
    def volumes_m3(self) -> Array:
        """Of the caps."""
        return self.areas_m2 * self.depths_m / 2


@dataclass
class Survey:
    """What came of one pass.

    seen: per id of the map, how often it was which airhole; false alarms are -1. single_errors: per airhole, the
    relative errors of the volumes that single views measure.
    """

    defect_map: DefectMap
    seen: dict[int, Counter[int]] = field(default_factory=dict)
    single_errors: dict[int, list[float]] = field(default_factory=dict)
    drift_m: float = 0.0
    seconds: list[float] = field(default_factory=list)


def survey(
    wall: Wall,
    width_m: float,
    height_m: float,
    generator: np.random.Generator,
    step_m: float = 0.002,
    step_deg: float = 0.1,
    config: MapConfig | None = None,
) -> Survey:
    """Pass the wall in rows, back and forth, with odometry whose errors add up from step to step."""
    result = Survey(DefectMap(config or MapConfig()))
    for number, (T_true, T_told) in enumerate(pass_by(width_m, height_m, generator, step_m, step_deg)):
        result.drift_m = max(result.drift_m, float(np.linalg.norm(T_told.translation - T_true.translation)))
        truth, defects = see(wall, T_true, generator)
        started = time.thread_time()
        ids = result.defect_map.add(defects, T_told, number, 'camera', CAMERA)
        result.seconds.append(time.thread_time() - started)
        for airhole, defect_id, defect in zip(truth, ids, defects, strict=True):
            result.seen.setdefault(defect_id, Counter())[airhole] += 1
            view = defect.measurement
            if airhole >= 0 and view.volume_status is Status.MEASURED and wall.diameters_m[airhole] * PX_PER_M >= 8.0:
                error = view.volume_m3 / wall.volumes_m3[airhole] - 1.0
                result.single_errors.setdefault(airhole, []).append(error)
    return result


def pass_by(
    width_m: float, height_m: float, generator: np.random.Generator, step_m: float, step_deg: float
) -> Iterator[tuple[SE3, SE3]]:
    """T_map_camera of each frame, as it is and as odometry tells it; the wall is the plane z = 0, facing +z."""
    field_m = np.array([CAMERA.width, CAMERA.height]) / PX_PER_M
    step = (1.0 - OVERLAP) * field_m
    columns = math.ceil((width_m - field_m[0]) / step[0] - 1e-6) + 1
    rows = math.ceil((height_m - field_m[1]) / step[1] - 1e-6) + 1
    facing = np.diag([1.0, -1.0, -1.0])
    T_told = T_previous = None
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        column = column if row % 2 == 0 else columns - 1 - column
        place = field_m / 2 + step * (column, row) + generator.normal(0.0, 0.01, 2)
        tilt = SE3.from_rotation_vector(generator.normal(0.0, 0.03, 3), np.zeros(3)).rotation
        T_true = SE3(facing @ tilt, np.array([*place, DISTANCE_M + generator.normal(0.0, 0.01)]))
        if T_told is None or T_previous is None:
            T_told = T_true
        else:
            error = SE3.from_rotation_vector(
                np.radians(generator.normal(0.0, step_deg, 3)), generator.normal(0.0, step_m, 3)
            )
            T_told = T_told @ (T_previous.inverse() @ T_true) @ error
        T_previous = T_true
        yield T_true, T_told


def see(wall: Wall, T_true: SE3, generator: np.random.Generator) -> tuple[list[int], list[Defect]]:
    """The airholes of one frame, measured in its camera frame, and which ones they are."""
    in_camera = T_true.inverse()
    centres = in_camera.apply(wall.centres)
    pixels, _ = CAMERA.project(centres)
    radii_px = wall.diameters_m / 2 * CAMERA.fx / centres[:, 2]
    size = np.array([CAMERA.width, CAMERA.height])
    touching = ((pixels > -radii_px[:, None] + 3) & (pixels < size - 3 + radii_px[:, None])).all(axis=1)
    whole = ((pixels > radii_px[:, None]) & (pixels < size - radii_px[:, None])).all(axis=1)
    truth, defects = [], []
    for index in np.flatnonzero(touching & (generator.random(len(pixels)) < DETECTED)).tolist():
        truth.append(index)
        defects.append(measure_view(wall, index, pixels[index], bool(whole[index]), T_true, generator))
    for _ in range(generator.poisson(FALSE_ALARMS)):
        alarm = Wall(
            T_true.apply(np.array([*generator.uniform(-0.2, 0.2, 2), DISTANCE_M])) * (1, 1, 0) + np.zeros((1, 3)),
            *(np.array([value]) for value in (0.005, 0.001, 0.0, 0.0)),
        )
        pixel, inside = CAMERA.project(in_camera.apply(alarm.centres))
        if inside[0]:
            truth.append(-1)
            defects.append(measure_view(alarm, 0, pixel[0], True, T_true, generator))
    return truth, defects


def measure_view(
    wall: Wall, index: int, pixel: Array, whole: bool, T_true: SE3, generator: np.random.Generator
) -> Defect:
    """One airhole as the frame at `T_true` measures it; not whole: only the part inside the picture."""
    in_camera = T_true.inverse()
    diameter, depth = wall.diameters_m[index], wall.depths_m[index]
    angles = np.linspace(0.0, 2.0 * np.pi, 17)[:-1]
    rim = np.column_stack([np.cos(angles), np.sin(angles), np.zeros(16)]) * diameter / 2
    outline = in_camera.apply(wall.centres[index] + rim)
    position = in_camera.apply(wall.centres[index])
    status = Status.MEASURED
    if not whole:
        status = Status.CUT_BY_BORDER
        rim_px, _ = CAMERA.project(outline)
        outline = outline[CAMERA.contains(rim_px)]
        if len(outline) < 3:
            outline = in_camera.apply(wall.centres[index] + rim)
        position = outline.mean(axis=0)
    ray = position / np.linalg.norm(position)
    shift = generator.normal(0.0, RAY_M) * ray + generator.normal(0.0, ACROSS_M, 3)
    area, volume = np.pi / 4 * diameter**2, np.pi / 4 * diameter**2 * depth / 2
    pixel_m = 1.0 / PX_PER_M
    white_px, systematic_px = BOUNDARY_PX
    rims = np.pi * diameter * pixel_m
    area_error = rims * (white_px * generator.standard_normal() + systematic_px * wall.boundary_errors[index])
    white, systematic = DEPTH_SHARE
    depth_error = depth * (white * generator.standard_normal() + systematic * wall.depth_errors[index])
    measured_area = max(area + area_error, 0.05 * area)
    measurement = Measurement(
        area_status=status,
        volume_status=status,
        position=position + shift,
        normal=in_camera.rotation @ np.array([0.0, 0.0, 1.0]),
        outline=outline + shift,
        position_std_m=RAY_M,
        point_count=50,
    )
    if whole:
        measurement = Measurement(
            **{
                **vars(measurement),
                'area_m2': measured_area,
                'area_std_m2': rims * math.hypot(*BOUNDARY_PX),
                'area_systematic_std_m2': rims * systematic_px,
                'equivalent_diameter_m': 2.0 * math.sqrt(measured_area / math.pi),
                'major_axis_m': diameter,
                'minor_axis_m': diameter,
                'depth_max_m': depth + depth_error,
                'depth_max_std_m': depth * math.hypot(*DEPTH_SHARE),
                'depth_max_systematic_std_m': depth * systematic,
                'volume_m3': volume * (1.0 + depth_error / depth),
                'volume_std_m3': volume * math.hypot(*DEPTH_SHARE),
                'volume_systematic_std_m3': volume * systematic,
            }
        )
    left, top = np.round(pixel).astype(int).tolist()
    return Defect(0, 0.9, (left, top, 4, 4), np.zeros((0, 2)), measurement)


@dataclass
class Figures:
    """How good a map is, for airholes of MIN_DIAMETER_PX and more that were seen whole.

    merged: entries with views of more than one of these. volume_gain, median_gain: RMS and median error of single views
    over that of fused values. paired_gain: RMS again, each airhole counting once on both sides, however often it was
    measured. coverage: share of the 95 % intervals of fused areas, depths and volumes that hold the truth.
    """

    airholes: int
    found: int
    duplicates: int
    merged: int
    volume_gain: float
    median_gain: float
    paired_gain: float
    coverage: dict[str, float]
    lowest_confidence: float
    false_confidence: float


def judge(wall: Wall, result: Survey, largest_area_ratio: float = math.inf) -> Figures:
    """Figures of a survey; values of airholes drawn larger than by `largest_area_ratio` are those of something else."""
    entries: dict[int, MapEntry] = {entry.defect_id: entry for entry in result.defect_map.entries}
    large = np.flatnonzero(wall.diameters_m * PX_PER_M >= MIN_DIAMETER_PX).tolist()
    owners: dict[int, list[int]] = {}
    merged = 0
    alarms = []
    for defect_id, entry in entries.items():
        airholes = result.seen[defect_id]
        ((main, _),) = airholes.most_common(1)
        merged += len(airholes.keys() & set(large)) > 1
        if main >= 0:
            owners.setdefault(main, []).append(defect_id)
        else:
            alarms.append(entry.confidence)
    found = [index for index in large if index in owners]
    errors: dict[int, float] = {}
    hits: dict[str, list[bool]] = {'area': [], 'depth': [], 'volume': []}
    confidences = []
    for index in found:
        entry = max((entries[defect_id] for defect_id in owners[index]), key=lambda one: one.observations)
        fused = entry.measurement
        confidences.append(entry.confidence)
        if fused.volume_status is not Status.MEASURED:
            continue
        volume, area = wall.volumes_m3[index], wall.areas_m2[index]
        if fused.area_m2 > largest_area_ratio * area:
            continue
        errors[index] = fused.volume_m3 / volume - 1.0
        hits['area'].append(abs(fused.area_m2 - area) <= 1.96 * fused.area_std_m2)
        hits['depth'].append(abs(fused.depth_max_m - wall.depths_m[index]) <= 1.96 * fused.depth_max_std_m)
        hits['volume'].append(abs(fused.volume_m3 - volume) <= 1.96 * fused.volume_std_m3)
    singles = np.concatenate(list(result.single_errors.values()))
    fused_errors = np.array(list(errors.values()))
    both = [index for index in errors if index in result.single_errors]
    paired = [(np.mean(np.square(result.single_errors[index])), errors[index] ** 2) for index in both]
    return Figures(
        airholes=len(large),
        found=len(found),
        duplicates=sum(len(owners[index]) - 1 for index in found),
        merged=merged,
        median_gain=float(np.median(np.abs(singles)) / np.median(np.abs(fused_errors))),
        volume_gain=float(np.sqrt(np.mean(np.square(singles)) / np.mean(np.square(fused_errors)))),
        paired_gain=float(np.sqrt(np.divide(*np.sum(paired, axis=0)))),
        coverage={name: float(np.mean(values)) for name, values in hits.items()},
        lowest_confidence=float(np.quantile(confidences, 0.01)),
        false_confidence=float(np.median(alarms)) if alarms else math.nan,
    )


def read_cap(
    diameter_m: float, depth_m: float, count: int, pose: SE3, generator: np.random.Generator
) -> CavityReadings:
    """What `count` readings of a depth camera say about the cap of an airhole, measured in the frame of the camera."""
    radii, angles = diameter_m / 2 * np.sqrt(generator.random(count)), generator.uniform(0.0, 2.0 * np.pi, count)
    entries = np.column_stack([radii * np.cos(angles), radii * np.sin(angles)])
    drifts = np.tile(generator.normal(0.0, 0.1, 2), (count, 1))
    depths = EllipsoidCap(diameter_m / 2, depth_m).trace(entries, drifts)[0] + generator.normal(0.0, RAY_M, count)
    axes = pose.inverse().rotation[:, :2].T
    readings = CavityReadings.of_view(axes, entries, drifts, depths, RAY_M, np.pi / 4 * diameter_m**2)
    assert readings is not None
    return readings


def time_update(known: int, views: int, readings: int = 0, repetitions: int = 10) -> tuple[float, float]:
    """Median CPU seconds of one update with `views` airholes of a map that holds `known`, and of telling it after that.

    readings: that fell into each airhole in each view, to be pooled.
    """
    side = math.ceil(math.sqrt(known))
    pitch = 0.02
    places = np.array([[pitch * (i % side), pitch * (i // side), 0.0] for i in range(known)])
    sizes = np.full(known, 0.008)
    wall = Wall(places, sizes, sizes * 0.3, np.zeros(known), np.zeros(known))
    generator = np.random.default_rng(0)
    defect_map = DefectMap(MapConfig())
    facing = np.diag([1.0, -1.0, -1.0])
    pixel = np.array([CAMERA.cx, CAMERA.cy])

    def measure_all(indices: Sequence[int], pose: SE3) -> list[Defect]:
        defects = [measure_view(wall, index, pixel, True, pose, generator) for index in indices]
        if not readings:
            return defects
        filled = [read_cap(sizes[index], wall.depths_m[index], readings, pose, generator) for index in indices]
        return [
            dataclasses.replace(defect, measurement=dataclasses.replace(defect.measurement, readings=each))
            for defect, each in zip(defects, filled, strict=True)
        ]

    far = SE3(facing, np.array([0.0, 0.0, DISTANCE_M]))
    defect_map.add(measure_all(range(known), far), far, 0, 'camera')
    defect_map.snapshot()
    frame_side = math.ceil(math.sqrt(views))
    updating, telling = [], []
    for repetition in range(repetitions):
        first = repetition * 3 + side // 3 * (side + 1)
        indices = [first + i % frame_side + side * (i // frame_side) for i in range(views)]
        centre = places[indices].mean(axis=0)
        pose = SE3(facing, np.array([centre[0], centre[1], DISTANCE_M]))
        defects = measure_all(indices, pose)
        started = time.thread_time()
        ids = defect_map.add(defects, pose, repetition, 'camera', CAMERA)
        updated = time.thread_time()
        defect_map.snapshot()
        updating.append(updated - started)
        telling.append(time.thread_time() - updated)
        assert ids == [index + 1 for index in indices]
    return float(np.median(updating)), float(np.median(telling))


def time_message(known: int, changed: int) -> tuple[float, float]:
    """CPU seconds of a message of `known` airholes on ~/map, 60 corners each, and of the next, with `changed` ones."""
    import rclpy  # the rest runs without ROS
    from rclpy.node import Node

    from cmml_ros.nodes.publishers import InspectionPublishers

    angles = np.linspace(0.0, 2.0 * np.pi, 60, endpoint=False)
    outline = 0.004 * np.column_stack([np.cos(angles), np.sin(angles), np.zeros(60)])
    measurement = Measurement(Status.MEASURED, Status.MEASURED, np.zeros(3), np.array([0.0, 0.0, 1.0]), outline)
    entries = [MapEntry(number + 1, 0, 'map', measurement, 0.9, 1, 0, 0) for number in range(known)]
    rclpy.init()
    node = Node('map_wall')
    publishers = InspectionPublishers(node, 'map')
    times = []
    for _ in range(2):
        started = time.thread_time()
        publishers.publish_map(entries, 0, '')
        times.append(time.thread_time() - started)
        entries[:changed] = [dataclasses.replace(entry, observations=2) for entry in entries[:changed]]
    publishers.destroy()
    node.destroy_node()
    rclpy.shutdown()
    first, again = times
    return first, again


def main() -> int:
    """Print both tables, and the times of a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    options = parser.parse_args()
    print('| step noise | drift | airholes | found | duplicates | merged | volume gain | area, depth, volume in 95 % |')
    print('|---|---|---|---|---|---|---|---|')
    for factor in (0.0, 1.0, 2.0, 3.0, 4.0):
        figures, drifts = [], []
        for seed in range(options.seeds):
            generator = np.random.default_rng(seed)
            wall = Wall.make(2.0, 1.0, 400, generator)
            result = survey(wall, 2.0, 1.0, generator, 0.002 * factor, 0.1 * factor)
            figures.append(judge(wall, result))
            drifts.append(result.drift_m)
        airholes = sum(one.airholes for one in figures)
        coverage = ', '.join(
            f'{np.mean([one.coverage[name] for one in figures]):.1%}' for name in ('area', 'depth', 'volume')
        )
        print(
            f'| {2 * factor:.0f} mm, {0.1 * factor:.1f} deg | {1e3 * np.mean(drifts):.0f} mm | {airholes} '
            f'| {sum(one.found for one in figures) / airholes:.1%} '
            f'| {sum(one.duplicates for one in figures) / airholes:.1%} '
            f'| {sum(one.merged for one in figures) / airholes:.1%} '
            f'| {np.mean([one.volume_gain for one in figures]):.2f} | {coverage} |'
        )
    print('\n| airholes known | views | readings of each | CPU time of an update | of inferring what it changed |')
    print('|---|---|---|---|---|')
    for known, views, readings in ((1_000, 100, 0), (10_000, 100, 0), (10_000, 100, 20), (100_000, 100, 0)):
        updating, telling = time_update(known, views, readings)
        print(f'| {known} | {views} | {readings} | {1e3 * updating:.1f} ms | {1e3 * telling:.1f} ms |')
    first, again = time_message(10_000, 300)
    print(f'\nA message of 10,000 airholes: {first:.2f} s, and {again:.2f} s when 300 of them have changed since.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
