"""The report for people: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cmml_ros.mapping.defect_map import MapEntry, MapSnapshot
from cmml_ros.mapping.grading import Grading, StandardGrade, Verdict
from cmml_ros.measurement.defect import Status
from cmml_ros.report.overlay import STATUS_COLORS_RGB, STATUS_WORDS
from cmml_ros.report.summary import Summary
from cmml_ros.version import read_version

Array = NDArray[np.float64]

STATUS_MEANING = {
    Status.MEASURED: 'area from pixels on the surface, depth and volume from range points',
    Status.SHAPE_PRIOR: 'few or noisy points: depth and volume rest on the usual shape of airholes',
    Status.BELOW_DETECTION_LIMIT: 'the sensor cannot tell this depth from sound wall; the volume is below the bound',
    Status.NO_POINTS: 'no range points where they are needed',
    Status.NO_TRANSFORM: 'camera and range sensor could not be related in space',
    Status.CUT_BY_BORDER: 'only partly in the picture, so its size is not stated',
}
VERDICT_SIGNS = {Verdict.MET: '✓', Verdict.UNDECIDED: '?', Verdict.EXCEEDED: '✗', Verdict.NOT_GRADED: '–'}
_BIN_MM = 1.0
_MAP_VERTICES = 16  # of one rim on the map
_CARD_VERTICES = 32
_95 = 1.96  # deviations to each side of a 95 % interval
_STEPS = 6  # colours of the heat map


@dataclass(frozen=True)
class Picture:
    """One frame as a JPEG file with its rims drawn in."""

    path: Path
    stamp_ns: int
    defect_count: int


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

    rims: path data by status. bounds: u of the left and v of the upper edge, mm. scale_mm: length of the scale bar.
    """

    width: float
    height: float
    left: float
    top: float
    inspected: str
    rims: dict[Status, str]
    scale_mm: float


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram: from which diameter, how many, and its height over the highest."""

    low_mm: float
    count: int
    height: float


def write_report(
    path: Path, summary: Summary, snapshot: MapSnapshot, grading: Grading, pictures: Sequence[Picture] = ()
) -> None:
    """`report.html`, self-contained; the same bytes for the same result."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['color'] = lambda status: '#{:02x}{:02x}{:02x}'.format(*STATUS_COLORS_RGB[status])
    environment.filters['data_uri'] = _data_uri
    environment.filters['utc'] = format_utc
    environment.globals['quantity'] = format_quantity
    entries = snapshot.entries
    measurements = [entry.measurement for entry in entries]
    sheet = make_sheet(grading)
    text = environment.get_template('report.html.j2').render(
        summary=summary,
        version=read_version(),
        count=len(entries),
        pictures=pictures,
        words=STATUS_WORDS,
        meaning=STATUS_MEANING,
        signs=VERDICT_SIGNS,
        counts={status: sum(m.volume_status is status for m in measurements) for status in Status},
        area_sum_m2=float(np.nansum([m.area_m2 for m in measurements])),
        widest_m=_largest([m.equivalent_diameter_m for m in measurements]),
        deepest_m=_largest([m.depth_max_m for m in measurements if m.volume_status is Status.MEASURED]),
        placed=summary.frames_in_map > 0,
        grading=grading,
        sheet=sheet,
        bars=make_histogram(entries),
        heat_map=_choose_heat_map(grading, sheet),
        rows=_embed([_row(entry, place) for entry, place in _with_places(entries, grading, sheet)]),
        details=Markup('\n'.join(_embed(_detail(entry)) for entry in entries)),  # noqa: S704 - JSON with "<" escaped
        statuses=_embed([[STATUS_WORDS[one], '#{:02x}{:02x}{:02x}'.format(*STATUS_COLORS_RGB[one])] for one in Status]),
    )
    path.write_text(text, encoding='utf-8')


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
    contours, _ = cv2.findContours(seen.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    origin = np.array([coverage.left_m, coverage.bottom_m]) * 1e3
    outline = ''.join(
        _path(np.column_stack([(contour[:, 0] + 0.5) * cell + origin[0] - left,
                               top - (contour[:, 1] + 0.5) * cell - origin[1]]))
        for contour in (one.reshape(-1, 2) for one in contours)
    )  # fmt: skip
    rims = dict.fromkeys(Status, '')
    for entry in grading.entries:
        ring = _thin(entry.measurement.outline, _MAP_VERTICES)
        if len(ring) >= 3:
            u, v = (surface.develop(ring) * 1e3).T
            rims[entry.measurement.volume_status] += _path(np.column_stack([u - left, top - v]))
    width = right - left
    scale = 10.0 ** math.floor(math.log10(width / 3.0))
    scale *= max(factor for factor in (1.0, 2.0, 5.0) if factor * scale <= width / 3.0)
    return Sheet(width, top - bottom, left, top, outline, {one: data for one, data in rims.items() if data}, scale)


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


def _choose_heat_map(grading: Grading, sheet: Sheet | None) -> tuple[StandardGrade, list[HeatCell], float] | None:
    """That of the first standard that limits something per test area, of any standard otherwise."""
    usable = [one for one in grading.grades if one.areas.complete.any()]
    if sheet is None or not usable:
        return None
    limiting = [one for one in usable if any({'area_mm2', 'count'} & set(each.limits) for each in one.standard.classes)]
    chosen = (limiting or usable)[0]
    return chosen, *make_heat_map(chosen, sheet)


def format_quantity(value: float, std: float = math.nan, factor: float = 1.0) -> str:
    """`value` times `factor`, to the second digit of its deviation, or to three digits without one; a dash for NaN."""
    if math.isnan(value):
        return '–'
    value, std = value * factor, std * factor
    # Two digits of the deviation, three of the value itself.
    last_digit = math.floor(math.log10(std)) - 1 if std > 0 else math.floor(math.log10(abs(value) or 1.0)) - 2
    text = _round(value, last_digit)
    return f'{text} ± {_round(std, last_digit)}' if std > 0 else text


def format_interval(value: float, std: float, factor: float) -> str:
    """The 95 % interval of a quantity that is not negative; a dash when unknown."""
    if not (math.isfinite(value) and std > 0.0):
        return '–'
    last_digit = math.floor(math.log10(std * factor)) - 1
    low, high = max(value - _95 * std, 0.0) * factor, (value + _95 * std) * factor
    return f'{_round(low, last_digit)} to {_round(high, last_digit)}'


def format_utc(stamp_ns: int) -> str:
    """Date and time to the millisecond, UTC; seconds when the clock started at boot or in a simulation."""
    if stamp_ns < 10**18:  # before September 2001
        return f'{stamp_ns / 1e9:.3f} s'
    moment = datetime.fromtimestamp(stamp_ns // 10**9, tz=timezone.utc)
    return f'{moment:%Y-%m-%d %H:%M:%S}.{stamp_ns // 10**6 % 1000:03d} UTC'


def _with_places(
    entries: Sequence[MapEntry], grading: Grading, sheet: Sheet | None
) -> list[tuple[MapEntry, tuple[float, float] | None]]:
    """Each airhole with its place on the sheet, mm from its left and its upper edge."""
    places: dict[int, tuple[float, float]] = {}
    if sheet is not None and grading.developed is not None:
        for entry, (u, v) in zip(grading.entries, (grading.developed * 1e3).tolist(), strict=True):
            places[entry.defect_id] = (u - sheet.left, sheet.top - v)
    return [(entry, places.get(entry.defect_id)) for entry in entries]


def _row(entry: MapEntry, place: tuple[float, float] | None) -> list[Any]:
    """One line of the table: what to sort by, and texts. The script in the template knows the order."""
    found = entry.measurement
    volume = found.volume_m3 if found.volume_status in (Status.MEASURED, Status.SHAPE_PRIOR) else math.nan
    bounded = math.isnan(volume) and math.isfinite(found.volume_upper_bound_m3)
    return [
        entry.defect_id,
        [
            _sortable(found.equivalent_diameter_m, 1e3),
            _sortable(found.area_m2, 1e6),
            _sortable(found.depth_max_m, 1e3),
            _sortable(found.volume_upper_bound_m3 if bounded else volume, 1e9),
            int(found.volume_status),
            None if place is None else round(place[0], 1),
            None if place is None else round(place[1], 1),
            round(entry.confidence, 4),
            entry.observations,
        ],
        [
            format_quantity(found.equivalent_diameter_m, factor=1e3),
            format_quantity(found.area_m2, found.area_std_m2, 1e6),
            format_quantity(found.depth_max_m, found.depth_max_std_m, 1e3),
            f'< {format_quantity(found.volume_upper_bound_m3, factor=1e9)}'
            if bounded
            else format_quantity(volume, found.volume_std_m3, 1e9),
        ],
    ]


def _detail(entry: MapEntry) -> dict[str, Any]:
    """What a card shows beyond the table."""
    found, closeup = entry.measurement, entry.closeup
    position = found.position
    detail: dict[str, Any] = {
        'i': [
            format_interval(found.area_m2, found.area_std_m2, 1e6),
            format_interval(found.depth_max_m, found.depth_max_std_m, 1e3),
            format_interval(found.volume_m3, found.volume_std_m3, 1e9),
        ],
        'a': [format_quantity(found.major_axis_m, factor=1e3), format_quantity(found.minor_axis_m, factor=1e3)],
        'p': ', '.join(f'{value:.3f}' for value in position.round(3) + 0.0) if np.isfinite(position).all() else '–',
        'f': entry.frame_id,
        's': int(found.area_status),
        'o': [entry.observations, entry.misses, found.point_count],
        't': [format_utc(entry.first_stamp_ns), format_utc(entry.last_stamp_ns)],
        'w': found.reason,
    }
    if closeup is not None:
        detail['c'] = base64.b64encode(closeup.jpeg).decode()
        detail['r'] = [[round(x, 3), round(y, 3)] for x, y in _thin(closeup.rim, _CARD_VERTICES).tolist()]
        detail['d'] = [[round(x * 1e3, 2), round(depth * 1e3, 2)] for x, depth in closeup.section_m.tolist()]
    return detail


def _embed(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False)
    return Markup(text.replace('<', '\\u003c'))  # noqa: S704 - no "<" is left


def _sortable(value: float, factor: float) -> float | None:
    return float(f'{value * factor:.6g}') if math.isfinite(value) else None


def _thin(ring: Array, vertices: int) -> Array:
    """At most `vertices` of a polygon's."""
    if len(ring) <= vertices:
        return ring
    return np.asarray(ring[np.linspace(0, len(ring), vertices, endpoint=False).astype(int)])


def _path(points: Array) -> str:
    """A closed SVG path, tenths of a millimetre."""
    return 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in points.tolist()) + 'Z'


def _round(value: float, last_digit: int) -> str:
    """To the digit 10**last_digit, thousands set apart by a narrow space."""
    return f'{round(value, -last_digit):,.{max(-last_digit, 0)}f}'.replace(',', '\N{NARROW NO-BREAK SPACE}')


def _largest(values: Sequence[float]) -> float:
    return float(np.nanmax([math.nan, *values])) if any(map(math.isfinite, values)) else math.nan


def _data_uri(picture: Picture) -> Markup:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return Markup(f'data:image/jpeg;base64,{data}')  # noqa: S704 - base64 needs no escaping
