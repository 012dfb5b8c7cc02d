"""How wrong measurements are, and whether they know it: simulated airholes of known size, over a grid of conditions.

Every airhole stands in one cell of sensor x distance x incidence x diameter x depth/diameter. With true masks the
measurement is alone to blame; with the network's masks the whole pipeline is.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from cmml_ros.config import InspectorConfig, MeasurementConfig, flatten_config
from cmml_ros.evaluation.rim_offset import NORMAL_95, RimOffset, format_rim_offsets
from cmml_ros.geometry.cloud import ProjectedCloud, project_cloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.measurement.measure import measure
from cmml_ros.simulation.camera import render, see
from cmml_ros.simulation.cavity import Cavity, Shape, make_airhole
from cmml_ros.simulation.light import draw_light
from cmml_ros.simulation.range_sensor import DepthCamera, LineProfiler, RangeSensor, TofLidar, describe_sensor
from cmml_ros.simulation.response import Response
from cmml_ros.simulation.scenario import CAMERA
from cmml_ros.simulation.scene import AirholeTruth, Scene, assemble_scene, draw_shape
from cmml_ros.simulation.wall import Kind, Wall
from cmml_ros.version import read_version

Array = NDArray[np.float64]
MaskSource = Literal['true', 'network']

# Areas and depths of smaller blobs are reported, but no target is set for them.
MIN_DIAMETER_PX = 8.0

_MARGIN_PX = 10.0  # between rims and the border of the picture
_INCIDENCE_PLAY_DEG = 10.0
_TRIES = 60
_SPOTS = 6


def _depth_camera(noise_m: float) -> DepthCamera:
    """300,000 points a frame; its noise grows with the square of the range and is `noise_m` at half a metre."""
    return DepthCamera(width=730, height=411, range_noise_m=0.0, range_noise_growth=noise_m / 0.5**2)


SENSORS: dict[str, RangeSensor] = {
    'depth_camera 0.1 mm': _depth_camera(0.0001),
    'depth_camera 0.5 mm': _depth_camera(0.0005),
    'depth_camera 1.0 mm': _depth_camera(0.001),
    'line_profiler': LineProfiler(),
    'tof_lidar': TofLidar(),
}


@dataclass(frozen=True)
class Grid:
    """Conditions to cross. kinds: walls other than planes are seen from `curved_distance_m`, head-on and at 30 degrees.

    shape: 'drawn' for what occurs with the wanted depth / diameter, 'cap' for ideal caps of spheres.
    """

    diameters_m: tuple[float, ...]
    depth_ratios: tuple[float, ...]
    distances_m: tuple[float, ...]
    incidences_deg: tuple[float, ...]
    repeats: int
    sensors: tuple[str, ...] = tuple(SENSORS)
    kinds: tuple[Kind, ...] = ('plane', 'column', 'tunnel')
    curved_distance_m: float = 0.5
    shape: Literal['drawn', 'cap'] = 'drawn'

    def conditions(self) -> Iterator[tuple[Kind, float, float]]:
        """(kind of wall, distance, incidence) of every set of frames."""
        for kind in self.kinds:
            curved = kind != 'plane'
            for distance_m in (self.curved_distance_m,) if curved else self.distances_m:
                for incidence_deg in (0.0, 30.0) if curved else self.incidences_deg:
                    yield kind, distance_m, incidence_deg


FAST = Grid((0.003, 0.006, 0.012, 0.025), (0.1, 0.3, 0.7), (0.3, 0.6), (0.0, 45.0), 1, kinds=('plane', 'column'))
FULL = Grid(
    (0.002, 0.004, 0.008, 0.012, 0.018, 0.030), (0.1, 0.2, 0.4, 0.6, 0.8), (0.25, 0.5, 0.8), (0.0, 30.0, 60.0), 1
)


@dataclass(frozen=True, eq=False)
class TestView:
    """A place to look from at a wall, with true masks.

    holes: the airholes, whole in the picture, with `masks` of the same order. spot_masks: discs of sound wall.
    """

    __test__ = False  # pytest: no test class

    kind: Kind
    distance_m: float
    incidence_deg: float
    scene: Scene
    T_scene_camera: SE3
    sizes: tuple[tuple[float, float], ...]
    masks: tuple[InstanceMask, ...]
    spot_masks: tuple[InstanceMask, ...]
    seed: int

    @property
    def holes(self) -> tuple[AirholeTruth, ...]:
        """The airholes, in the order of `masks`."""
        return self.scene.holes

    def project(self, sensor: RangeSensor) -> ProjectedCloud:
        """What the camera sees of one scan of `sensor`, mounted beside it and turned to the same place."""
        rng = np.random.default_rng([self.seed, 1])
        turned = SE3.from_rotation_vector((0.0, -math.atan2(0.05, self.distance_m), 0.0), (0.05, 0.0, 0.0))
        if isinstance(sensor, TofLidar):
            forward = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
            turned = turned @ SE3(forward, np.zeros(3))
        else:
            # Each view has a unit of its own: the error of its calibration is as random as its noise.
            sensor = dataclasses.replace(sensor, serial=self.seed)
        cloud = sensor.scan(self.scene, self.T_scene_camera @ turned, rng)
        return project_cloud(cloud, CAMERA, turned)


def make_views(grid: Grid, seed: int, *, distractor_density: float = 0.0) -> Iterator[TestView]:
    """Views that show every cell of the grid `repeats` times."""
    number = 0
    for kind, distance_m, incidence_deg in grid.conditions():
        rng = np.random.default_rng([seed, number])
        waiting = [(d, r) for _ in range(grid.repeats) for d in grid.diameters_m for r in grid.depth_ratios]
        waiting = [waiting[index] for index in rng.permutation(len(waiting))]
        while waiting:
            view, left = _make_view(grid.shape, kind, distance_m, incidence_deg, waiting, rng, distractor_density)
            number += 1
            if len(left) == len(waiting):
                break  # what finds no room in an empty view never will
            waiting = left
            yield view


def _make_view(
    wanted: Literal['drawn', 'cap'],
    kind: Kind,
    distance_m: float,
    incidence_deg: float,
    sizes: Sequence[tuple[float, float]],
    rng: np.random.Generator,
    distractor_density: float,
) -> tuple[TestView, list[tuple[float, float]]]:
    """A view with as many airholes as find room, and the sizes of the others."""
    radius_m = {'plane': math.inf, 'column': 0.3, 'tunnel': 2.5}[kind]
    size_m = min(3.0 * distance_m + 0.1, 0.8 * math.pi * radius_m)
    wall = Wall(kind, size_m, size_m, radius_m)
    T_scene_camera = _look_at(wall, distance_m, math.radians(incidence_deg), rng)
    placed: list[tuple[Shape, Cavity]] = []
    done: list[tuple[float, float]] = []
    left: list[tuple[float, float]] = []
    for diameter_m, depth_ratio in sorted(sizes, reverse=True):
        shape: Shape = 'cap' if wanted == 'cap' else draw_shape(depth_ratio, rng)
        cavity = make_airhole(shape, diameter_m, depth_ratio, None if wanted == 'cap' else rng)
        moved = _find_room(cavity, wall, T_scene_camera, incidence_deg, [other for _, other in placed], rng)
        if moved is None:
            left.append((diameter_m, depth_ratio))
        else:
            placed.append((shape, moved))
            done.append((diameter_m, depth_ratio))
    count = len(placed)
    for _ in range(_SPOTS):
        spot = make_airhole('cap', float(rng.choice([d for d, _ in sizes])), 0.1, rng)
        moved = _find_room(spot, wall, T_scene_camera, incidence_deg, [other for _, other in placed], rng)
        if moved is not None:
            placed.append(('cap', moved))
    marked = assemble_scene(
        wall, [s for s, _ in placed], [c for _, c in placed], rng, distractor_density=distractor_density
    )
    coverage = see(marked, CAMERA, T_scene_camera, rng).coverage
    masks = [_cut_mask(coverage, hole, T_scene_camera) for hole in marked.holes]
    # Spots are only seen, not scanned: they are in no scene.
    scene = dataclasses.replace(marked, holes=marked.holes[:count], cavities=marked.cavities[:count])
    view = TestView(
        kind,
        distance_m,
        incidence_deg,
        scene,
        T_scene_camera,
        tuple(done),
        tuple(masks[:count]),
        tuple(masks[count:]),
        int(rng.integers(2**31)),
    )
    return view, left


def _look_at(wall: Wall, distance_m: float, incidence_rad: float, rng: np.random.Generator) -> SE3:
    """T_scene_camera of a camera that looks at the middle of the wall, tilted and turned any way."""
    middle = np.array([[0.5 * wall.width_m, 0.5 * wall.height_m]])
    target, normal = wall.points(middle)[0], wall.normals(middle)[0]
    turn = rng.uniform(0.0, 2.0 * math.pi)
    tangent = math.cos(turn) * np.array([1.0, 0.0, 0.0]) + math.sin(turn) * np.array([0.0, 0.0, 1.0])
    out = math.cos(incidence_rad) * normal + math.sin(incidence_rad) * tangent
    right = np.cross(out, rng.standard_normal(3))
    right /= np.linalg.norm(right)
    return SE3(np.column_stack([right, np.cross(-out, right), -out]), target + distance_m * out)


def _find_room(
    cavity: Cavity,
    wall: Wall,
    T_scene_camera: SE3,
    incidence_deg: float,
    others: Sequence[Cavity],
    rng: np.random.Generator,
) -> Cavity | None:
    """The cavity at a free place that the camera sees whole, about as obliquely as wanted; None when none is found."""
    T_camera_scene = T_scene_camera.inverse()
    for _ in range(_TRIES):
        pixel = rng.uniform([0.0, 0.0], [CAMERA.width, CAMERA.height])
        ray = T_scene_camera.rotation @ CAMERA.rays(pixel[None])[0]
        ray /= np.linalg.norm(ray)
        reach = wall.intersect(T_scene_camera.translation[None], ray[None])
        if not np.isfinite(reach[0]):
            continue
        middle = wall.develop((T_scene_camera.translation + reach[0] * ray)[None])
        incidence = math.degrees(math.acos(min(abs(float(wall.normals(middle)[0] @ ray)), 1.0)))
        if abs(incidence - incidence_deg) > _INCIDENCE_PLAY_DEG + (20.0 if math.isfinite(wall.radius_m) else 0.0):
            continue
        moved = cavity.moved(middle[0])
        gaps = [
            np.linalg.norm(moved.middle - other.middle) - 1.3 * (moved.reach_m + other.reach_m) - 0.002
            for other in others
        ]
        if gaps and min(gaps) < 0.0:
            continue
        pixels, _ = CAMERA.project(T_camera_scene.apply(wall.points(moved.rim)))
        border = np.array([CAMERA.width, CAMERA.height]) - 1.0 - _MARGIN_PX
        if (pixels > _MARGIN_PX).all() and (pixels < border).all():
            return moved
    return None


def _cut_mask(coverage: NDArray[np.float32], hole: AirholeTruth, T_scene_camera: SE3) -> InstanceMask:
    """The true mask of one airhole, from the coverage of all."""
    pixels, _ = CAMERA.project(T_scene_camera.inverse().apply(hole.rim))
    left, top = np.floor(pixels.min(axis=0)).astype(int) - 2
    right, bottom = np.ceil(pixels.max(axis=0)).astype(int) + 3
    part = coverage[top:bottom, left:right]
    blobs, count = ndimage.label(part > 0.0, structure=np.ones((3, 3)))
    if count > 1:
        # A neighbour may reach into the box.
        column, row = np.rint(pixels.mean(axis=0)).astype(int) - (left, top)
        own = blobs[row, column] or 1 + int(np.argmax(ndimage.sum_labels(part, blobs, np.arange(1, count + 1))))
        part = np.where(blobs == own, part, 0.0)
    return InstanceMask(part.astype(np.float32), int(left), int(top), 1.0)


@dataclass(frozen=True, eq=False)
class Sample:
    """One airhole and what was measured; truth is None for sound wall, rim for it and for exact masks."""

    sensor: str
    kind: Kind
    distance_m: float
    incidence_deg: float
    diameter_m: float
    depth_ratio: float
    diameter_px: float
    truth: AirholeTruth | None
    measurement: Measurement
    rim: RimOffset | None = None


def sample_measurements(
    views: Iterator[TestView],
    sensors: Sequence[str],
    config: InspectorConfig,
    masks: MaskSource,
    *,
    watch: Callable[[TestView, str, ProjectedCloud], None] | None = None,
) -> Iterator[Sample]:
    """What is measured of every airhole and spot, by every sensor. watch: sees every frame that is measured."""
    segment = _load_segmenter(config) if masks == 'network' else None
    for view in views:
        image = None if segment is None else _take_picture(view)
        for name in sensors:
            projected = view.project(SENSORS[name])
            if watch is not None:
                watch(view, name, projected)
            if segment is None or image is None:
                found: list[InstanceMask | None] = list(view.masks)
                sound = list(view.spot_masks)
            else:
                found, sound = _match(view.masks, segment(image, projected))
            given = [mask for mask in found if mask is not None]
            settings = _as_preset(SENSORS[name], config.measurement)
            measured = iter(measure([*given, *sound], projected, CAMERA, config.surface, settings))
            for mask, truth, (diameter_m, depth_ratio), true_mask in zip(
                found, view.holes, view.sizes, view.masks, strict=True
            ):
                if mask is not None:
                    sample = _make_sample(view, name, diameter_m, depth_ratio, true_mask, truth, next(measured))
                    rim = RimOffset.between(true_mask, mask) if masks == 'network' else None
                    yield dataclasses.replace(sample, rim=rim)
            for mask, measurement in zip(sound, measured, strict=True):
                yield _make_sample(view, name, math.nan, math.nan, mask, None, measurement)


def _as_preset(sensor: RangeSensor, settings: MeasurementConfig) -> MeasurementConfig:
    """`settings` with what a preset for this sensor would hold; its noise stays to be estimated."""
    if isinstance(sensor, TofLidar):
        return settings
    footprint_ratio = 0.0 if isinstance(sensor, LineProfiler) else settings.footprint_ratio
    return dataclasses.replace(settings, distance_std_m=sensor.bias_m, footprint_ratio=footprint_ratio)


def _make_sample(
    view: TestView,
    sensor: str,
    diameter_m: float,
    depth_ratio: float,
    mask: InstanceMask,
    truth: AirholeTruth | None,
    measurement: Measurement,
) -> Sample:
    return Sample(
        sensor,
        view.kind,
        view.distance_m,
        view.incidence_deg,
        diameter_m,
        depth_ratio,
        mask.equivalent_diameter_px,
        truth,
        measurement,
    )


def _load_segmenter(
    config: InspectorConfig,
) -> Callable[[NDArray[np.uint8], ProjectedCloud], list[InstanceMask]]:
    from cmml_ros.model.runtime import Segmenter

    return Segmenter(config.detection).segment


def _take_picture(view: TestView) -> NDArray[np.uint8]:
    rng = np.random.default_rng([view.seed, 2])
    light = draw_light(rng, view.distance_m)
    return render(view.scene, CAMERA, view.T_scene_camera, light, Response(), rng).image


def _match(
    true: Sequence[InstanceMask], found: Sequence[InstanceMask]
) -> tuple[list[InstanceMask | None], list[InstanceMask]]:
    """The mask found for each true one, None where there is none, and those that lie on no airhole."""
    labels = np.zeros((CAMERA.height, CAMERA.width), np.int32)
    for number, mask in enumerate(true, start=1):
        left, top, width, height = mask.roi
        labels[top : top + height, left : left + width][mask.coverage > 0.0] = number
    matched: list[InstanceMask | None] = [None] * len(true)
    shares = np.zeros(len(true))
    sound = []
    for mask in found:
        left, top, width, height = mask.roi
        covered = labels[top : top + height, left : left + width]
        overlap = np.bincount(covered.ravel(), mask.coverage.ravel(), minlength=len(true) + 1)[1:]
        best = int(np.argmax(overlap)) if len(true) else -1
        if best < 0 or overlap[best] == 0.0:
            sound.append(mask)
        elif overlap[best] > shares[best]:
            matched[best], shares[best] = mask, overlap[best]
    return matched, sound


@dataclass(frozen=True)
class Quality:
    """Of one quantity in one cell; NaN when nothing was measured.

    count: how many were measured. error: median of |measured / true - 1|. bias: mean of measured / true - 1. covered:
    share of 95 % intervals that hold the truth. claimed: median of the claimed deviation over the truth.
    """

    count: int
    error: float
    bias: float
    covered: float
    claimed: float


QUANTITIES = ('area', 'depth', 'volume')


def assess(samples: Sequence[Sample], quantity: str) -> Quality:
    """Quality of `quantity` (one of QUANTITIES) over the airholes in `samples`, where it is MEASURED."""
    rows = []
    for sample in samples:
        truth, found = sample.truth, sample.measurement
        if truth is None:
            continue
        status = found.area_status if quantity == 'area' else found.volume_status
        if status is not Status.MEASURED:
            continue
        rows.append(
            {
                'area': (truth.area_m2, found.area_m2, found.area_std_m2),
                'depth': (truth.depth_max_m, found.depth_max_m, found.depth_max_std_m),
                'volume': (truth.volume_m3, found.volume_m3, found.volume_std_m3),
            }[quantity]
        )
    if not rows:
        return Quality(0, math.nan, math.nan, math.nan, math.nan)
    true, mean, std = np.array(rows).T
    relative = mean / true - 1.0
    return Quality(
        count=len(rows),
        error=float(np.median(np.abs(relative))),
        bias=float(relative.mean()),
        covered=float((np.abs(mean - true) <= NORMAL_95 * std).mean()),
        claimed=float(np.median(std / true)),
    )


@dataclass(frozen=True)
class Totals:
    """What a group of samples shows.

    airholes: of MIN_DIAMETER_PX and more. measured_share: of them with a MEASURED volume. small_measured: volumes that
    are MEASURED for airholes of 2 to 15 mm. spots, spots_measured: sound wall, and what of it is MEASURED.
    """

    airholes: int
    measured_share: float
    small_measured: int
    spots: int
    spots_measured: int
    area: Quality
    depth: Quality
    volume: Quality


def total(samples: Sequence[Sample]) -> Totals:
    """Totals over the airholes of MIN_DIAMETER_PX and more, and over all sound wall, in `samples`."""
    holes = [sample for sample in samples if sample.truth is not None and sample.diameter_px >= MIN_DIAMETER_PX]
    spots = [sample for sample in samples if sample.truth is None]
    measured = [sample for sample in holes if sample.measurement.volume_status is Status.MEASURED]
    return Totals(
        airholes=len(holes),
        measured_share=len(measured) / len(holes) if holes else math.nan,
        small_measured=sum(0.002 <= sample.diameter_m <= 0.015 for sample in measured),
        spots=len(spots),
        spots_measured=sum(spot.measurement.volume_status is Status.MEASURED for spot in spots),
        area=assess(holes, 'area'),
        depth=assess(holes, 'depth'),
        volume=assess(holes, 'volume'),
    )


def group(samples: Sequence[Sample], *names: str) -> dict[tuple[Any, ...], list[Sample]]:
    """`samples` by the values of some of their fields, in the order of those values."""
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(getattr(sample, name) for name in names), []).append(sample)
    return dict(sorted(groups.items()))


def evaluate_measurement(
    out: Path, config: InspectorConfig, *, masks: MaskSource = 'true', full: bool = False, seed: int = 0
) -> str:
    """Simulates and measures the grid; writes measurement.json and measurability.png in `out`, returns the tables."""
    from cmml_ros.evaluation.measurability import draw_measurability

    grid = FULL if full else FAST
    views = make_views(grid, seed, distractor_density=1.0 if masks == 'network' else 0.0)
    samples = list(sample_measurements(_show(views), grid.sensors, config, masks))
    out.mkdir(parents=True, exist_ok=True)
    document = {
        'package_version': read_version(),
        'config': flatten_config(config),
        'masks': masks,
        'seed': seed,
        'grid': dataclasses.asdict(grid),
        'sensors': {name: describe_sensor(SENSORS[name]) for name in grid.sensors},
        'totals': {name: _describe(total(part)) for (name,), part in group(samples, 'sensor').items()},
        'walls': [
            {'sensor': name, 'kind': kind, **_describe(total(part))}
            for (name, kind), part in group(samples, 'sensor', 'kind').items()
        ],
        'cells': [
            {**dict(zip(CELL, cell, strict=True)), **_describe(total(part))}
            for cell, part in group([s for s in samples if s.truth is not None], *CELL).items()
        ],
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    (out / f'measurement_{masks}_masks.json').write_text(text + '\n', encoding='utf-8')
    draw_measurability(samples, out / 'measurability.png')
    tables = format_tables(samples)
    rims = [sample.rim for sample in samples if sample.rim is not None and sample.diameter_px >= MIN_DIAMETER_PX]
    return f'{tables}\n\n{format_rim_offsets(rims)}' if masks == 'network' else tables


CELL = ('sensor', 'kind', 'distance_m', 'incidence_deg', 'diameter_m', 'depth_ratio')


def _show(views: Iterator[TestView]) -> Iterator[TestView]:
    return iter(tqdm(views, desc='evaluate', unit='view', disable=None))


def _describe(totals: Totals) -> dict[str, Any]:
    """Ready for JSON: NaN as null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(item) for name, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return dict(clean(dataclasses.asdict(totals)))


def format_tables(samples: Sequence[Sample]) -> str:
    """Markdown: totals by sensor, then for each sensor by size and by view."""
    lines = [
        f'Airholes of {MIN_DIAMETER_PX:.0f} px and more. error: median; bias: mean; in 95 %: share of the intervals '
        'that hold the truth.',
        '',
        '| sensor | airholes | area error | bias | in 95 % | MEASURED | depth error | in 95 % | volume error | bias '
        '| in 95 % | sound wall MEASURED |',
        '|---' * 12 + '|',
    ]
    lines += [_format_total(name, total(part)) for (name,), part in group(samples, 'sensor').items()]
    for (name, kind), part in group(samples, 'sensor', 'kind').items():
        if kind != 'plane':
            lines.append(_format_total(f'{name}, {kind}', total(part)))
    for (name,), part in group(samples, 'sensor').items():
        holes = [sample for sample in part if sample.truth is not None and sample.kind == 'plane']
        lines += ['', f'{name}: volume bias / error / in 95 % (number MEASURED), by diameter and depth / diameter', '']
        lines += _format_cells(holes, ('diameter_m', 'depth_ratio'), (lambda d: f'{d * 1e3:g} mm', lambda r: f'{r:g}'))
        lines += ['', f'{name}: the same by distance and incidence', '']
        lines += _format_cells(
            holes, ('distance_m', 'incidence_deg'), (lambda d: f'{d:g} m', lambda angle: f'{angle:g} deg')
        )
    return '\n'.join(lines)


def _format_total(name: str, totals: Totals) -> str:
    area, depth, volume = totals.area, totals.depth, totals.volume
    cells = [
        name,
        str(totals.airholes),
        _percent(area.error),
        _percent(area.bias, '+'),
        _percent(area.covered),
        _percent(totals.measured_share),
        _percent(depth.error),
        _percent(depth.covered),
        _percent(volume.error),
        _percent(volume.bias, '+'),
        _percent(volume.covered),
        f'{totals.spots_measured} of {totals.spots}',
    ]
    return f'| {" | ".join(cells)} |'


def _format_cells(
    samples: Sequence[Sample], names: tuple[str, str], formats: tuple[Callable[[Any], str], Callable[[Any], str]]
) -> list[str]:
    cells = group(samples, *names)
    rows, columns = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    lines = ['| | ' + ' | '.join(formats[1](column) for column in columns) + ' |', '|---' * (len(columns) + 1) + '|']
    for row in rows:
        texts = []
        for column in columns:
            quality = assess(cells.get((row, column), []), 'volume')
            values = f'{_percent(quality.bias, "+")} / {_percent(quality.error)} / {_percent(quality.covered)}'
            texts.append(f'{values} ({quality.count})' if quality.count else '-')
        lines.append(f'| {formats[0](row)} | {" | ".join(texts)} |')
    return lines


def _percent(value: float, sign: str = '') -> str:
    return f'{value:{sign}.1%}'.replace('%', ' %') if math.isfinite(value) else '-'
