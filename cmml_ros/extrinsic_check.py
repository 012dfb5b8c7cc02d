"""The check of the extrinsic between camera and range sensor, out of the way of the frames."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from cmml_ros.errors import CmmlError, PoseError
from cmml_ros.frame import Frame
from cmml_ros.geometry.transforms import SE3
from cmml_ros.model.registration import Registrar, Registration

# The frames go first; a quarter of a core is left for the check where they take everything.
_NICENESS = 5
# So soon after one check the next is begun while the extrinsic is in doubt.
_DOUBT_PERIOD_S = 2.0


class ExtrinsicCheck:
    """Compares the given extrinsic with the data every `period_s` of sensor time; zero is never.

    A check takes several times as long as a frame, so it runs in a thread of its own while the frames go on. Its result
    belongs to the first frame that is half a period later, live and offline alike, so that what comes out does not
    depend on the speed of the machine; what a recording ends before, `finish` tells.

    in_doubt: set by who judges the results: whether to check again soon.
    """

    def __init__(self, registrar: Registrar, period_s: float) -> None:
        self._registrar = registrar
        self._period_s = period_s
        self.in_doubt = False
        # One thread for all checks: the allocator keeps what a thread has freed for that thread, tens of megabytes.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix='extrinsic check')
        self._started_ns: int | None = None
        self._running: tuple[Frame, Future[Registration | PoseError]] | None = None

    def results(self, frame: Frame, T_camera_lidar: SE3) -> list[tuple[Frame, Registration | PoseError]]:
        """What has become known by this frame: the frames that were checked, and what they say."""
        period_s = min(self._period_s, _DOUBT_PERIOD_S) if self.in_doubt else self._period_s
        known = [] if 0.0 <= self._age_s(frame) < 0.5 * period_s else self.finish()
        if period_s > 0.0 and not 0.0 <= self._age_s(frame) < period_s:
            self._started_ns = frame.stamp_ns
            self._running = frame, self._thread.submit(_check, self._registrar, frame, T_camera_lidar)
        return known

    def finish(self) -> list[tuple[Frame, Registration | PoseError]]:
        """The same for no further frame: what is under way is waited for."""
        return [] if self._running is None else [self._take()]

    def _take(self) -> tuple[Frame, Registration | PoseError]:
        """The frame that is being checked and what it says, when the check is done; raises what it did not expect."""
        assert self._running is not None
        (frame, future), self._running = self._running, None
        return frame, future.result()

    def _age_s(self, frame: Frame) -> float:
        """Since the latest check was begun, in sensor time."""
        return math.inf if self._started_ns is None else (frame.stamp_ns - self._started_ns) * 1e-9


def _check(registrar: Registrar, frame: Frame, T_camera_lidar: SE3) -> Registration | PoseError:
    """The work of the thread."""
    with suppress(AttributeError, OSError):  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    assert frame.cloud is not None
    try:
        return registrar.refine(frame.image, frame.camera, frame.cloud, T_camera_lidar)
    except CmmlError as error:  # whatever it is, it is no reason to lose a frame
        return PoseError(str(error))  # the one raised holds its frames, and all that they worked on
