"""Warnings about messages, each kind once in a while: a broken driver sends the same fault at its full rate."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

_PERIOD_S = 5.0
_KINDS_KEPT = 200


class Complaints:
    """Logs a warning unless one that differs in numbers only was logged less than five seconds ago. Thread-safe."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._logged_s: dict[str, float] = {}

    def add(self, error: Exception) -> None:
        """Say it, or not."""
        kind = re.sub(r'[-+]?\d[-+\d.e]*', '#', str(error))
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._logged_s.get(kind, -_PERIOD_S) < _PERIOD_S:
                return
            self._logged_s.pop(kind, None)  # the oldest stand first
            self._logged_s[kind] = now_s
            if len(self._logged_s) > _KINDS_KEPT:
                del self._logged_s[next(iter(self._logged_s))]
        self._logger.warning(str(error))
