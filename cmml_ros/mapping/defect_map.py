"""The same airhole seen again: one entry per physical airhole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from cmml_ros.config import MapConfig
from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.defect import Defect, Measurement, Status

Array = NDArray[np.float64]

_MIN_NORMAL_COSINE = math.cos(math.radians(45.0))  # beyond it lies another face of the structure
_LARGEST_SIZE_RATIO = 2.0  # between the diameters of two whole views of one airhole


@dataclass(frozen=True)
class MapEntry:
    """One physical airhole, fused from its observations.

    measurement: in `frame_id`, which is the map frame, or the camera frame of an airhole that could not be placed.
    """

    defect_id: int
    class_id: int
    frame_id: str
    measurement: Measurement
    confidence: float
    observations: int
    first_stamp_ns: int
    last_stamp_ns: int


class DefectMap:
    """All airholes seen so far, each counted once, with ids from 1 in the order of their appearance.

    Two views are one airhole when their positions agree within `gate_factor` deviations, their diameters within a
    factor of two and their normals within 45 degrees. In each frame the views are assigned one-to-one to what is
    known, at least total cost.
    """

    def __init__(self, config: MapConfig, map_frame: str = 'map') -> None:
        self._config = config
        self._map_frame = map_frame
        self._tracks: list[_Track] = []

    @property
    def entries(self) -> list[MapEntry]:
        """Every airhole, by id."""
        return [track.entry for track in self._tracks]

    def add(self, defects: Sequence[Defect], T_map_camera: SE3 | None, stamp_ns: int, frame_id: str) -> list[int]:
        """Ids of `defects`, all of one frame and measured in its camera frame `frame_id`.

        Without T_map_camera, or without a position on the surface, an airhole cannot be recognised again: it becomes
        an entry of its own, in `frame_id`.
        """
        measurements = [defect.measurement for defect in defects]
        placed = []
        if T_map_camera is not None:
            placed = [index for index, view in enumerate(measurements) if np.isfinite(view.position).all()]
            for index in placed:
                measurements[index] = measurements[index].transformed(T_map_camera)
        known = self._associate({index: measurements[index] for index in placed})
        ids = []
        for index, (defect, measurement) in enumerate(zip(defects, measurements, strict=True)):
            if index not in known:
                frame = self._map_frame if index in placed else frame_id
                known[index] = _Track(len(self._tracks) + 1, defect.class_id, frame, stamp_ns, index in placed)
                self._tracks.append(known[index])
            known[index].add(defect.confidence, measurement, stamp_ns)
            ids.append(known[index].defect_id)
        return ids

    def clear(self) -> None:
        """Forget everything; ids start from 1 again."""
        self._tracks.clear()

    def _associate(self, views: dict[int, Measurement]) -> dict[int, _Track]:
        """Which known airhole each view continues, by the key of the view; views of unknown ones are left out."""
        tracks = [track for track in self._tracks if track.placed]
        if not tracks or not views:
            return {}
        reach_m = sum(
            max(self._gate_m(measurement) + _radius_m(measurement) for measurement in measurements)
            for measurements in (views.values(), [track.measurement for track in tracks])
        )
        known = cKDTree([track.measurement.position for track in tracks])
        nearby = cKDTree([view.position for view in views.values()]).query_ball_tree(known, reach_m)
        costs = {
            (row, column): cost
            for row, view in enumerate(views.values())
            for column in nearby[row]
            if (cost := self._cost(view, tracks[column].measurement)) <= 1.0
        }
        # Columns: the known airholes within reach, then one "not seen before" per view, as dear as a match at the gate.
        reached = sorted({column for _, column in costs})
        matrix = np.full((len(views), len(reached) + len(views)), np.inf)
        matrix[:, len(reached) :][np.diag_indices(len(views))] = 1.0
        for (row, column), cost in costs.items():
            matrix[row, reached.index(column)] = cost
        keys = list(views)
        rows, columns = linear_sum_assignment(matrix)
        return {
            keys[row]: tracks[reached[column]]
            for row, column in zip(rows, columns, strict=True)
            if column < len(reached)
        }

    def _gate_m(self, *measurements: Measurement) -> float:
        """Largest distance at which views can be one airhole, from all their uncertainties and the robot's."""
        variance = self._config.gate_m**2 + sum(np.nan_to_num(view.position_std_m) ** 2 for view in measurements)
        return float(self._config.gate_factor * math.sqrt(variance))

    def _cost(self, view: Measurement, known: Measurement) -> float:
        """0 for a perfect match, 1 at the gate."""
        gate_m = self._gate_m(view, known)
        distance_m = float(np.linalg.norm(view.position - known.position))
        if view.normal @ known.normal < _MIN_NORMAL_COSINE:
            return math.inf
        size_cost = 0.0
        if Status.CUT_BY_BORDER in (view.area_status, known.area_status):
            gate_m += max(_radius_m(view), _radius_m(known))  # the centre of what the border left is as far off as that
        else:
            ratio = view.equivalent_diameter_m / known.equivalent_diameter_m
            size_cost = abs(math.log(ratio)) / math.log(_LARGEST_SIZE_RATIO) if ratio > 0 else 0.0
        return (distance_m / gate_m) ** 2 + size_cost**2


def _radius_m(measurement: Measurement) -> float:
    """From the centre to the farthest known point of the rim."""
    return float(np.linalg.norm(measurement.outline - measurement.position, axis=1).max(initial=0.0))


class _Track:
    """The observations of one airhole, folded into one measurement."""

    def __init__(self, defect_id: int, class_id: int, frame_id: str, stamp_ns: int, placed: bool) -> None:
        self.defect_id = defect_id
        self.placed = placed
        self.measurement: Measurement
        self._class_id = class_id
        self._frame_id = frame_id
        self._first_stamp_ns = self._last_stamp_ns = stamp_ns
        self._observations = 0
        self._confidence_sum = 0.0
        self._place = _Average('area_status', 'position_std_m', ('position', 'normal'))
        self._area = _Average('area_status', 'area_std_m2', ('area_m2', 'major_axis_m', 'minor_axis_m'))
        self._depth = _Average('volume_status', 'depth_max_std_m', ('depth_max_m',))
        self._volume = _Average('volume_status', 'volume_std_m3', ('volume_m3', 'volume_upper_bound_m3'))

    @property
    def entry(self) -> MapEntry:
        return MapEntry(
            self.defect_id,
            self._class_id,
            self._frame_id,
            self.measurement,
            self._confidence_sum / self._observations,
            self._observations,
            self._first_stamp_ns,
            self._last_stamp_ns,
        )

    def add(self, confidence: float, view: Measurement, stamp_ns: int) -> None:
        self._observations += 1
        self._confidence_sum += confidence
        self._first_stamp_ns = min(self._first_stamp_ns, stamp_ns)
        self._last_stamp_ns = max(self._last_stamp_ns, stamp_ns)
        averages = (self._place, self._area, self._depth, self._volume)
        for average in averages:
            average.add(view)
        fused = dataclasses.replace(
            self._volume.best,
            area_status=self._area.best.area_status,
            outline=self._area.best.outline,
            point_count=self._volume.point_count,
            **{name: value for average in averages for name, value in average.means().items()},
        )
        self.measurement = dataclasses.replace(
            fused,
            normal=fused.normal / np.linalg.norm(fused.normal),
            equivalent_diameter_m=2.0 * math.sqrt(fused.area_m2 / math.pi),
        )


class _Average:
    """Mean of some fields, weighted by information (1 / variance), over the views of the best status seen so far.

    The deviation of the mean takes the errors of the views as fully correlated: rim, range bias and calibration are
    the same in each view and do not average out, and a view does not say what share of its deviation they are.
    """

    def __init__(self, status_field: str, std_field: str, fields: tuple[str, ...]) -> None:
        self._status_field = status_field
        self._std_field = std_field
        self._fields = (*fields, std_field)
        self._best: Measurement | None = None
        self._best_weight = 0.0
        self._restart()

    def add(self, view: Measurement) -> None:
        status = getattr(view, self._status_field)
        if self._best is None or status < getattr(self._best, self._status_field):
            self._restart()
        elif status > getattr(self._best, self._status_field):
            return
        std = getattr(view, self._std_field)
        weight = std**-2 if 0.0 < std < math.inf else 1.0  # far below any real one: decides only among its like
        if weight > self._best_weight:
            self._best, self._best_weight = view, weight
        self.point_count += view.point_count
        for name in self._fields:
            value = np.asarray(getattr(view, name), dtype=np.float64)
            known = np.isfinite(value)
            self._sums[name] = self._sums[name] + np.where(known, weight * value, 0.0)
            self._weights[name] = self._weights[name] + weight * known

    @property
    def best(self) -> Measurement:
        """The view with the smallest deviation among those of the best status."""
        assert self._best is not None
        return self._best

    def means(self) -> dict[str, Any]:
        with np.errstate(invalid='ignore'):  # 0 / 0: not known in any view
            means = {name: self._sums[name] / self._weights[name] for name in self._fields}
        return {name: mean if mean.ndim else float(mean) for name, mean in means.items()}

    def _restart(self) -> None:
        self.point_count = 0
        self._best_weight = 0.0
        self._sums: dict[str, Array] = dict.fromkeys(self._fields, np.zeros(()))
        self._weights: dict[str, Array] = dict.fromkeys(self._fields, np.zeros(()))
