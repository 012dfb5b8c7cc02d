"""Only the messages around an event: what is large waits in memory until it is known whether something was found."""

from __future__ import annotations

import struct
from collections import deque
from typing import NamedTuple


class HeldMessage(NamedTuple):
    """One serialized message and when it was received."""

    topic: str
    data: bytes
    received_ns: int


class EventFilter:
    """Holds messages by acquisition stamp, and gives those within `window_s` of an event, before and after.

    Results come later than the pictures they are about: a message is held until the newest is `hold_s` past it, or
    until more than `hold_bytes` wait; then it is forgotten and counted in `forgotten`. Time that jumps back empties it.
    """

    def __init__(self, window_s: float, hold_s: float, hold_bytes: int) -> None:
        self.forgotten = 0
        self._window_ns = round(window_s * 1e9)
        self._hold_ns = round(hold_s * 1e9)
        self._hold_bytes = hold_bytes
        self._held: deque[tuple[int, HeldMessage]] = deque()
        self._events_ns: deque[int] = deque()
        self._bytes = 0
        self._newest_ns = 0

    def add(self, message: HeldMessage, stamp_ns: int) -> list[HeldMessage]:
        """The message itself when an event near it is known already, else nothing."""
        if stamp_ns < self._newest_ns - self._hold_ns:
            self._clear()
        self._newest_ns = max(self._newest_ns, stamp_ns)
        while self._events_ns and self._events_ns[0] < self._newest_ns - self._hold_ns - self._window_ns:
            self._events_ns.popleft()
        if any(abs(stamp_ns - event_ns) <= self._window_ns for event_ns in self._events_ns):
            return [message]
        self._held.append((stamp_ns, message))
        self._bytes += len(message.data)
        while self._held and (self._bytes > self._hold_bytes or self._held[0][0] < self._newest_ns - self._hold_ns):
            self._bytes -= len(self._held.popleft()[1].data)
            self.forgotten += 1
        return []

    def event(self, stamp_ns: int) -> list[HeldMessage]:
        """The held messages around an event at `stamp_ns`, in the order they came."""
        self._events_ns.append(stamp_ns)
        near = [message for held_ns, message in self._held if abs(held_ns - stamp_ns) <= self._window_ns]
        self._held = deque(entry for entry in self._held if abs(entry[0] - stamp_ns) > self._window_ns)
        self._bytes = sum(len(message.data) for _, message in self._held)
        return near

    def _clear(self) -> None:
        self.forgotten += len(self._held)
        self._held.clear()
        self._events_ns.clear()
        self._bytes = self._newest_ns = 0


def read_header_stamp_ns(cdr: bytes) -> int:
    """Stamp of a serialized message that begins with a std_msgs/Header; 0 when it is too short for one."""
    if len(cdr) < 12:
        return 0
    seconds, nanoseconds = struct.unpack_from('<iI' if cdr[1] & 1 else '>iI', cdr, 4)
    return int(seconds) * 10**9 + int(nanoseconds)
