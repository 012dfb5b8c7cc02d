"""From a map to verdicts: test areas, classes, and what the uncertainties leave open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from cmml_ros.config import DetectionConfig, GradingConfig
from cmml_ros.errors import ConfigError, SurfaceError
from cmml_ros.mapping.defect_map import MapEntry, MapSnapshot, MapView
from cmml_ros.mapping.developed import DevelopedSurface, fit_developed
from cmml_ros.measurement.defect import Status
from cmml_ros.measurement.uncertainty import UPPER_95

Array = NDArray[np.float64]

_CELL_M = 0.010
_MAX_CELLS = 4_000_000
_MIN_COSINE = math.cos(math.radians(75.0))
_COMPLETE = 0.98  # share of a test area that has to be inspected
_LIMITS = ('area_mm2', 'count', 'width_mm', 'depth_mm')
_KEYS = {'title', 'edition', 'source', 'note', 'test_area_mm', 'diameter_mm', 'classes'}


class Verdict(Enum):
    """What can be said about a limit with 95 % probability on each side (ISO 14253-1)."""

    MET = 'met'
    UNDECIDED = 'undecided'
    EXCEEDED = 'exceeded'
    NOT_GRADED = 'not graded'


@dataclass(frozen=True)
class GradeClass:
    """One class of a standard; limits by name (area_mm2 and count per test area, width_mm and depth_mm per airhole)."""

    name: str
    limits: dict[str, float]


@dataclass(frozen=True)
class Standard:
    """Classes from the least to the strictest, and where their limits come from.

    diameter_m: equivalent diameters that count.
    """

    title: str
    edition: str
    source: str
    note: str
    test_area_m: float
    diameter_m: tuple[float, float]
    classes: tuple[GradeClass, ...]


@dataclass(frozen=True)
class ClassVerdict:
    """Whether a class is met, and why."""

    name: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, eq=False)
class TestAreas:
    """Square test areas slid over the surface; (rows, columns) arrays, row 0 at the bottom.

    left_m, bottom_m: (columns,), (rows,) developed coordinates of their corners. inspected: share of each that pictures
    show well enough. count: airholes. area_m2: their area, area_std_m2 by measurement, sampling_std_m2 if the test area
    is taken for a sample of the wall (compound Poisson). unknown: airholes whose size is not known.
    """

    __test__ = False  # no test case

    side_m: float
    left_m: Array
    bottom_m: Array
    inspected: Array
    count: Array
    area_m2: Array
    area_std_m2: Array
    sampling_std_m2: Array
    unknown: Array

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which test areas were inspected as a whole."""
        return np.asarray(self.inspected >= _COMPLETE)

    @property
    def share(self) -> Array:
        """Area of the airholes over that of the test area."""
        return self.area_m2 / self.side_m**2


@dataclass(frozen=True, eq=False)
class StandardGrade:
    """What one standard says of the surface; best: the strictest class that is met, '' for none."""

    standard: Standard
    areas: TestAreas
    classes: tuple[ClassVerdict, ...]

    @property
    def best(self) -> str:
        """Name of the strictest class that is met with everything below it, '' for none."""
        met = ''
        for verdict in self.classes:
            if verdict.verdict is not Verdict.MET:
                break
            met = verdict.name
        return met


@dataclass(frozen=True, eq=False)
class Grading:
    """The graded surface, or the reason why there is none.

    developed: (N, 2) u, v of `entries`, metres. share: area of the airholes over the inspected area, with its
    deviations by measurement and by sampling.
    """

    reason: str
    surface: DevelopedSurface | None = None
    entries: tuple[MapEntry, ...] = ()
    developed: Array | None = None
    inspected: Coverage | None = None
    share: float = math.nan
    share_std: float = math.nan
    share_sampling_std: float = math.nan
    grades: tuple[StandardGrade, ...] = ()

    @property
    def inspected_m2(self) -> float:
        """Area of the surface that pictures show; NaN when unknown."""
        return math.nan if self.inspected is None else self.inspected.area_m2


@dataclass(frozen=True, eq=False)
class Coverage:
    """What the pictures show of the developed surface.

    px_per_m: (rows, columns), 0 where nothing; row 0 at the bottom.
    """

    cell_m: float
    left_m: float
    bottom_m: float
    px_per_m: Array

    @property
    def area_m2(self) -> float:
        """Area that any picture shows."""
        return float((self.px_per_m > 0.0).sum()) * self.cell_m**2


def load_standards(names: str) -> list[Standard]:
    """The standards in `names`, shipped ones by name or files by path, separated by commas.

    Raises ConfigError for an unknown name, and for a file that is no standard.
    """
    standards = []
    for name in filter(None, map(str.strip, names.split(','))):
        path = Path(name) if name.endswith(('.yaml', '.yml')) else _shipped_folder() / f'{name}.yaml'
        try:
            document = yaml.safe_load(path.read_text(encoding='utf-8'))
        except OSError:
            known = ', '.join(sorted(file.stem for file in _shipped_folder().glob('*.yaml')))
            raise ConfigError(f'no grading standard "{name}"; shipped are {known}, or name a .yaml file') from None
        except yaml.YAMLError as error:
            raise ConfigError(f'{path}: not valid YAML: {error}') from None
        standards.append(_read_standard(path, document))
    return standards


def grade(snapshot: MapSnapshot, config: GradingConfig, detection: DetectionConfig) -> Grading:
    """What the standards of `config` say of a map. Raises ConfigError for standards that cannot be read."""
    standards = load_standards(config.standards)
    entries = tuple(entry for entry in snapshot.placed if entry.confidence >= config.min_confidence)
    try:
        surface = fit_developed([entry.measurement for entry in entries])
    except SurfaceError as error:
        return Grading(reason=str(error))
    entries = tuple(entry for entry in entries if np.isfinite(entry.measurement.position).all())
    developed = surface.develop(np.array([entry.measurement.position for entry in entries]))
    if not snapshot.views:
        return Grading('the map does not tell from where it was seen', surface, entries, developed)
    coverage = find_coverage(surface, snapshot.views)
    areas_m2, variances, systematics = _area_terms(entries)
    inspected_m2 = coverage.area_m2
    share = share_std = sampling_std = math.nan
    if inspected_m2 > 0.0:
        share = float(areas_m2.sum()) / inspected_m2
        share_std = math.sqrt(float(variances.sum()) + float(systematics.sum()) ** 2) / inspected_m2
        sampling_std = math.sqrt(float((areas_m2**2).sum())) / inspected_m2
    grades = []
    for standard in standards:
        areas = find_test_areas(standard, entries, developed, coverage, config.step_m, detection.min_diameter_px)
        classes = tuple(_judge(one, standard, areas, entries) for one in standard.classes)
        grades.append(StandardGrade(standard, areas, classes))
    return Grading('', surface, entries, developed, coverage, share, share_std, sampling_std, tuple(grades))


def find_coverage(surface: DevelopedSurface, views: Sequence[MapView]) -> Coverage:
    """How finely the pictures show each cell of the surface (at the best view of it)."""
    windows = [_window(surface, view) for view in views]
    known = [window for window in windows if window is not None]
    if not known:
        return Coverage(_CELL_M, 0.0, 0.0, np.zeros((1, 1)))
    low = np.min([window[0] for window in known], axis=0)
    high = np.max([window[1] for window in known], axis=0)
    cell_m = max(_CELL_M, math.sqrt(float(np.prod(high - low)) / _MAX_CELLS))
    columns, rows = (np.ceil((high - low) / cell_m).astype(int) + 1).tolist()
    px_per_m = np.zeros((rows, columns))
    for view, window in zip(views, windows, strict=True):
        if window is None:
            continue
        first = np.maximum(np.floor((window[0] - low) / cell_m), 0).astype(int)
        last = np.minimum(np.ceil((window[1] - low) / cell_m), [columns, rows]).astype(int)
        u = low[0] + (np.arange(first[0], last[0]) + 0.5) * cell_m
        v = low[1] + (np.arange(first[1], last[1]) + 0.5) * cell_m
        cells = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
        resolution = _resolution(surface, view, cells).reshape(len(v), len(u))
        part = px_per_m[first[1] : last[1], first[0] : last[0]]
        np.maximum(part, resolution, out=part)
    return Coverage(cell_m, float(low[0]), float(low[1]), px_per_m)


def find_test_areas(
    standard: Standard,
    entries: Sequence[MapEntry],
    developed: Array,
    coverage: Coverage,
    step_m: float,
    min_diameter_px: float,
) -> TestAreas:
    """Test areas of `standard` at steps of `step_m`, an airhole counting where its centre lies."""
    side = standard.test_area_m
    low, _ = standard.diameter_m
    fine = coverage.px_per_m * low >= min_diameter_px if low > 0.0 else coverage.px_per_m > 0.0
    cells = max(round(side / coverage.cell_m), 1)
    stride = max(round(step_m / coverage.cell_m), 1)
    rows, columns = np.flatnonzero(fine.any(axis=1)), np.flatnonzero(fine.any(axis=0))
    if not len(rows):
        rows = columns = np.zeros(1, np.int64)
    bottoms = np.arange(rows[0], max(rows[-1] + 2 - cells, rows[0] + 1), stride)
    lefts = np.arange(columns[0], max(columns[-1] + 2 - cells, columns[0] + 1), stride)
    summed = np.pad(fine.astype(np.float64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    tops, rights = np.minimum(bottoms + cells, fine.shape[0]), np.minimum(lefts + cells, fine.shape[1])
    inspected = (
        summed[np.ix_(tops, rights)] - summed[np.ix_(bottoms, rights)] - summed[np.ix_(tops, lefts)]
        + summed[np.ix_(bottoms, lefts)]
    ) / cells**2  # fmt: skip
    left_m = coverage.left_m + lefts * coverage.cell_m
    bottom_m = coverage.bottom_m + bottoms * coverage.cell_m
    counted = [index for index, entry in enumerate(entries) if _counts(entry, standard)]
    chosen = [entries[index] for index in counted]
    places = developed[counted].reshape(-1, 2)
    in_column = (places[:, :1] >= left_m) & (places[:, :1] < left_m + side)  # (N, columns)
    in_row = (places[:, 1:] >= bottom_m) & (places[:, 1:] < bottom_m + side)  # (N, rows)
    areas_m2, variances, systematics = _area_terms(chosen)
    unknown = np.array([math.isnan(entry.measurement.area_m2) for entry in chosen], np.float64)

    def sums(values: Array) -> Array:
        return np.asarray((in_row * values[:, None]).T @ in_column.astype(np.float64))

    return TestAreas(
        side_m=side,
        left_m=left_m,
        bottom_m=bottom_m,
        inspected=inspected,
        count=sums(np.ones(len(chosen))),
        area_m2=sums(areas_m2),
        area_std_m2=np.sqrt(sums(variances) + sums(systematics) ** 2),
        sampling_std_m2=np.sqrt(sums(areas_m2**2)),
        unknown=sums(unknown),
    )


def decide(value: Array | float, std: Array | float, limit: float) -> tuple[bool, bool]:
    """Whether all values are below `limit` with 95 % probability, and whether any is above it with 95 %."""
    values, deviations = np.atleast_1d(value), np.nan_to_num(np.atleast_1d(std))
    met = bool((values + UPPER_95 * deviations <= limit).all())
    exceeded = bool((values - UPPER_95 * deviations > limit).any())
    return met, exceeded


def _judge(one: GradeClass, standard: Standard, areas: TestAreas, entries: Sequence[MapEntry]) -> ClassVerdict:
    """The verdict on one class: that of its worst limit."""
    if not one.limits:
        return ClassVerdict(one.name, Verdict.NOT_GRADED, 'no public limit; fill it in from your copy of the standard')
    verdicts = [_judge_limit(name, limit, standard, areas, entries) for name, limit in one.limits.items()]
    order = (Verdict.EXCEEDED, Verdict.NOT_GRADED, Verdict.UNDECIDED, Verdict.MET)
    worst = min((verdict for verdict, _ in verdicts), key=order.index)
    reasons = [reason for verdict, reason in verdicts if verdict is worst]
    return ClassVerdict(one.name, worst, '; '.join(reasons))


def _judge_limit(
    name: str, limit: float, standard: Standard, areas: TestAreas, entries: Sequence[MapEntry]
) -> tuple[Verdict, str]:
    if name in ('area_mm2', 'count'):
        return _judge_areas(name, limit, areas)
    values, stds, unknown = [], [], 0
    for entry in entries:
        if not _counts(entry, standard):
            continue
        value, std = _width_mm(entry) if name == 'width_mm' else _depth_mm(entry)
        unknown += math.isnan(value)
        values.append(value)
        stds.append(std)
    known = np.isfinite(np.array(values, np.float64))
    measured, deviations = np.array(values)[known], np.array(stds)[known]
    met, exceeded = decide(measured, deviations, limit)
    what = name.removesuffix('_mm')
    over = int((measured - UPPER_95 * np.nan_to_num(deviations) > limit).sum())
    largest = f'{what} {measured.max():.1f} mm at most' if len(measured) else f'no {what} known'
    if exceeded:
        return Verdict.EXCEEDED, f'{over} airhole{"s" if over > 1 else ""} above {limit:g} mm in {what}'
    if unknown:
        return Verdict.UNDECIDED, f'{what} of {unknown} airholes unknown, {largest} (limit {limit:g})'
    return (Verdict.MET if met else Verdict.UNDECIDED), f'{largest} (limit {limit:g})'


def _judge_areas(name: str, limit: float, areas: TestAreas) -> tuple[Verdict, str]:
    complete = areas.complete
    if not complete.any():
        best = areas.inspected.max(initial=0.0)
        return Verdict.NOT_GRADED, (
            f'no test area of {areas.side_m * 1e3:.0f} x {areas.side_m * 1e3:.0f} mm was seen whole and finely enough '
            f'({best:.0%} at best)'
        )
    values, stds = (areas.area_m2 * 1e6, areas.area_std_m2 * 1e6) if name == 'area_mm2' else (
        areas.count,
        np.zeros_like(areas.count),
    )  # fmt: skip
    met, exceeded = decide(values[complete], stds[complete], limit)
    unknown = int(areas.unknown[complete].max())
    unit = ' mm²' if name == 'area_mm2' else ' airholes'
    worst = int(values[complete].argmax())
    found = (
        f'{values[complete][worst]:.0f} ± {stds[complete][worst]:.0f}{unit} in the worst of {complete.sum()} test areas'
    )
    verdict = Verdict.EXCEEDED if exceeded else Verdict.MET if met and not unknown else Verdict.UNDECIDED
    tail = f', and {unknown} airholes of unknown size' if unknown else ''
    return verdict, f'{found}{tail} (limit {limit:g}{unit})'


def _counts(entry: MapEntry, standard: Standard) -> bool:
    """Whether the standard speaks of airholes of this size; one of unknown size may be meant."""
    diameter = entry.measurement.equivalent_diameter_m
    low, high = standard.diameter_m
    return math.isnan(diameter) or low <= diameter <= high


def _area_terms(entries: Sequence[MapEntry]) -> tuple[Array, Array, Array]:
    """Area of each, its white variance and its systematic deviation, unknown as 0: (N,) each."""
    areas = np.array([entry.measurement.area_m2 for entry in entries], np.float64)
    stds = np.array([entry.measurement.area_std_m2 for entry in entries], np.float64)
    systematic = np.array([entry.measurement.area_systematic_std_m2 for entry in entries], np.float64)
    systematic = np.where(np.isfinite(systematic), systematic, stds)
    return np.nan_to_num(areas), np.nan_to_num(stds**2 - systematic**2), np.nan_to_num(systematic)


def _width_mm(entry: MapEntry) -> tuple[float, float]:
    found = entry.measurement
    if not found.area_m2 > 0.0:
        return math.nan, math.nan
    return found.major_axis_m * 1e3, found.major_axis_m * 1e3 * 0.5 * found.area_std_m2 / found.area_m2


def _depth_mm(entry: MapEntry) -> tuple[float, float]:
    """Largest depth; below the detection limit that of a cap with the largest volume that it may have."""
    found = entry.measurement
    if found.volume_status is Status.BELOW_DETECTION_LIMIT and found.area_m2 > 0.0:
        return 2e3 * found.volume_upper_bound_m3 / found.area_m2, 0.0
    return found.depth_max_m * 1e3, found.depth_max_std_m * 1e3


def _window(surface: DevelopedSurface, view: MapView) -> tuple[Array, Array] | None:
    """Developed rectangle, (low, high), that holds all that a view shows; None when it faces away."""
    origin = view.T_map_camera.translation
    foot, normal = (one[0] for one in surface.place(surface.develop(origin[None])))
    axis = view.T_map_camera.rotation[:, 2]
    cosine = -float(axis @ normal)
    if cosine < _MIN_COSINE:
        return None
    distance = float((origin - foot) @ normal)
    if distance <= 0.0:
        return None
    along = distance / cosine
    camera = view.camera
    corners = camera.rays(np.array([[0.0, 0.0], [camera.width - 1.0, camera.height - 1.0]]))
    reach = float(np.nanmax(np.linalg.norm(corners[:, :2], axis=1), initial=0.1))
    middle = surface.develop((origin + along * axis)[None])[0]
    half = 1.5 * along * min(reach, 3.0) / cosine
    return middle - half, middle + half


def _resolution(surface: DevelopedSurface, view: MapView, cells: Array) -> Array:
    """Pixels per metre, foreshortened, at which a view shows `cells`, (N, 2); 0 where it does not."""
    points, normals = surface.place(cells)
    T_camera_map = view.T_map_camera.inverse()
    positions = T_camera_map.apply(points)
    _, shown = view.camera.project(positions)
    distances = np.linalg.norm(positions, axis=1)
    cosines = -np.einsum('ij,ij->i', positions, normals @ T_camera_map.rotation.T) / np.maximum(distances, 1e-9)
    shown &= cosines > _MIN_COSINE
    focal_px = math.sqrt(view.camera.fx * view.camera.fy)
    with np.errstate(divide='ignore'):
        return np.where(shown, focal_px * cosines / positions[:, 2], 0.0)


def _read_standard(path: Path, document: Any) -> Standard:
    if not isinstance(document, dict) or not {'title', 'edition', 'source', 'classes'} <= set(document):
        raise ConfigError(f'{path}: a grading standard needs title, edition, source and classes')
    unknown = sorted(set(document) - _KEYS)
    if unknown:
        raise ConfigError(f'{path}: unknown key "{unknown[0]}"; known are {", ".join(sorted(_KEYS))}')
    classes = []
    for one in document['classes']:
        limits = {name: value for name, value in one.items() if name != 'name' and value is not None}
        bad = sorted(
            name for name, value in limits.items() if name not in _LIMITS or not isinstance(value, int | float)
        )
        if 'name' not in one or bad:
            raise ConfigError(f'{path}: a class has a name and limits {", ".join(_LIMITS)} as numbers, got {one}')
        classes.append(GradeClass(str(one['name']), {name: float(value) for name, value in limits.items()}))
    low, high = document.get('diameter_mm', (0.0, math.inf))
    return Standard(
        title=str(document['title']),
        edition=str(document['edition']),
        source=str(document['source']),
        note=str(document.get('note', '')),
        test_area_m=float(document.get('test_area_mm', 500.0)) * 1e-3,
        diameter_m=(float(low) * 1e-3, float(high) * 1e-3),
        classes=tuple(classes),
    )


def _shipped_folder() -> Path:
    """config/grading: beside the sources, in `share` of the install prefix, or in the package."""
    inside = Path(__file__).parent / 'standards'
    for parent in Path(__file__).resolve().parents:
        for folder in (parent / 'config' / 'grading', parent / 'share' / 'cmml_ros' / 'config' / 'grading'):
            if folder.is_dir():
                return folder
    return inside
