"""Records topics into a bag as they come over DDS, without decoding them."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.timer import Timer
from rclpy.validate_topic_name import validate_topic_name

from cmml_ros.bag.recording import Recording, RecordingState
from cmml_ros.bag.writer import BagWriter
from cmml_ros.config import InspectorConfig, setting
from cmml_ros.errors import ConfigError
from cmml_ros.nodes.diagnostics import ERROR, OK, WARN, DiagnosticsPublisher, make_status
from cmml_ros.nodes.managed import ManagedNode
from cmml_ros.nodes.parameters import declare_config
from cmml_ros.nodes.process import run_node
from cmml_ros.nodes.sidecar import Sidecar
from cmml_ros.nodes.taps import Tap, TapSettings

_DISCOVERY_PERIOD_S = 0.2
_DIAGNOSTICS_PERIOD_S = 1.0
_INSPECTION_NODE = 'inspection_node'
_DEFAULT_TOPICS = (
    'image',
    'image/compressed',
    'camera_info',
    'points',
    '/tf',
    '/tf_static',
    '/diagnostics',
    *(f'{_INSPECTION_NODE}/{output}' for output in ('defects', 'markers', 'map', 'calibration', 'detections')),
)


@dataclass(frozen=True)
class RecorderConfig:
    """Where to record to, what, and how much room it may take."""

    bag_path: str = setting(
        '', 'folder of the new bag, with a number added where it exists; empty: inspection_<local time> here'
    )
    mode: str = setting(
        'all',
        'all: inputs and results; results: no pictures and clouds; events: pictures and clouds around airholes only',
        choices=('all', 'results', 'events'),
    )
    queue_mb: int = setting(256, 'what may wait to be written; more is lost and counted', unit='MB', low=1, high=65536)
    max_file_mb: int = setting(1000, 'a file of the bag ends at this size', unit='MB', low=1, high=1000000)
    max_file_s: float = setting(600.0, 'a file of the bag ends after this time', unit='s', low=1.0, high=86400.0)
    reserve_mb: int = setting(
        2000, 'recording stops before less than this is free on the disk', unit='MB', low=0, high=10**9
    )
    event_window_s: float = setting(
        1.0, 'mode events: recorded before and after a picture with airholes', unit='s', low=0.0, high=60.0
    )
    event_hold_s: float = setting(10.0, 'mode events: how long results may take', unit='s', low=0.1, high=600.0)
    event_hold_mb: int = setting(1000, 'mode events: what is held until results come', unit='MB', low=1, high=65536)


class RecorderNode(ManagedNode):
    """Active it records: each activation is a bag of its own."""

    def __init__(self) -> None:
        super().__init__('recorder_node')
        about_topics = ParameterDescriptor(description='topics to record; relative names are remapped', read_only=True)
        topics = self.declare_parameter('topics', list(_DEFAULT_TOPICS), about_topics).value
        self._config = declare_config(self, RecorderConfig, others=InspectorConfig)
        if not topics:
            raise ConfigError('"topics" is empty; name what is to be recorded, or leave it out')
        for topic in topics:
            validate_topic_name(topic)
        self._topics = sorted({self.resolve_topic_name(topic) for topic in topics})
        self._recording: Recording | None = None
        self._tap: Tap | None = None
        self._timers: list[Timer] = []
        self._diagnostics = DiagnosticsPublisher(self)

    def activate(self) -> None:
        """Begin a bag. Raises BagError."""
        config = self._config
        path = _find_free_path(Path(config.bag_path or f'inspection_{datetime.now().astimezone():%Y%m%d_%H%M%S}'))
        writer = BagWriter(
            path,
            max_file_bytes=config.max_file_mb * 10**6,
            max_file_s=config.max_file_s,
            awaited={self.resolve_topic_name('/tf_static')}.intersection(self._topics),
        )
        self._recording = Recording(writer, config.queue_mb * 10**6, config.reserve_mb * 10**6)
        self._sidecar = Sidecar(self, _INSPECTION_NODE, dataclasses.asdict(config))
        settings = TapSettings(
            mode=config.mode,
            defects_topic=self.resolve_topic_name(f'{_INSPECTION_NODE}/defects'),
            event_window_s=config.event_window_s,
            event_hold_s=config.event_hold_s,
            event_hold_bytes=config.event_hold_mb * 10**6,
        )
        self._tap = Tap(self, self._topics, settings, self._recording, self._sidecar)
        self._previous = self._recording.state()
        self._previous_s = time.monotonic()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timers = [
            self.create_timer(_DISCOVERY_PERIOD_S, self._tap.discover, clock=steady),
            self.create_timer(_DIAGNOSTICS_PERIOD_S, self._diagnose, clock=steady),
        ]
        self.get_logger().info(f'recording to {path}: {", ".join(self._topics)}')

    def deactivate(self) -> None:
        """Write what waits, close the bag with its index and metadata."""
        while self._timers:
            self.destroy_timer(self._timers.pop())
        if self._tap is not None:
            self._tap.close()
        if self._recording is not None:
            state = self._recording.stop()
            totals = {'messages': state.messages, 'files': state.files, 'lost': self._lost(state), 'fault': state.fault}
            self._sidecar.write(self._recording.path, totals)
            self._sidecar.close()
            lost = ', '.join(f'{topic} {count}' for topic, count in self._lost(state).items())
            self.get_logger().info(f'{self._recording.path} closed; lost: {lost or "nothing"}')
        self._tap = self._recording = None

    def _lost(self, state: RecordingState) -> dict[str, int]:
        """By topic: what found no room here, and what DDS says it lost on the way."""
        transport = self._tap.lost if self._tap is not None else {}
        topics = sorted({*state.lost, *transport})
        return {topic: state.lost.get(topic, 0) + transport.get(topic, 0) for topic in topics}

    def _diagnose(self) -> None:
        state, now_s = self._recording.state(), time.monotonic()
        elapsed_s = now_s - self._previous_s
        lost, lost_before = self._lost(state), sum(self._lost(self._previous).values())
        previous, self._previous, self._previous_s = self._previous, state, now_s
        self._sidecar.write(self._recording.path)
        values = {
            'bag': self._recording.path,
            'mode': self._config.mode,
            'messages': state.messages,
            'messages_per_s': f'{(state.messages - previous.messages) / elapsed_s:.1f}',
            'written_mb': f'{state.bytes / 1e6:.1f}',
            'written_mb_per_s': f'{(state.bytes - previous.bytes) / 1e6 / elapsed_s:.2f}',
            'waiting_mb': f'{state.waiting_bytes / 1e6:.1f}',
            'files': state.files,
            'free_disk_mb': f'{state.free_bytes / 1e6:.0f}',
            'lost': sum(lost.values()),
            **{f'lost {topic}': count for topic, count in lost.items()},
            **{f'written {topic}': count for topic, count in state.written.items()},
        }
        level, text = OK, 'recording'
        if state.fault:
            level, text = ERROR, state.fault
            if not previous.fault:
                self.get_logger().error(state.fault)
                self._tap.close()
        elif sum(lost.values()) > lost_before:
            level, text = WARN, f'{sum(lost.values())} messages lost so far: the disk, or this machine, is too slow'
            self.get_logger().warning(text)
        self._diagnostics.publish([make_status('recording', level, text, values)])


def _find_free_path(path: Path) -> Path:
    """`path`, or the first of path_2, path_3, ... that does not exist: a recorder that starts again goes on beside."""
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f'{path.name}_{number}')
    return free


def main() -> NoReturn:
    """Record until stopped."""
    run_node(RecorderNode)


if __name__ == '__main__':
    main()
