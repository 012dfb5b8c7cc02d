"""How a node is doing, on /diagnostics (REP 107): one status for each part, with its level and key-values."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from cmml_ros.nodes.inputs import InputStatistics
from cmml_ros.nodes.run_statistics import RunStatistics

if TYPE_CHECKING:  # the inspector brings torch, which takes seconds to import
    from cmml_ros.inspector import Inspection

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_PAGE_BYTES = os.sysconf('SC_PAGE_SIZE')


class DiagnosticsPublisher:
    """Publishes what the node says about its parts."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._cpu_s, self._wall_s = time.process_time(), time.monotonic()

    def publish(self, statuses: list[DiagnosticStatus]) -> None:
        """The statuses and that of the process, named after the node."""
        message = DiagnosticArray(status=[*statuses, self._process_status()])
        message.header.stamp = self._node.get_clock().now().to_msg()
        for status in message.status:
            status.name = f'{self._node.get_name()}: {status.name}'
            status.hardware_id = self._node.get_fully_qualified_name()
        self._publisher.publish(message)

    def destroy(self) -> None:
        """Withdraw the topic."""
        self._node.destroy_publisher(self._publisher)

    def _process_status(self) -> DiagnosticStatus:
        cpu_s, wall_s = time.process_time(), time.monotonic()
        share = (cpu_s - self._cpu_s) / max(wall_s - self._wall_s, 1e-9)
        self._cpu_s, self._wall_s = cpu_s, wall_s
        values = {'memory_mb': f'{resident_bytes() / 1e6:.0f}', 'cpu_percent': f'{100.0 * share:.0f}'}
        return make_status('process', OK, 'running', values)


def make_status(name: str, level: bytes, text: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """One part's status."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=text, values=pairs)


def make_input_status(
    name: str, topic: str, publishers: int, statistics: InputStatistics, elapsed_s: float, reasons: list[str]
) -> DiagnosticStatus:
    """One input: rate, age and transport time on arrival, and why nothing comes.

    reasons: see `explain_silence`.
    """
    values: dict[str, object] = {
        'topic': topic,
        'publishers': publishers,
        'rate_hz': f'{statistics.recent / elapsed_s:.2f}',
        'received': statistics.total,
    }
    if statistics.age_s is not None:
        values['age_s'] = f'{statistics.age_s:.3f}'
    if statistics.transport_s is not None:
        values['transport_s'] = f'{statistics.transport_s:.4f}'
    if any('incompatible' in reason for reason in reasons):
        return make_status(name, ERROR, '; '.join(reasons), values)
    # These may come once: silence is only worth a warning on topics that stream.
    if statistics.recent or (name in ('/tf_static', 'camera_info') and statistics.total):
        return make_status(name, OK, 'receiving', values)
    return make_status(name, WARN, '; '.join(('nothing received', *reasons)), values)


def make_pipeline_status(
    run: RunStatistics, counts: Mapping[str, int], device: str, problem: str | None
) -> DiagnosticStatus:
    """The pipeline: times of the latest frame, drops by reason. problem: what keeps results from coming."""
    values: dict[str, object] = {'results': run.results, 'device': device, **dict(sorted(counts.items()))}
    latest = run.latest
    if latest is not None:
        values['model'] = latest.model_id
        values['sync_offset_s'] = f'{latest.frame.sync_offset_s:.4f}'
        values['result_age_s'] = f'{run.latest_age_s:.3f}'
        values.update({f'{stage}_time_s': f'{time_s:.4f}' for stage, time_s in run.latest_timings_s.items()})
    return make_status('pipeline', OK if problem is None else WARN, problem or 'inspecting', values)


def make_transform_status(inspection: Inspection | None) -> DiagnosticStatus:
    """Whether camera, range sensor and map were related at the latest frame's stamp, and why not."""
    if inspection is None:
        return make_status('transforms', WARN, 'no frame yet', {})
    frame = inspection.frame
    values = {'camera_to_points': frame.T_camera_lidar is not None, 'map_to_camera': frame.T_map_camera is not None}
    if frame.cloud is not None and frame.T_camera_lidar is None:
        return make_status('transforms', ERROR, frame.transform_reason, values)
    if frame.T_map_camera is None:
        return make_status('transforms', WARN, f'airholes are not joined in a map: {frame.transform_reason}', values)
    return make_status('transforms', OK, 'known', values)


def make_calibration_status(inspection: Inspection | None) -> DiagnosticStatus:
    """Whether the data agree with the extrinsic between camera and range sensor."""
    if inspection is None:
        return make_status('calibration', OK, 'no frame yet', {})
    check = inspection.calibration
    values: dict[str, object] = {'matches': check.match_count, 'inlier_ratio': f'{check.inlier_ratio:.2f}'}
    for name, part, factor in (('rotation_deg', slice(0, 3), 180.0 / math.pi), ('translation_mm', slice(3, 6), 1e3)):
        values[f'correction_{name}'] = ' '.join(f'{value * factor:.3f}' for value in check.correction[part])
        values[f'correction_{name}_std'] = ' '.join(f'{value * factor:.3f}' for value in check.std[part])
    level = WARN if check.in_doubt or check.status.name in ('DRIFTED', 'NO_TRANSFORM') else OK
    text = check.status.name.lower().replace('_', ' ')
    return make_status('calibration', level, f'{text}: {check.reason}' if check.reason else text, values)


def resident_bytes() -> float:
    """Memory of this process; NaN where the system does not tell."""
    try:
        return int(Path('/proc/self/statm').read_text(encoding='ascii').split()[1]) * _PAGE_BYTES
    except OSError:
        return math.nan
