"""How far the rims that a network draws lie from the true ones: what to set when its weights change.

Every rim has a deviation of its own beside what its softness tells. It goes with the weights; here it is read off the
masks of simulated airholes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.measurement.rim import find_boundary_std, find_perimeter, find_softness

Array = NDArray[np.float64]

NORMAL_95 = 1.96
_GROUPS = 3


@dataclass(frozen=True)
class RimOffset:
    """A mask against the true one of its airhole, in pixels.

    diameter_px: true. offset_px: how much too far out its rim lies, mean all around: difference of the areas over the
    true perimeter. softness_px: how much farther out one more in the log-odds puts it. from_softness_px, told_px: the
    deviation that its softness gives, and the one its maker adds.
    """

    diameter_px: float
    offset_px: float
    softness_px: float
    from_softness_px: float
    told_px: float

    @classmethod
    def between(cls, true: InstanceMask, found: InstanceMask) -> RimOffset:
        """Of a mask that was found."""
        perimeter_px = find_perimeter(found)
        softness_px = find_softness(found, perimeter_px)
        combined_px = find_boundary_std(softness_px, perimeter_px, found.boundary_std_px)
        return cls(
            true.equivalent_diameter_px,
            (found.area_px - true.area_px) / find_perimeter(true),
            softness_px,
            math.sqrt(max(combined_px**2 - found.boundary_std_px**2, 0.0)),
            found.boundary_std_px,
        )


def format_rim_offsets(offsets: Sequence[RimOffset]) -> str:
    """Markdown: offsets by softness and by diameter, and the constant of `model/instances.py` that suits them."""
    if len(offsets) < _GROUPS:
        return f'{len(offsets)} rims are too few to calibrate anything.'
    offset, softness, diameter, soft_std, told = np.array(
        [(o.offset_px, o.softness_px, o.diameter_px, o.from_softness_px, o.told_px) for o in offsets]
    ).T
    stated = np.hypot(soft_std, told)
    lines = [
        f'Rims of {len(offsets)} masks against the true ones, px; positive: too far out. claimed: median of the stated '
        'deviation.',
        '',
        '| rims | median | mean | std | 5 % | 95 % | claimed | in 95 % |',
        '|---' * 8 + '|',
        _format_row('all', offset, stated),
    ]
    for name, values in (('softness', softness), ('diameter', diameter)):
        for part in np.array_split(np.argsort(values, kind='stable'), _GROUPS):
            title = f'{name} {values[part].min():.2g} to {values[part].max():.2g} px'
            lines.append(_format_row(title, offset[part], stated[part]))
    likely, holding = find_likely_std(offset, soft_std), find_holding_std(offset, soft_std)
    lines += [
        '',
        f'Beside what softness tells, rims state {np.median(told):.2f} px in the median (model/rim_edge.py). If all '
        f'had the same, {likely:.2f} would be the most likely, and with {holding:.2f} 95 % of the intervals would hold',
    ]
    return '\n'.join(lines)


def find_likely_std(offsets_px: Array, known_std_px: Array) -> float:
    """Deviation of greatest likelihood that, beside each one's own, offsets about zero have; 0 when they need none."""

    def pull(variance: float) -> float:
        total = known_std_px**2 + variance
        return float(np.sum((offsets_px**2 - total) / total**2))

    if pull(0.0) <= 0.0:
        return 0.0
    return math.sqrt(float(brentq(pull, 0.0, float(np.max(offsets_px**2)))))


def find_holding_std(offsets_px: Array, known_std_px: Array) -> float:
    """Least deviation that makes 95 % of the intervals about the offsets hold zero, beside each one's own."""
    needed = np.maximum((offsets_px / NORMAL_95) ** 2 - known_std_px**2, 0.0)
    return math.sqrt(float(np.quantile(needed, 0.95, method='higher')))


def _format_row(name: str, offset_px: Array, stated_px: Array) -> str:
    low, high = np.quantile(offset_px, [0.05, 0.95])
    figures = [np.median(offset_px), offset_px.mean(), offset_px.std(), low, high]
    held = float((np.abs(offset_px) <= NORMAL_95 * stated_px).mean())
    cells = [f'{name} ({len(offset_px)})', *(f'{figure:+.2f}' for figure in figures), f'{np.median(stated_px):.2f}']
    return f'| {" | ".join([*cells, f"{held:.0%}"])} |'
