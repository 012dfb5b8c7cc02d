"""The report for people: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.measurement.defect import Status
from cmml_ros.report.overlay import STATUS_COLORS_RGB, STATUS_WORDS
from cmml_ros.report.summary import Summary
from cmml_ros.version import read_version

STATUS_MEANING = {
    Status.MEASURED: 'area from pixels on the surface, depth and volume from range points',
    Status.SHAPE_PRIOR: 'few or noisy points: depth and volume rest on the usual shape of airholes',
    Status.BELOW_DETECTION_LIMIT: 'the sensor cannot tell this depth from sound wall; the volume is below the bound',
    Status.NO_POINTS: 'no range points where they are needed',
    Status.NO_TRANSFORM: 'camera and range sensor could not be related in space',
    Status.CUT_BY_BORDER: 'only partly in the picture, so its size is not stated',
}


@dataclass(frozen=True)
class Picture:
    """One frame as a JPEG file with its rims drawn in."""

    path: Path
    stamp_ns: int
    defect_count: int


def write_report(path: Path, summary: Summary, entries: Sequence[MapEntry], pictures: Sequence[Picture]) -> None:
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
    environment.filters['place'] = format_place
    environment.globals['quantity'] = format_quantity
    measurements = [entry.measurement for entry in entries]
    text = environment.get_template('report.html.j2').render(
        summary=summary,
        version=read_version(),
        entries=entries,
        pictures=pictures,
        words=STATUS_WORDS,
        meaning=STATUS_MEANING,
        counts={status: sum(m.volume_status is status for m in measurements) for status in Status},
        area_sum_m2=float(np.nansum([m.area_m2 for m in measurements])),
        widest_m=_largest([m.equivalent_diameter_m for m in measurements]),
        deepest_m=_largest([m.depth_max_m for m in measurements if m.volume_status is Status.MEASURED]),
        placed=summary.frames_in_map > 0,
    )
    path.write_text(text, encoding='utf-8')


def format_quantity(value: float, std: float = math.nan, factor: float = 1.0) -> str:
    """`value` times `factor`, to the second digit of its deviation, or to three digits without one; a dash for NaN."""
    if math.isnan(value):
        return '–'
    value, std = value * factor, std * factor
    # Two digits of the deviation, three of the value itself.
    last_digit = math.floor(math.log10(std)) - 1 if std > 0 else math.floor(math.log10(abs(value) or 1.0)) - 2
    text = _round(value, last_digit)
    return f'{text} ± {_round(std, last_digit)}' if std > 0 else text


def format_place(position_m: NDArray[np.float64]) -> str:
    """x, y, z in metres to the millimetre; a dash when unknown."""
    if not np.isfinite(position_m).all():
        return '–'
    return ', '.join(f'{value:.3f}' for value in position_m.round(3) + 0.0)  # + 0.0: no "-0.000"


def format_utc(stamp_ns: int) -> str:
    """Date and time to the millisecond, UTC; seconds when the clock started at boot or in a simulation."""
    if stamp_ns < 10**18:  # before September 2001
        return f'{stamp_ns / 1e9:.3f} s'
    moment = datetime.fromtimestamp(stamp_ns // 10**9, tz=timezone.utc)
    return f'{moment:%Y-%m-%d %H:%M:%S}.{stamp_ns // 10**6 % 1000:03d} UTC'


def _round(value: float, last_digit: int) -> str:
    """To the digit 10**last_digit, thousands set apart by a narrow space."""
    return f'{round(value, -last_digit):,.{max(-last_digit, 0)}f}'.replace(',', '\N{NARROW NO-BREAK SPACE}')


def _largest(values: Sequence[float]) -> float:
    return float(np.nanmax([math.nan, *values])) if any(map(math.isfinite, values)) else math.nan


def _data_uri(picture: Picture) -> Markup:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return Markup(f'data:image/jpeg;base64,{data}')  # noqa: S704 - base64 needs no escaping
