"""The thread that has frames inspected: the newest ones, their place in the map, their publication."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from cmml_ros.errors import CmmlError
from cmml_ros.mapping.closeup import CloseupMaker
from cmml_ros.mapping.defect_map import DefectMap, MapSnapshot
from cmml_ros.nodes.complaints import Complaints
from cmml_ros.nodes.publishers import InspectionPublishers
from cmml_ros.stream.assembler import Assembler

if TYPE_CHECKING:  # the inspector brings torch, which takes seconds to import
    from cmml_ros.inspector import Inspection, Inspector

_MAP_PERIOD_S = 1.0
# Telling the map takes at most so much of the time: a first message of 10,000 airholes takes 2 s.
_MAP_SHARE = 0.1
_STOP_TIMEOUT_S = 2.0


class InspectionWorker:
    """Owns the map while it runs; other threads ask for a reset, and for a `snapshot`.

    What is known of an airhole is inferred when the map is told or saved, not after every frame.

    log: the node's logger. on_result: called in the worker's thread after each result, with the wall time of each stage
    there, in the order of the pipeline.
    """

    def __init__(
        self,
        inspector: Inspector,
        assembler: Assembler,
        defect_map: DefectMap,
        outputs: InspectionPublishers,
        log: Any,
        complaints: Complaints,
        on_result: Callable[[Inspection, dict[str, float]], None],
    ) -> None:
        self._inspector = inspector
        self._assembler = assembler
        self._map = defect_map
        self._map_lock = threading.Lock()
        self._map_due_s = math.inf
        self._telling_s = 0.0  # how long the map took to tell last time
        self._outputs = outputs
        self._log = log
        self._complaints = complaints
        self._on_result = on_result
        self._latest_stamp_ns = 0
        self._begun: deque[tuple[Future[Inspection], float]] = deque()  # in work, and how long conversion took
        self._wake, self._reset, self._release, self._stop = (threading.Event() for _ in range(4))
        self._thread = threading.Thread(target=self._work, name='inspector', daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There may be a frame."""
        self._wake.set()

    def snapshot(self) -> MapSnapshot:
        """The map with all frames that are done, from any thread."""
        with self._map_lock:
            return self._map.snapshot()

    def reset(self) -> None:
        """Clear map and markers before the next frame."""
        self._reset.set()
        self._wake.set()

    def release(self) -> None:
        """Nothing comes any more: images that have a cloud wait no longer."""
        self._release.set()
        self._wake.set()

    def stop(self) -> None:
        """Let the frames in work finish."""
        self._stop.set()
        self._wake.set()
        self._thread.join(_STOP_TIMEOUT_S)
        if self._thread.is_alive():
            self._log.warning(f'the frames in work are given up: they took more than {_STOP_TIMEOUT_S:.0f} s')

    def _work(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(_MAP_PERIOD_S)
            self._wake.clear()
            self._guard(self._turn)
        while self._begun:
            self._guard(self._finish_first)

    def _guard(self, step: Callable[[], None]) -> None:
        """One frame is lost, never the node."""
        try:
            step()
        except Exception as error:
            if self._stop.is_set():
                return  # the publishers may be gone
            what = str(error) if isinstance(error, CmmlError) else traceback.format_exc()
            self._log.error(f'one frame lost: {what}', throttle_duration_sec=1.0)
            self._assembler.drop(1, f'inspection failed: {type(error).__name__}')
            self._wake.set()  # for the frames beside it

    def _turn(self) -> None:
        while self._begun and self._begun[0][0].done():
            self._finish_first()
        if self._reset.is_set():
            if self._begun:
                return  # they wake this thread again
            self._reset.clear()
            self._clear_map()
        if self._release.is_set():
            self._release.clear()
            self._assembler.release()
        self._begin_newest()
        while self._assembler.errors:
            self._complaints.add(self._assembler.errors.popleft())
        if time.monotonic() >= self._map_due_s:
            self._publish_map()

    def _begin_newest(self) -> None:
        """Give the inspector what it has room for: what waits for room would grow old."""
        room = self._inspector.parallel - len(self._begun)
        if room:
            started_s = time.perf_counter()
            frames = self._assembler.take(newest=room)
            convert_s = (time.perf_counter() - started_s) / max(len(frames), 1)
            for frame in frames:
                inspected = self._inspector.begin(frame)
                self._begun.append((inspected, convert_s))
                inspected.add_done_callback(lambda _: self._wake.set())

    def _finish_first(self) -> None:
        inspected, convert_s = self._begun.popleft()
        inspection = inspected.result()
        frame = inspection.frame
        finished_at = time.perf_counter()
        if frame.stamp_ns < self._latest_stamp_ns:
            self._clear_map()  # time jumped back: another run begins
        self._latest_stamp_ns = frame.stamp_ns
        if frame.T_map_camera is None:
            ids = list(range(len(inspection.defects)))
            map_ids = set(ids)
        else:
            make_closeup = CloseupMaker(frame, inspection.T_camera_lidar).make
            # Without a position it would be another airhole in each frame, and a day of them fill the memory.
            placed = [
                number for number, one in enumerate(inspection.defects) if np.isfinite(one.measurement.position).all()
            ]
            defects = [inspection.defects[number] for number in placed]
            with self._map_lock:
                numbers = self._map.add(
                    defects, frame.T_map_camera, frame.stamp_ns, frame.frame_id, frame.camera, make_closeup
                )
                map_ids = self._map.placed_ids
            ids = [0] * len(inspection.defects)
            for number, defect_id in zip(placed, numbers, strict=True):
                ids[number] = defect_id
            self._map_due_s = min(self._map_due_s, time.monotonic() + max(_MAP_PERIOD_S, self._telling_s / _MAP_SHARE))
        mapped_at = time.perf_counter()
        self._outputs.publish(inspection, ids, map_ids)
        published_at = time.perf_counter()
        ends = {'map': mapped_at - finished_at, 'publish': published_at - mapped_at}
        self._on_result(inspection, {'convert': convert_s, **inspection.timings_s, **ends})

    def _publish_map(self) -> None:
        self._map_due_s = math.inf
        started_s = time.monotonic()
        self._outputs.publish_map(self.snapshot().placed, self._latest_stamp_ns, self._inspector.model_id)
        self._telling_s = time.monotonic() - started_s

    def _clear_map(self) -> None:
        with self._map_lock:
            self._map.clear()
        self._telling_s = 0.0
        self._outputs.clear(self._latest_stamp_ns, self._inspector.model_id)
