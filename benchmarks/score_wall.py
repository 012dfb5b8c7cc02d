"""Compare what `cmml analyze` found on a wall of `cmml simulate` with its truth."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from shapely import Point, Polygon

Array = NDArray[np.float64]

MIN_DIAMETER_PX = 8.0

_GATE_M = 0.003  # a match lies within this, or within the radius of the airhole, of its centre
_RANGE_GATE_M = 0.05  # along the normal a time-of-flight LiDAR may be this far off
_FAR_M = 1e3


@dataclass(frozen=True)
class Score:
    """What an analysis found of the truth, for airholes of MIN_DIAMETER_PX and more in a frame that shows them whole.

    Errors are medians of |measured / true - 1|, NaN when there is nothing to compare. false_alarms: what is there.
    """

    true_count: int
    found_count: int
    defect_count: int
    false_alarms: Counter[str]
    area_error: float
    area_bias: float
    volume_error: float
    volume_bias: float
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def recall(self) -> float:
        """Share of the airholes that were found."""
        return self.found_count / self.true_count if self.true_count else math.nan

    @property
    def precision(self) -> float:
        """Share of the defects of that size that are airholes of any size."""
        return 1.0 - self.false_alarms.total() / self.defect_count if self.defect_count else math.nan


def match_airholes(
    true_centres: Array, true_normals: Array, true_diameters_m: Array, positions: Array
) -> list[tuple[int, int]]:
    """Pairs (truth, defect) that lie on each other, one-to-one, as many and as close as can be.

    true_centres, true_normals: (T, 3); true_diameters_m: (T,); positions: (D, 3); one frame, metres.
    """
    across_m = _distances_m(true_centres, true_normals, true_diameters_m, positions)
    rows, columns = linear_sum_assignment(np.minimum(across_m, _FAR_M))
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in pairs if across_m[row, column] < _FAR_M]


def _distances_m(true_centres: Array, true_normals: Array, true_diameters_m: Array, positions: Array) -> Array:
    """Distance along the surface of each defect from each airhole, (T, D); inf where it lies elsewhere."""
    offsets = positions[None] - true_centres[:, None]  # (T, D, 3)
    along_m = np.einsum('tdk,tk->td', offsets, true_normals)
    across_m = np.linalg.norm(offsets - along_m[..., None] * true_normals[:, None], axis=2)
    near = (across_m < np.maximum(_GATE_M, 0.5 * true_diameters_m)[:, None]) & (np.abs(along_m) < _RANGE_GATE_M)
    return np.where(near, across_m, np.inf)


def score(truth: Mapping[str, Any], defects: Sequence[Mapping[str, str]]) -> Score:
    """Score of the rows of `defects.csv` against the document in `truth.json`."""
    holes = truth['airholes']
    centres = np.array([hole['centre_m'] for hole in holes]).reshape(-1, 3)
    normals = np.array([hole['normal'] for hole in holes]).reshape(-1, 3)
    diameters_m = np.array([hole['equivalent_diameter_m'] for hole in holes])
    diameters_px: dict[int, float] = {}
    for frame in truth['frames']:
        for seen in frame['airholes']:
            diameters_px[seen['id']] = max(seen['diameter_px'], diameters_px.get(seen['id'], 0.0))
    wanted = {index for index, hole in enumerate(holes) if diameters_px.get(hole['id'], 0.0) >= MIN_DIAMETER_PX}
    pixels_per_m = np.median(
        [diameters_px[hole['id']] / hole['equivalent_diameter_m'] for hole in holes if hole['id'] in diameters_px]
    )

    placed = [row for row in defects if row['x_m']]
    positions = np.array([[float(row[name]) for name in ('x_m', 'y_m', 'z_m')] for row in placed]).reshape(-1, 3)
    sizes_m = np.array([float(row['equivalent_diameter_mm'] or 'nan') * 1e-3 for row in placed])
    large = sizes_m * pixels_per_m >= MIN_DIAMETER_PX
    pairs = match_airholes(centres, normals, diameters_m, positions)
    found = [(holes[t], placed[d]) for t, d in pairs if t in wanted]
    alarms = sorted(set(np.flatnonzero(large).tolist()) - {d for _, d in pairs})
    on_airhole = np.isfinite(_distances_m(centres, normals, diameters_m, positions)).any(axis=0)

    areas = [_ratio(row['area_mm2'], hole['area_m2'] * 1e6) for hole, row in found]
    volumes = [
        _ratio(row['volume_mm3'], hole['volume_m3'] * 1e9) for hole, row in found if row['volume_status'] == 'MEASURED'
    ]
    return Score(
        true_count=len(wanted),
        found_count=len(found),
        defect_count=int(large.sum()),
        false_alarms=Counter(
            'airhole taken twice' if on_airhole[d] else _name_place(positions[d], truth['distractors']) for d in alarms
        ),
        area_error=_median(np.abs(np.array(areas) - 1.0)),
        area_bias=_median(np.array(areas) - 1.0),
        volume_error=_median(np.abs(np.array(volumes) - 1.0)),
        volume_bias=_median(np.array(volumes) - 1.0),
        statuses=Counter(row['volume_status'] for _, row in found),
    )


def read_score(bag: Path, result: Path) -> Score:
    """Score of an output folder of `cmml analyze` against the bag folder of `cmml simulate`."""
    truth = json.loads((bag / 'truth.json').read_text(encoding='utf-8'))
    with (result / 'defects.csv').open(encoding='utf-8', newline='') as file:
        return score(truth, list(csv.DictReader(file)))


def _name_place(position: Array, distractors: Sequence[Mapping[str, Any]]) -> str:
    """What is at `position`: a distractor by its kind, or nothing special."""
    for distractor in distractors:
        outline = np.array(distractor['outline_m'])
        middle = outline.mean(axis=0)
        # Distractors are small against the radius of the wall: flat enough in the plane of their two main axes.
        axes = np.linalg.svd(outline - middle, full_matrices=False)[2][:2]
        area = Polygon((outline - middle) @ axes.T).buffer(_GATE_M)
        if area.contains(Point((position - middle) @ axes.T)):
            return str(distractor['kind'])
    return 'plain wall'


def _ratio(measured: str, true: float) -> float:
    return float(measured or 'nan') / true


def _median(values: Array) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else math.nan


def main() -> int:
    """Print the score of one result folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bag', type=Path, help='folder written by `cmml simulate`')
    parser.add_argument('result', type=Path, help='folder written by `cmml analyze`')
    options = parser.parse_args()
    found = read_score(options.bag, options.result)
    print(f'airholes of {MIN_DIAMETER_PX:.0f} px and more   {found.true_count}')
    print(f'recall                       {found.recall:.3f}')
    print(f'precision                    {found.precision:.3f}  ({found.defect_count} defects of that size)')
    print(f'area error, median           {found.area_error:.1%}  (bias {found.area_bias:+.1%})')
    print(f'volume error where MEASURED  {found.volume_error:.1%}  (bias {found.volume_bias:+.1%})')
    print(f'volume status                {_list_counts(found.statuses)}')
    print(f'false alarms                 {_list_counts(found.false_alarms)}')
    return 0


def _list_counts(counts: Counter[str]) -> str:
    return ', '.join(f'{name} {count}' for name, count in sorted(counts.items())) or 'none'


if __name__ == '__main__':
    sys.exit(main())
