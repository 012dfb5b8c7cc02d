"""How the node is doing, on /diagnostics once a second: inputs, drops by reason, times."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from cmml_ros.inspector import Inspection
from cmml_ros.stream.conversions import stamp_to_ns


class Diagnostics:
    """Collects what happens and publishes it as diagnostic_msgs/DiagnosticArray (REP 107).

    Call `received` and `publish` from the executor's thread; `inspected` may come from another.
    """

    def __init__(self, node: Node, topics: Mapping[str, str]) -> None:
        """topics: resolved topic by the input's name."""
        self._node = node
        self._topics = topics
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._received = dict.fromkeys(topics, 0)
        self._age_s: dict[str, float] = {}
        self._since_s = time.monotonic()
        self._results = 0
        self._latest: Inspection | None = None

    def received(self, name: str, message: Any) -> None:
        """One message came in."""
        self._received[name] += 1
        if hasattr(message, 'header'):
            self._age_s[name] = (self._node.get_clock().now().nanoseconds - stamp_to_ns(message.header.stamp)) * 1e-9

    def inspected(self, inspection: Inspection) -> None:
        """One result went out."""
        self._results += 1
        self._latest = inspection

    @property
    def results(self) -> int:
        """Results so far."""
        return self._results

    def publish(self, counts: Mapping[str, int], problem: str | None) -> None:
        """counts: drops and events by reason. problem: what keeps results from coming."""
        elapsed_s = time.monotonic() - self._since_s
        self._since_s += elapsed_s
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.status = [self._input_status(name, elapsed_s) for name in self._topics]
        message.status.append(self._pipeline_status(counts, problem))
        self._publisher.publish(message)

    def _input_status(self, name: str, elapsed_s: float) -> DiagnosticStatus:
        rate_hz = self._received[name] / elapsed_s
        self._received[name] = 0
        values = {'topic': self._topics[name], 'rate_hz': f'{rate_hz:.2f}'}
        if name in self._age_s:
            values['age_s'] = f'{self._age_s[name]:.3f}'
        # The static tree comes once: silence is only worth a warning on topics that stream.
        silent = rate_hz == 0.0 and name != 'tf_static'
        level, text = (DiagnosticStatus.WARN, 'nothing received') if silent else (DiagnosticStatus.OK, 'receiving')
        return self._make_status(name, level, text, values)

    def _pipeline_status(self, counts: Mapping[str, int], problem: str | None) -> DiagnosticStatus:
        values = {'results': str(self._results), **{reason: str(count) for reason, count in sorted(counts.items())}}
        if self._latest is not None:
            values['model'] = self._latest.model_id
            values['sync_offset_s'] = f'{self._latest.frame.sync_offset_s:.4f}'
            values.update({f'{stage}_time_s': f'{time_s:.3f}' for stage, time_s in self._latest.timings_s.items()})
        level = DiagnosticStatus.OK if problem is None else DiagnosticStatus.WARN
        return self._make_status('pipeline', level, problem or 'inspecting', values)

    def _make_status(self, name: str, level: bytes, text: str, values: Mapping[str, str]) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=level,
            name=f'{self._node.get_name()}: {name}',
            message=text,
            hardware_id=self._node.get_fully_qualified_name(),
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )
