"""From a map to verdicts: test areas, classes, and what the uncertainties leave open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from cmml_ros.config import DetectionConfig, GradingConfig
from cmml_ros.errors import SurfaceError
from cmml_ros.mapping.coverage import Coverage, find_coverage
from cmml_ros.mapping.defect_map import MapEntry, MapSnapshot
from cmml_ros.mapping.developed import DevelopedSurface, fit_developed
from cmml_ros.mapping.standard import GradeClass, Standard, load_standards
from cmml_ros.measurement.defect import Status
from cmml_ros.measurement.uncertainty import UPPER_95

Array = NDArray[np.float64]

_COMPLETE = 0.98  # share of a test area that has to be inspected


class Verdict(Enum):
    """What can be said about a limit with 95 % probability on each side (ISO 14253-1)."""

    MET = 'met'
    UNDECIDED = 'undecided'
    EXCEEDED = 'exceeded'
    NOT_GRADED = 'not graded'


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

    @property
    def overall(self) -> Verdict:
        """Whether any class is met: what holds of the least strict one, when none is."""
        return Verdict.MET if self.best else self.classes[0].verdict if self.classes else Verdict.NOT_GRADED


@dataclass(frozen=True, eq=False)
class Grading:
    """The graded surface, or the reason why there is none.

    developed: (N, 2) u, v of `entries`, metres. share: area of the airholes over the inspected area, with its
    deviations by measurement and by sampling; NaN where no area is known.
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
    if inspected_m2 > 0.0 and any(math.isfinite(entry.measurement.area_m2) for entry in entries):
        share = float(areas_m2.sum()) / inspected_m2
        share_std = math.sqrt(float(variances.sum()) + float(systematics.sum()) ** 2) / inspected_m2
        sampling_std = math.sqrt(float((areas_m2**2).sum())) / inspected_m2
    grades = []
    for standard in standards:
        areas = find_test_areas(standard, entries, developed, coverage, config.step_m, detection.min_diameter_px)
        classes = tuple(_judge(one, standard, areas, entries) for one in standard.classes)
        grades.append(StandardGrade(standard, areas, classes))
    return Grading('', surface, entries, developed, coverage, share, share_std, sampling_std, tuple(grades))


def find_test_areas(
    standard: Standard,
    entries: Sequence[MapEntry],
    developed: Array,
    coverage: Coverage,
    step_m: float,
    min_diameter_px: float,
) -> TestAreas:
    """Test areas of `standard` at steps of `step_m` at most, an airhole counting where its centre lies."""
    side = standard.test_area_m
    low, _ = standard.diameter_m
    fine = coverage.px_per_m * low >= min_diameter_px if low > 0.0 else coverage.px_per_m > 0.0
    cells = max(round(side / coverage.cell_m), 1)
    # No further than a test area is wide, or what lies between two would be in neither.
    stride = max(int(min(step_m, side) / coverage.cell_m + 0.001), 1)
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
    counted = [entry for entry in entries if _counts(entry, standard)]
    what = name.removesuffix('_mm')
    values, stds = np.array(
        [_width_mm(entry) if what == 'width' else _depth_mm(entry) for entry in counted], np.float64
    ).reshape(-1, 2).T  # fmt: skip
    statuses = np.array([entry.measurement.volume_status for entry in counted], np.int64)
    guessed = (statuses == Status.SHAPE_PRIOR) & (what == 'depth')
    # A bound can show that a limit is met, not that it is exceeded.
    bounded = (statuses == Status.BELOW_DETECTION_LIMIT) & (what == 'depth')
    known = np.isfinite(values)
    unknown = int((~known).sum())
    margins = UPPER_95 * np.nan_to_num(stds)
    over = known & ~bounded & (values - margins > limit)
    doubtful = known & ~over & (values + margins > limit)
    largest = f'{values[known].max():.1f} mm at most' if known.any() else f'no {what} known'
    if over.any():
        count, by_prior = int(over.sum()), int((over & guessed).sum())
        found = f'{count} airhole{"s" if count > 1 else ""} above {limit:g} mm in {what}'
        return Verdict.EXCEEDED, f'{found} ({by_prior} of them by the shape prior)' if by_prior else found
    doubts = []
    if unknown:
        doubts.append(f'{what} of {unknown} airhole{"s" if unknown > 1 else ""} unknown')
    if doubtful.any():
        doubts.append(f'{what} of {doubtful.sum()} may be up to {(values + margins)[doubtful].max():.1f} mm')
    elif unknown and known.any():
        doubts.append(f'of the others {largest}')
    if doubts:
        return Verdict.UNDECIDED, f'{", ".join(doubts)} (limit {limit:g})'
    return Verdict.MET, f'{what} {largest} (limit {limit:g})' if known.any() else f'{largest} (limit {limit:g})'


def _judge_areas(name: str, limit: float, areas: TestAreas) -> tuple[Verdict, str]:
    complete = areas.complete
    if not complete.any():
        best = areas.inspected.max(initial=0.0)
        return Verdict.NOT_GRADED, (
            f'no test area of {areas.side_m * 1e3:.0f} x {areas.side_m * 1e3:.0f} mm was seen whole and finely enough '
            f'({100 * best:.0f} % at best)'
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
