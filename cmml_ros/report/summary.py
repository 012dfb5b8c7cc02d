"""What one analysis did, apart from the airholes themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmml_ros.config import Scalar
from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.mapping.grading import Grading
from cmml_ros.measurement.defect import Status
from cmml_ros.report.calibration import Calibration
from cmml_ros.report.tables import format_number
from cmml_ros.version import read_version


@dataclass(frozen=True)
class Summary:
    """The facts of one analysis: the same bag, config and model give the same, but for `timings_s`.

    frames: inspected. airholes: rows of defects.csv. unplaced: those of them without a place in the map, one for each
    frame that shows them. counts: messages and frames received and lost, by reason. errors: messages and frames that
    could not be used, by what was wrong. incomplete: inspected frames by why they lack a cloud, a transform or the map.
    fault: why the bag could not be read to its end; empty when it was. range_noise_m: median over the airholes; NaN
    when none has points. timings_s: wall time by stage. first_stamp_ns, last_stamp_ns: of the inspected images. camera:
    its picture size. largest_correction_m: by how much the map corrected the pose of the robot. calibration: None
    without a frame.
    """

    bag: str
    topics: dict[str, str]
    model_id: str
    config: dict[str, Scalar]
    frames: int
    frames_with_cloud: int
    frames_in_map: int
    counts: dict[str, int]
    errors: dict[str, int]
    incomplete: dict[str, int]
    airholes: int
    warnings: tuple[str, ...]
    fault: str
    range_noise_m: float
    timings_s: dict[str, float]
    first_stamp_ns: int = 0
    last_stamp_ns: int = 0
    camera: str = ''
    largest_correction_m: float = 0.0
    calibration: Calibration | None = None
    unplaced: int = 0

    def document(self, entries: Sequence[MapEntry], grading: Grading) -> dict[str, Any]:
        """`summary.json`: this and the counts of the airholes, ready for JSON, NaN as null."""
        facts = vars(self).copy()
        calibration = facts.pop('calibration')
        range_noise_m = facts.pop('range_noise_m')
        timings_s = facts.pop('timings_s')
        correction_m = facts.pop('largest_correction_m')
        return {
            'package_version': read_version(),
            **facts,
            'calibration': calibration and calibration.document(),
            'range_noise_mm': _number(range_noise_m * 1e3),
            'area_status': count_statuses([entry.measurement.area_status for entry in entries]),
            'volume_status': count_statuses([entry.measurement.volume_status for entry in entries]),
            'area_sum_mm2': _number(sum_areas_m2(entries) * 1e6),
            'largest_correction_mm': _number(correction_m * 1e3),
            'grading': _describe_grading(grading),
            'budgets': list_budgets(entries),
            'timings_s': timings_s,
        }


def sum_areas_m2(entries: Sequence[MapEntry]) -> float:
    """Area of all airholes together, m2, without those of unknown area; NaN where no area is known, 0 for none."""
    areas_m2 = [entry.measurement.area_m2 for entry in entries]
    return float(np.nansum(areas_m2)) if not areas_m2 or np.isfinite(areas_m2).any() else math.nan


def list_budgets(entries: Sequence[MapEntry]) -> dict[str, dict[str, dict[str, float | None]]]:
    """By defect id and quantity: the standard deviation from each origin, in mm2, mm and mm3.

    Of an airhole seen more than once: those of its most complete view, before the views were fused.
    """
    budgets: dict[str, dict[str, dict[str, float | None]]] = {}
    for entry in entries:
        found = entry.measurement
        of_quantity = {
            name: {origin: _number(std * unit) for origin, std in budget.stds.items()}
            for name, budget, unit in (
                ('area_mm2', found.area_budget, 1e6),
                ('depth_max_mm', found.depth_budget, 1e3),
                ('volume_mm3', found.volume_budget, 1e9),
            )
            if budget is not None
        }
        if of_quantity:
            budgets[str(entry.defect_id)] = of_quantity
    return budgets


def count_statuses(statuses: Sequence[Status]) -> dict[str, int]:
    """How often each status occurs, all of them named."""
    counts = Counter(statuses)
    return {status.name: counts[status] for status in Status}


def _describe_grading(grading: Grading) -> dict[str, Any]:
    return {
        'reason': grading.reason,
        'surface': grading.surface.kind if grading.surface else '',
        'inspected_m2': _number(grading.inspected_m2),
        'share': _number(grading.share),
        'share_std': _number(grading.share_std),
        'share_sampling_std': _number(grading.share_sampling_std),
        'standards': [
            {
                'title': one.standard.title,
                'edition': one.standard.edition,
                'best': one.best,
                'test_areas': int(one.areas.complete.sum()),
                'classes': [
                    {'name': verdict.name, 'verdict': verdict.verdict.value, 'reason': verdict.reason}
                    for verdict in one.classes
                ],
            }
            for one in grading.grades
        ],
    }


def _number(value: float) -> float | None:
    text = format_number(value)
    return float(text) if text else None
