"""How far the rims that a network draws lie from the true ones: what to set when its weights change.

Every rim states a deviation. What it states goes with the weights; here it is compared with the masks of simulated
airholes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.measurement.rim import find_perimeter

Array = NDArray[np.float64]

NORMAL_95 = 1.96
_GROUPS = 3


@dataclass(frozen=True)
class RimOffset:
    """A mask against the true one of its airhole, in pixels.

    diameter_px: true. offset_px: how much too far out its rim lies, mean all around: difference of the areas over the
    true perimeter. stated_px: the deviation that its maker states.
    """

    diameter_px: float
    offset_px: float
    stated_px: float

    @classmethod
    def between(cls, true: InstanceMask, found: InstanceMask) -> RimOffset:
        """Of a mask that was found."""
        return cls(
            true.equivalent_diameter_px,
            (found.area_px - true.area_px) / find_perimeter(true),
            found.boundary_std_px,
        )


def format_rim_offsets(offsets: Sequence[RimOffset]) -> str:
    """Markdown: offsets by stated deviation and by diameter, and the one deviation that would suit all of them."""
    if len(offsets) < _GROUPS:
        return f'{len(offsets)} rims are too few to calibrate anything.'
    offset, stated, diameter = np.array([(o.offset_px, o.stated_px, o.diameter_px) for o in offsets]).T
    lines = [
        f'Rims of {len(offsets)} masks against the true ones, px; positive: too far out. claimed: median of the stated '
        'deviation.',
        '',
        '| rims | median | mean | std | 5 % | 95 % | claimed | in 95 % |',
        '|---' * 8 + '|',
        _format_row('all', offset, stated),
    ]
    for name, values in (('stated', stated), ('diameter', diameter)):
        for part in np.array_split(np.argsort(values, kind='stable'), _GROUPS):
            title = f'{name} {values[part].min():.2g} to {values[part].max():.2g} px'
            lines.append(_format_row(title, offset[part], stated[part]))
    holding = float(np.quantile(np.abs(offset), 0.95, method='higher')) / NORMAL_95
    lines += [
        '',
        f'Rims state {np.median(stated):.2f} px in the median (model/rim_edge.py). If all stated the same, 95 % of the '
        f'intervals would hold with {holding:.2f} px.',
    ]
    return '\n'.join(lines)


def _format_row(name: str, offset_px: Array, stated_px: Array) -> str:
    low, high = np.quantile(offset_px, [0.05, 0.95])
    figures = [np.median(offset_px), offset_px.mean(), offset_px.std(), low, high]
    held = float((np.abs(offset_px) <= NORMAL_95 * stated_px).mean())
    cells = [f'{name} ({len(offset_px)})', *(f'{figure:+.2f}' for figure in figures), f'{np.median(stated_px):.2f}']
    return f'| {" | ".join([*cells, f"{held:.0%}"])} |'
