"""The figure of the README: which airhole can be measured by which sensor, from how far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cmml_ros.evaluation.measurement import Sample, assess, group
from cmml_ros.measurement.defect import Status

# Obliquer views are another question, answered by the tables.
_MAX_INCIDENCE_DEG = 40.0


def draw_measurability(samples: Sequence[Sample], path: Path) -> None:
    """Writes a PNG: one panel per sensor, share of airholes whose volume is MEASURED, by diameter and distance.

    The number in a cell is the median of the claimed deviation of the volume.
    """
    chosen = [s for s in samples if s.truth is not None and s.kind == 'plane' and s.incidence_deg <= _MAX_INCIDENCE_DEG]
    panels = group(chosen, 'sensor')
    figure = Figure(figsize=(2.6 * len(panels) + 1.0, 3.4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, ((name,), part) in zip(axes, panels.items(), strict=True):
        cells = group(part, 'diameter_m', 'distance_m')
        diameters, distances = (sorted({cell[i] for cell in cells}) for i in (0, 1))
        shares = np.full((len(diameters), len(distances)), np.nan)
        for (diameter, distance), samples_there in cells.items():
            row, column = diameters.index(diameter), distances.index(distance)
            measured = [s.measurement.volume_status is Status.MEASURED for s in samples_there]
            shares[row, column] = np.mean(measured)
            claimed = assess(samples_there, 'volume').claimed
            if np.isfinite(claimed):
                colour = 'white' if shares[row, column] > 0.6 else 'black'
                axis.text(column, row, f'{claimed:.0%}', ha='center', va='center', fontsize=8, color=colour)
        image = axis.imshow(shares, vmin=0.0, vmax=1.0, cmap='Greens', origin='lower', aspect='auto')
        axis.set_title(name.replace('_', ' '), fontsize=10)
        axis.set_xticks(range(len(distances)), [f'{distance:g}' for distance in distances])
        axis.set_yticks(range(len(diameters)), [f'{diameter * 1e3:g}' for diameter in diameters])
        axis.set_xlabel('distance (m)')
    axes[0].set_ylabel('diameter of the airhole (mm)')
    figure.colorbar(image, ax=axes, label='share with a MEASURED volume')
    figure.suptitle('Volume: share MEASURED (colour), and the deviation it states (number)', fontsize=11)
    figure.savefig(path, dpi=110)
