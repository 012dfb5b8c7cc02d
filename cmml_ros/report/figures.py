"""The drawings of the report, ready for the template: developed surface, histogram, heat map of the test areas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.mapping.grading import Grading, StandardGrade
from cmml_ros.measurement.defect import Status

Array = NDArray[np.float64]


_BIN_MM = 1.0
_MAP_VERTICES = 16  # of one rim on the map
_STEPS = 6  # colours of the heat map


@dataclass(frozen=True)
class HeatCell:
    """A square of the heat map: its place on the sheet in mm, its colour step, and what it says."""

    x: float
    y: float
    side: float
    step: int
    text: str


@dataclass(frozen=True)
class Sheet:
    """The developed surface as a drawing in mm, y down, (0, 0) at its upper left.

    inspected: path data through the middles of the outermost inspected cells, which are cell_mm wide, and of those
    around what was not inspected; to be filled by the even-odd rule. rims: path data by status. left, top: u of the
    left and v of the upper edge, mm. scale_mm: length of the scale bar. gaps_m2: what was not inspected in its midst.
    """

    width: float
    height: float
    left: float
    top: float
    inspected: str
    cell_mm: float
    rims: dict[Status, str]
    scale_mm: float
    gaps_m2: float


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram: from which diameter, how many, and its height over the highest."""

    low_mm: float
    count: int
    height: float


def make_sheet(grading: Grading) -> Sheet | None:
    """The drawing of the developed surface; None where there is none."""
    surface, coverage = grading.surface, grading.inspected
    if surface is None or coverage is None or not coverage.area_m2 > 0.0:
        return None
    seen = coverage.px_per_m > 0.0
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    cell = coverage.cell_m * 1e3
    left, right = coverage.left_m * 1e3 + cell * columns[0], coverage.left_m * 1e3 + cell * (columns[-1] + 1)
    bottom, top = coverage.bottom_m * 1e3 + cell * rows[0], coverage.bottom_m * 1e3 + cell * (rows[-1] + 1)
    contours, _ = cv2.findContours(seen.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    origin = np.array([coverage.left_m, coverage.bottom_m]) * 1e3
    outline = ''.join(
        _path(np.column_stack([(contour[:, 0] + 0.5) * cell + origin[0] - left,
                               top - (contour[:, 1] + 0.5) * cell - origin[1]]))
        for contour in (one.reshape(-1, 2) for one in contours)
    )  # fmt: skip
    rims = dict.fromkeys(Status, '')
    for entry in grading.entries:
        ring = thin(entry.measurement.outline, _MAP_VERTICES)
        if len(ring) >= 3:
            u, v = (surface.develop(ring) * 1e3).T
            rims[entry.measurement.volume_status] += _path(np.column_stack([u - left, top - v]))
    width = right - left
    scale = 10.0 ** math.floor(math.log10(width / 3.0))
    scale *= max(factor for factor in (1.0, 2.0, 5.0) if factor * scale <= width / 3.0)
    shown = {one: data for one, data in rims.items() if data}
    return Sheet(width, top - bottom, left, top, outline, cell, shown, scale, coverage.gaps_m2)


def make_histogram(entries: Sequence[MapEntry]) -> list[Bar]:
    """Airholes by equivalent diameter, in bins of one millimetre."""
    diameters = np.array([entry.measurement.equivalent_diameter_m for entry in entries], np.float64) * 1e3
    diameters = diameters[np.isfinite(diameters)]
    if not len(diameters):
        return []
    low, high = math.floor(diameters.min()), math.floor(diameters.max()) + 1
    step = _BIN_MM * max(1, math.ceil((high - low) / 40))
    counts, edges = np.histogram(diameters, np.arange(low, high + step, step))
    return [Bar(float(edge), int(n), float(n / counts.max())) for edge, n in zip(edges, counts, strict=False)]


def make_heat_map(grade: StandardGrade, sheet: Sheet) -> tuple[list[HeatCell], float]:
    """One square per complete test area, at its middle, and the share in percent that the darkest step begins at."""
    areas = grade.areas
    rows, columns = np.nonzero(areas.complete)
    top_share = max(float(areas.share[areas.complete].max()) * 100.0, 1e-9)
    pitch = float(np.diff(areas.left_m).min()) * 1e3 if len(areas.left_m) > 1 else 0.0
    if len(areas.bottom_m) > 1:
        pitch = pitch or float(np.diff(areas.bottom_m).min()) * 1e3
    pitch = pitch or areas.side_m * 1e3
    cells = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        x = (areas.left_m[column] + areas.side_m / 2) * 1e3 - sheet.left - pitch / 2
        y = sheet.top - (areas.bottom_m[row] + areas.side_m / 2) * 1e3 - pitch / 2
        share = float(areas.share[row, column]) * 100.0
        text = (
            f'{share:.2f} ± {areas.area_std_m2[row, column] / areas.side_m**2 * 100:.2f} % '
            f'(sampling ± {areas.sampling_std_m2[row, column] / areas.side_m**2 * 100:.2f} %), '
            f'{areas.count[row, column]:.0f} airholes'
        )
        cells.append(HeatCell(x, y, pitch, min(int(share / top_share * _STEPS), _STEPS - 1), text))
    return cells, top_share


def choose_heat_map(grading: Grading, sheet: Sheet | None) -> tuple[StandardGrade, list[HeatCell], float] | None:
    """That of the first standard that limits something per test area, of any standard otherwise."""
    usable = [one for one in grading.grades if one.areas.complete.any()]
    if sheet is None or not usable:
        return None
    limiting = [one for one in usable if any({'area_mm2', 'count'} & set(each.limits) for each in one.standard.classes)]
    chosen = (limiting or usable)[0]
    return chosen, *make_heat_map(chosen, sheet)


def thin(ring: Array, vertices: int) -> Array:
    """At most `vertices` of a polygon's."""
    if len(ring) <= vertices:
        return ring
    return np.asarray(ring[np.linspace(0, len(ring), vertices, endpoint=False).astype(int)])


def _path(points: Array) -> str:
    """A closed SVG path, tenths of a millimetre."""
    return 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in points.tolist()) + 'Z'
