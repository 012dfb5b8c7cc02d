"""What a live run amounts to so far: for the diagnostics and for a report."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cmml_ros.config import InspectorConfig, flatten_config
from cmml_ros.mapping.defect_map import MapSnapshot
from cmml_ros.report.calibration import Calibration
from cmml_ros.report.summary import Summary

if TYPE_CHECKING:  # the inspector brings torch, which takes seconds to import
    from cmml_ros.inspector import Inspection

_NOISES_KEPT = 1000


class RunStatistics:
    """Grows with each result, in the worker's thread; bounded however long the run is."""

    def __init__(self) -> None:
        self.results = 0
        self.latest: Inspection | None = None
        self.latest_age_s = math.nan
        self.latest_timings_s: dict[str, float] = {}
        self._frames: Counter[str] = Counter()
        self._calibration: Calibration | None = None
        self._range_noises_m: deque[float] = deque(maxlen=_NOISES_KEPT)

    def add(self, inspection: Inspection, age_s: float, timings_s: dict[str, float]) -> None:
        """One result, `age_s` after its picture was taken; timings_s: wall time of all stages that made it."""
        frame = inspection.frame
        self.results += 1
        self.latest, self.latest_age_s, self.latest_timings_s = inspection, age_s, timings_s
        self._frames['with cloud'] += frame.cloud is not None
        self._frames['in map'] += frame.T_map_camera is not None
        self._calibration = Calibration.after(
            self._calibration, frame.camera, inspection.T_camera_lidar, inspection.calibration
        )
        noises_m = [defect.measurement.range_noise_m for defect in inspection.defects]
        self._range_noises_m.extend(noise_m for noise_m in noises_m if math.isfinite(noise_m))

    def summary(
        self,
        topics: Mapping[str, str],
        config: InspectorConfig,
        counts: Mapping[str, int],
        model_id: str,
        snapshot: MapSnapshot,
    ) -> Summary:
        """The facts for a report. topics: resolved name by input. counts: of the Assembler."""
        noises_m = list(self._range_noises_m)
        cameras = dict.fromkeys(f'{view.camera.width} x {view.camera.height} px' for view in snapshot.views)
        return Summary(
            bag='live',
            topics={name: topics[name] for name in ('image', 'camera_info', 'points')},
            model_id=model_id,
            config=flatten_config(config),
            frames=self.results,
            frames_with_cloud=self._frames['with cloud'],
            frames_in_map=self._frames['in map'],
            counts=dict(sorted(counts.items())),
            errors={},
            incomplete={},
            airholes=len(snapshot.entries),
            warnings=(),
            fault='',
            range_noise_m=float(np.median(noises_m)) if noises_m else math.nan,
            timings_s={},
            first_stamp_ns=snapshot.first_stamp_ns,
            last_stamp_ns=snapshot.last_stamp_ns,
            camera=', '.join(cameras),
            largest_correction_m=snapshot.largest_correction_m,
            calibration=self._calibration,
            unplaced=len(snapshot.entries) - len(snapshot.placed),
        )
