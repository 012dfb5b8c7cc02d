"""The report for people: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cmml_ros.mapping.defect_map import MapEntry, MapSnapshot
from cmml_ros.mapping.grading import Grading, Verdict
from cmml_ros.measurement.defect import Status
from cmml_ros.report.figures import Sheet, choose_heat_map, make_histogram, make_sheet, thin
from cmml_ros.report.overlay import STATUS_COLORS_RGB, STATUS_WORDS
from cmml_ros.report.summary import Summary, sum_areas_m2
from cmml_ros.report.text import format_interval, format_quantity, format_utc
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
HEADLINES = {
    Verdict.UNDECIDED: 'No class is certainly met',
    Verdict.EXCEEDED: 'No class is met',
    Verdict.NOT_GRADED: 'Not graded',
}
_CARD_VERTICES = 32


@dataclass(frozen=True)
class Picture:
    """One frame as a JPEG file with its rims drawn in."""

    path: Path
    stamp_ns: int
    defect_count: int


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
        headlines=HEADLINES,
        counts={status: sum(m.volume_status is status for m in measurements) for status in Status},
        area_sum_m2=sum_areas_m2(entries),
        areas_unknown=sum(math.isnan(m.area_m2) for m in measurements),
        widest_m=_largest([m.equivalent_diameter_m for m in measurements]),
        deepest_m=_largest([m.depth_max_m for m in measurements if m.volume_status is Status.MEASURED]),
        placed=summary.frames_in_map > 0,
        grading=grading,
        sheet=sheet,
        bars=make_histogram(entries),
        heat_map=choose_heat_map(grading, sheet),
        rows=_embed([_row(entry, place) for entry, place in _with_places(entries, grading, sheet)]),
        details=Markup('\n'.join(_embed(_detail(entry)) for entry in entries)),  # noqa: S704 - JSON with "<" escaped
        statuses=_embed([[STATUS_WORDS[one], '#{:02x}{:02x}{:02x}'.format(*STATUS_COLORS_RGB[one])] for one in Status]),
    )
    path.write_text(text, encoding='utf-8')


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
    diameter_m = found.equivalent_diameter_m
    # As the area of a disc changes with its diameter.
    diameter_std_m = 2.0 * found.area_std_m2 / (math.pi * diameter_m) if diameter_m > 0.0 else math.nan
    volume = found.volume_m3 if found.volume_status in (Status.MEASURED, Status.SHAPE_PRIOR) else math.nan
    bounded = math.isnan(volume) and math.isfinite(found.volume_upper_bound_m3)
    return [
        entry.defect_id,
        [
            _sortable(diameter_m, 1e3),
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
            format_quantity(diameter_m, diameter_std_m, 1e3),
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
        detail['r'] = [[round(x, 3), round(y, 3)] for x, y in thin(closeup.rim, _CARD_VERTICES).tolist()]
        detail['d'] = [[round(x * 1e3, 2), round(depth * 1e3, 2)] for x, depth in closeup.section_m.tolist()]
    return detail


def _embed(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False)
    return Markup(text.replace('<', '\\u003c'))  # noqa: S704 - no "<" is left


def _sortable(value: float, factor: float) -> float | None:
    return float(f'{value * factor:.6g}') if math.isfinite(value) else None


def _largest(values: Sequence[float]) -> float:
    return float(np.nanmax([math.nan, *values])) if any(map(math.isfinite, values)) else math.nan


def _data_uri(picture: Picture) -> Markup:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return Markup(f'data:image/jpeg;base64,{data}')  # noqa: S704 - base64 needs no escaping
