"""Two analyses of the same surface side by side: what is new, what is gone, and what differs by more than it may."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from cmml_ros.errors import ConfigError
from cmml_ros.report.tables import TableWriter, format_number

Array = NDArray[np.float64]
Row = dict[str, str]

# (value, deviation) of each quantity in defects.csv.
QUANTITIES = (
    ('area_mm2', 'area_std_mm2'),
    ('depth_max_mm', 'depth_max_std_mm'),
    ('volume_mm3', 'volume_std_mm3'),
)
_NEEDED = {'defect_id', 'frame_id', 'x_m', 'y_m', 'z_m', 'equivalent_diameter_mm', 'volume_status'}.union(*QUANTITIES)
COLUMNS = (
    'kind', 'defect_id_a', 'defect_id_b', 'x_m', 'y_m', 'z_m', 'distance_mm', 'equivalent_diameter_mm_a',
    'equivalent_diameter_mm_b',
    *(f'{name}_{end}' for name, _ in QUANTITIES for end in ('a', 'b', 'difference', 'deviations')),
    'volume_status_a', 'volume_status_b',
)  # fmt: skip
_REACH_M = 0.010  # two maps of one surface lie on each other this well, or within half a diameter
_PICTURE_PX = 1400
_COLORS_BGR = {'matched': (110, 110, 110), 'new': (40, 160, 40), 'gone': (40, 40, 210), 'changed': (200, 110, 20)}
_CHANGED = 1.96  # deviations
_NAME_ANOTHER = 'name a folder that `cmml analyze --out` wrote'


@dataclass(frozen=True)
class Comparison:
    """One row per airhole of either run, by COLUMNS; kind: matched, new (in B alone) or gone (in A alone).

    deviations: difference over the root of both variances. Two runs of one recording share most of their errors, so
    there even 1 is much; between two recordings 5 % of the rows exceed 1.96 by chance.
    unplaced: how many of both runs have no position, so that nobody can say whether they are the same; without a row.
    """

    rows: tuple[Row, ...]
    unplaced: int = 0

    def count(self, kind: str) -> int:
        """How many rows are of `kind`."""
        return sum(row['kind'] == kind for row in self.rows)

    @property
    def changed(self) -> list[Row]:
        """Matched airholes of which a quantity differs by more than 1.96 deviations."""
        return [row for row in self.rows if _is_changed(row)]

    @property
    def identical(self) -> bool:
        """Whether the runs differ in nothing that is compared."""
        names = [f'{name}_difference' for name, _ in QUANTITIES]
        same = all(row[name] in ('', '0') for row in self.rows for name in names)
        return same and self.count('matched') == len(self.rows) and all(row['distance_mm'] == '0' for row in self.rows)


def compare(run_a: Path, run_b: Path, out: Path) -> Comparison:
    """Comparison of two output folders of `cmml analyze`, written to `out` as compare.csv and compare.png.

    Raises ConfigError when a folder holds no results, or when the maps have different frames.
    """
    read = _read(run_a), _read(run_b)
    a, b = ([row for row in rows if row['x_m']] for rows in read)
    frames_a, frames_b = ({row['frame_id'] for row in rows} for rows in (a, b))
    if frames_a and frames_b and frames_a != frames_b:
        raise ConfigError(f'{run_a} lies in {sorted(frames_a)}, {run_b} in {sorted(frames_b)}: they cannot be compared')
    pairs = match(a, b)
    rows = [_make_row('matched', a[i], b[j]) for i, j in pairs]
    taken_a, taken_b = {i for i, _ in pairs}, {j for _, j in pairs}
    rows += [_make_row('gone', row, None) for index, row in enumerate(a) if index not in taken_a]
    rows += [_make_row('new', None, row) for index, row in enumerate(b) if index not in taken_b]
    comparison = Comparison(tuple(rows), unplaced=sum(map(len, read)) - len(a) - len(b))
    picture = draw(comparison, _read_rims(run_a), _read_rims(run_b))
    out.mkdir(parents=True, exist_ok=True)
    with TableWriter(out / 'compare.csv', COLUMNS) as table:
        for row in rows:
            table.write(row)
    # OpenCV would not say why it could not write.
    (out / 'compare.png').write_bytes(cv2.imencode('.png', picture)[1].tobytes())
    return comparison


def match(a: list[Row], b: list[Row]) -> list[tuple[int, int]]:
    """Pairs that lie on each other, one-to-one, as many and as close as can be."""
    if not a or not b:
        return []
    places_a, places_b = _places(a), _places(b)
    radii = [0.5e-3 * np.array([_value(row, 'equivalent_diameter_mm', 0.0) for row in rows]) for rows in (a, b)]
    reach = max(_REACH_M, float(radii[0].max()), float(radii[1].max()))
    near = cKDTree(places_a).query_ball_tree(cKDTree(places_b), reach)
    costs: dict[tuple[int, int], float] = {}
    for first, others in enumerate(near):
        for second in others:
            distance = float(np.linalg.norm(places_a[first] - places_b[second]))
            if distance <= max(_REACH_M, radii[0][first], radii[1][second]):
                costs[first, second] = distance
    pairs: list[tuple[int, int]] = []
    for lines, columns in _groups(list(costs)):
        matrix = np.full((len(lines), len(columns)), 2.0 * reach * (len(lines) + 1))
        for row, line in enumerate(lines):
            for column, other in enumerate(columns):
                matrix[row, column] = costs.get((line, other), matrix[row, column])
        chosen = zip(*linear_sum_assignment(matrix), strict=True)
        pairs += [(lines[i], columns[j]) for i, j in chosen if (lines[i], columns[j]) in costs]
    return sorted(pairs)


def draw(comparison: Comparison, rims_a: dict[int, Array], rims_b: dict[int, Array]) -> NDArray[np.uint8]:
    """Both maps on each other, seen along their common normal: what is gone red, new green, changed blue."""
    picture = np.full((_PICTURE_PX // 2, _PICTURE_PX, 3), 250, np.uint8)
    rims = []
    for row in comparison.rows:
        ring = rims_b.get(int(row['defect_id_b'] or 0))
        ring = rims_a.get(int(row['defect_id_a'] or 0)) if ring is None else ring
        if ring is not None:
            rims.append(('changed' if _is_changed(row) else row['kind'], ring))
    if rims:
        points = np.concatenate([ring for _, ring in rims])
        centre = points.mean(axis=0)
        axes = np.linalg.svd(points - centre, full_matrices=False)[2][:2] if len(points) > 2 else np.eye(3)[:2]
        axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]
        flat = (points - centre) @ axes.T
        low, high = flat.min(axis=0), flat.max(axis=0)
        scale = (_PICTURE_PX - 80) / max(float(high[0] - low[0]), 0.01)
        height = int((high[1] - low[1]) * scale) + 130
        picture = np.full((height, _PICTURE_PX, 3), 250, np.uint8)
        for kind, ring in rims:
            uv = ((ring - centre) @ axes.T - low) * scale + 40
            uv[:, 1] = height - 50 - uv[:, 1]
            cv2.fillPoly(picture, [np.round(uv * 16).astype(np.int32)], _COLORS_BGR[kind], cv2.LINE_AA, 4)
    left = 40
    for kind, color in _COLORS_BGR.items():
        number = len(comparison.changed) if kind == 'changed' else comparison.count(kind)
        number -= len(comparison.changed) if kind == 'matched' else 0
        text = f'{number} {"the same" if kind == "matched" else kind}'
        cv2.putText(picture, text, (left, picture.shape[0] - 14), cv2.FONT_HERSHEY_SIMPLEX, 0.8, color, 2, cv2.LINE_AA)
        left += 220
    return picture


def _make_row(kind: str, a: Row | None, b: Row | None) -> Row:
    known = b or a
    assert known is not None
    row = {
        'kind': kind,
        'defect_id_a': a['defect_id'] if a else '',
        'defect_id_b': b['defect_id'] if b else '',
        **{name: known[name] for name in ('x_m', 'y_m', 'z_m')},
        'equivalent_diameter_mm_a': a['equivalent_diameter_mm'] if a else '',
        'equivalent_diameter_mm_b': b['equivalent_diameter_mm'] if b else '',
        'volume_status_a': a['volume_status'] if a else '',
        'volume_status_b': b['volume_status'] if b else '',
    }
    for name, std_name in QUANTITIES:
        row[f'{name}_a'], row[f'{name}_b'] = a[name] if a else '', b[name] if b else ''
        if a and b:
            difference = _value(b, name) - _value(a, name)
            std = math.hypot(_value(a, std_name), _value(b, std_name))
            row[f'{name}_difference'] = format_number(difference)
            row[f'{name}_deviations'] = format_number(difference / std) if std > 0 else ''
        else:
            row[f'{name}_difference'] = row[f'{name}_deviations'] = ''
    row['distance_mm'] = ''
    if a and b:
        row['distance_mm'] = format_number(float(np.linalg.norm(_places([a])[0] - _places([b])[0])) * 1e3)
    return row


def _is_changed(row: Row) -> bool:
    return any(abs(float(row[f'{name}_deviations'] or 0.0)) > _CHANGED for name, _ in QUANTITIES)


def _groups(edges: list[tuple[int, int]]) -> list[tuple[list[int], list[int]]]:
    """The connected parts of a graph between A and B: what lies far apart is assigned apart."""
    of_a: dict[int, set[int]] = {}
    of_b: dict[int, set[int]] = {}
    for i, j in edges:
        of_a.setdefault(i, set()).add(j)
        of_b.setdefault(j, set()).add(i)
    groups, done = [], set()
    for start in sorted(of_a):
        if start in done:
            continue
        lines, waiting = {start}, [start]
        columns: set[int] = set()
        while waiting:
            for j in of_a[waiting.pop()] - columns:
                columns.add(j)
                fresh = of_b[j] - lines
                lines |= fresh
                waiting += fresh
        done |= lines
        groups.append((sorted(lines), sorted(columns)))
    return groups


def _read(run: Path) -> list[Row]:
    try:
        with (run / 'defects.csv').open(encoding='utf-8', newline='') as file:
            table = csv.DictReader(file)
            missing = _NEEDED - set(table.fieldnames or ())
            rows = list(table)
    except (OSError, UnicodeError, csv.Error):
        raise ConfigError(f'{run}: no defects.csv in it; {_NAME_ANOTHER}') from None
    if missing:
        raise ConfigError(f'{run / "defects.csv"}: no column "{min(missing)}"; {_NAME_ANOTHER}')
    return rows


def _read_rims(run: Path) -> dict[int, Array]:
    """Rim of each airhole that has one, by its id."""
    path = run / 'defects.geojson'
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
        return {
            feature['id']: np.array(feature['geometry']['coordinates'][0], np.float64)
            for feature in document['features']
            if feature['geometry']
        }
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        raise ConfigError(f'{path}: no rims can be read from it; {_NAME_ANOTHER}') from None


def _places(rows: list[Row]) -> Array:
    return np.array([[_value(row, name) for name in ('x_m', 'y_m', 'z_m')] for row in rows]).reshape(-1, 3)


def _value(row: Row, name: str, otherwise: float = math.nan) -> float:
    return float(row[name]) if row[name] else otherwise
