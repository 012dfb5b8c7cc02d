"""A bag written by a thread of its own, behind a bounded queue, that leaves room on the disk."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cmml_ros.bag.writer import BagWriter
from cmml_ros.errors import BagError

_FLUSH_PERIOD_S = 1.0
_DISK_CHECK_BYTES = 8_000_000  # as much as may be written between two looks at the disk


@dataclass(frozen=True)
class RecordingState:
    """How a recording is doing.

    written, lost: messages by topic. fault: why nothing is written any more; empty while all is well.
    """

    written: dict[str, int]
    bytes: int
    waiting_bytes: int
    files: int
    free_bytes: int
    lost: dict[str, int]
    fault: str

    @property
    def messages(self) -> int:
        """Messages written so far."""
        return sum(self.written.values())


class Recording:
    """Writes to `writer` until `stop`, or until a write fails or less than `reserve_bytes` are free on the disk.

    `write` and `add_topic` only enqueue; what finds no room in `queue_bytes`, or comes after the end, is lost and
    counted. At most `reserve_bytes` - 8 MB and what the queue holds are touched of the reserve.
    """

    def __init__(self, writer: BagWriter, queue_bytes: int, reserve_bytes: int) -> None:
        self.path = writer.path
        self._writer = writer
        self._queue_bytes = queue_bytes
        self._reserve_bytes = reserve_bytes
        # The writer belongs to the thread: others only queue what the thread has to do, and its size.
        self._queue: queue.SimpleQueue[tuple[Callable[[], None], int] | None] = queue.SimpleQueue()
        self._queued = self._done = 0  # bytes; each is counted by one thread only, the difference waits
        self._written: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._fault = ''
        self._free_bytes = shutil.disk_usage(self.path).free
        self._thread = threading.Thread(target=self._run, name='writer')
        self._thread.start()

    def add_topic(self, name: str, type_name: str, *, latched: bool, reliable: bool) -> None:
        """Declare a topic before its first message."""
        self._queue.put((partial(self._writer.add_topic, name, type_name, latched=latched, reliable=reliable), 0))

    def register(self, definitions: dict[str, Any]) -> None:
        """Learn message types before a topic of theirs is declared."""
        self._queue.put((partial(self._writer.register, definitions), 0))

    def write(self, topic: str, data: bytes, stamp_ns: int) -> bool:
        """Whether there was room for the message."""
        if self._fault or self._queued - self._done + len(data) > self._queue_bytes:
            self._lost[topic] += 1
            return False
        self._queued += len(data)
        self._queue.put((partial(self._write, topic, data, stamp_ns), len(data)))
        return True

    def stop(self) -> RecordingState:
        """Write what waits, close the bag with index and metadata."""
        self._queue.put(None)
        self._thread.join()
        return self.state()

    def state(self) -> RecordingState:
        """A snapshot, from any thread."""
        return RecordingState(
            written=dict(sorted(self._written.items())),
            bytes=self._writer.written_bytes,
            waiting_bytes=max(self._queued - self._done, 0),
            files=self._writer.file_count,
            free_bytes=self._free_bytes,
            lost=dict(sorted(self._lost.items())),
            fault=self._fault,
        )

    def _run(self) -> None:
        flushed_s = time.monotonic()
        unchecked = _DISK_CHECK_BYTES
        ended = False
        while not ended:
            try:
                item = self._queue.get(timeout=_FLUSH_PERIOD_S)
            except queue.Empty:
                item = (lambda: None, 0)
            if item is None:
                ended, item = True, (self._writer.close, 0)
            action, size = item
            try:
                if not self._fault or ended:
                    action()
                unchecked += size
                if time.monotonic() - flushed_s >= _FLUSH_PERIOD_S or unchecked >= _DISK_CHECK_BYTES:
                    self._writer.flush()
                    flushed_s, unchecked = time.monotonic(), 0
                    self._check_disk()
            except (BagError, OSError) as error:  # OSError: the folder is gone
                self._fault = self._fault or str(error)
            self._done += size

    def _write(self, topic: str, data: bytes, stamp_ns: int) -> None:
        try:
            self._writer.write(topic, data, stamp_ns)
        except BagError:
            self._lost[topic] += 1
            raise
        self._written[topic] += 1

    def _check_disk(self) -> None:
        self._free_bytes = shutil.disk_usage(self.path).free
        if self._free_bytes < self._reserve_bytes and not self._fault:
            self._writer.close()
            free_mb, reserve_mb = self._free_bytes / 1e6, self._reserve_bytes / 1e6
            self._fault = (
                f'recording has stopped and the bag is closed: {free_mb:.0f} MB are free on the disk of {self.path}, '
                f'{reserve_mb:.0f} MB are kept in reserve; free some space and start again'
            )
