"""Live inspection: messages in, the Inspector in between, results out.

Callbacks only put messages into the Assembler; one worker thread takes the newest frame, inspects and publishes it.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.timer import Timer
from std_srvs.srv import Trigger

from cmml_ros.config import InspectorConfig
from cmml_ros.frame import Frame
from cmml_ros.geometry.camera import Camera
from cmml_ros.mapping.defect_map import DefectMap, MapSnapshot
from cmml_ros.mapping.standard import load_standards
from cmml_ros.nodes.complaints import Complaints
from cmml_ros.nodes.diagnostics import (
    DiagnosticsPublisher,
    make_calibration_status,
    make_input_status,
    make_pipeline_status,
    make_transform_status,
)
from cmml_ros.nodes.inputs import INPUT_NAMES, SensorInputs
from cmml_ros.nodes.managed import ManagedNode
from cmml_ros.nodes.parameters import declare_config
from cmml_ros.nodes.process import run_node
from cmml_ros.nodes.publishers import InspectionPublishers
from cmml_ros.nodes.report_service import ReportService, default_root
from cmml_ros.nodes.run_statistics import RunStatistics
from cmml_ros.nodes.worker import InspectionWorker
from cmml_ros.report.summary import Summary
from cmml_ros.stream.assembler import Assembler

if TYPE_CHECKING:
    from cmml_ros.inspector import Inspection, Inspector

_SILENCE_S = 5.0
_DIAGNOSTICS_PERIOD_S = 1.0
_WARM_UP = Frame(np.full((720, 1280, 3), 128, np.uint8), Camera(1280, 720, 1e3, 1e3, 640.0, 360.0), 1, 'warm_up')


class InspectionNode(ManagedNode):
    """Finds and measures airholes in the images of a camera with the points of a range sensor.

    Configured it has its network loaded and its output topics advertised, active it listens and inspects. What is on
    the map stays while it pauses.
    """

    def __init__(self) -> None:
        super().__init__('inspection_node')
        about = ParameterDescriptor(
            description='~/save_report writes below this folder only; empty: ~/.ros/cmml_ros', read_only=True
        )
        self._report_root = Path(self.declare_parameter('report_dir', '', about).value or default_root())
        self._config = declare_config(self, InspectorConfig)
        self._topics = {name: self.resolve_topic_name(name) for name in INPUT_NAMES}
        self._inspector: Inspector | None = None
        self._inputs: SensorInputs | None = None
        self._worker: InspectionWorker | None = None
        self._timers: list[Timer] = []

    def configure(self) -> None:
        """Load and warm up the network, advertise the results. Raises ModelError or ConfigError."""
        load_standards(self._config.grading.standards)  # what a report needs, hours later
        self.get_logger().info(f'loads the network {self._config.detection.model}')
        from cmml_ros.inspector import Inspector  # torch takes seconds, in which a signal must be heard

        inspector = Inspector(self._config)
        inspector.inspect(_WARM_UP)
        self._map = DefectMap(self._config.map, self._config.sync.map_frame, self._config.measurement)
        self._outputs = InspectionPublishers(self, self._config.sync.map_frame)
        self._diagnostics = DiagnosticsPublisher(self)
        self._run = RunStatistics()
        self._assembler = Assembler(self._config.sync)
        self._reset_service = self.create_service(Trigger, '~/reset', self._on_reset)
        self._report_service = ReportService(self, self._report_root, self._snapshot)
        self._inspector = inspector  # the last: what there is to clean up goes by it, and a signal may come before
        self.get_logger().info(f'{inspector.model_id} is loaded')

    def activate(self) -> None:
        """Listen and inspect."""
        config, complaints = self._config, Complaints(self.get_logger())
        self._assembler = Assembler(config.sync, *(self._topics[name] for name in INPUT_NAMES[:3]))
        self._worker = InspectionWorker(
            self._inspector,
            self._assembler,
            self._map,
            self._outputs,
            self.get_logger(),
            complaints,
            self._on_result,
        )
        self._inputs = SensorInputs(self, self._topics, self._assembler, complaints, self._worker.wake)
        self._problem: str | None = None
        self._results_reported = self._run.results
        self._received_reported = 0
        self._diagnosed_s = time.monotonic()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self._timers = [
            self.create_timer(_DIAGNOSTICS_PERIOD_S, self._diagnose, clock=steady),
            self.create_timer(_SILENCE_S, self._report_silence, clock=steady),
        ]
        self.get_logger().info(f'{self._inspector.model_id} listens to {", ".join(self._topics.values())}')

    def deactivate(self) -> None:
        """Listen no more, let the frames in work finish."""
        while self._timers:
            self.destroy_timer(self._timers.pop())
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def clean_up(self) -> None:
        """Forget network and map, withdraw the topics."""
        if self._inspector is not None:
            self._inspector = None
            self.destroy_service(self._reset_service)
            self._report_service.destroy()
            self._outputs.destroy()
            self._diagnostics.destroy()

    def _on_result(self, inspection: Inspection, timings_s: dict[str, float]) -> None:
        age_ns = self.get_clock().now().nanoseconds - inspection.frame.stamp_ns
        inputs = self._inputs
        before_s = {'transport': math.nan, 'synchronize': math.nan}
        if inputs is not None:
            before_s = {
                'transport': inputs.transport_s(inspection.frame.stamp_ns),
                'synchronize': inputs.take_spent_s(),
            }
        self._run.add(inspection, age_ns * 1e-9, {**before_s, **timings_s})

    def _snapshot(self) -> tuple[MapSnapshot, Summary, InspectorConfig]:
        """The map and the facts for a report, in the thread that writes it."""
        snapshot = (self._worker or self._map).snapshot()
        model_id, counts = self._inspector.model_id, self._assembler.counts
        return snapshot, self._run.summary(self._topics, self._config, counts, model_id, snapshot), self._config

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._worker is None:
            self._map.clear()
            response.success, response.message = True, 'the map is cleared'
        else:
            self._worker.reset()
            response.success, response.message = True, 'map and markers are cleared before the next frame'
        return response

    def _diagnose(self) -> None:
        elapsed_s = time.monotonic() - self._diagnosed_s
        self._diagnosed_s += elapsed_s
        statuses = []
        self._inputs.report_mismatches()
        self._inputs.ask_for_latched()
        for name, statistics in self._inputs.statistics.items():
            reasons = [] if statistics.recent else self._inputs.explain(name)
            publishers = self._inputs.count_publishers(name)
            statuses.append(make_input_status(name, self._topics[name], publishers, statistics, elapsed_s, reasons))
            statistics.recent = 0
        device = self._inspector.device
        statuses.append(make_pipeline_status(self._run, self._assembler.counts, device, self._problem))
        statuses += [make_transform_status(self._run.latest), make_calibration_status(self._run.latest)]
        self._diagnostics.publish(statuses)

    def _report_silence(self) -> None:
        """One line when the last period brought no result, or lacked something: what, and the likely cause.

        When it brought no message either, the last frames must not wait for others any longer.
        """
        received = sum(self._inputs.statistics[name].total for name in ('image', 'points'))
        if received == self._received_reported:
            self._worker.release()
        self._received_reported = received
        self._problem = self._assembler.problem()
        if self._problem is None and self._run.latest is not None:
            self._problem = self._run.latest.points_reason or None
        results, self._results_reported = self._results_reported, self._run.results
        if results == self._results_reported:
            causes = [self._problem, *self._inputs.explain_missing()]
            text = '; '.join(filter(None, causes)) or 'all inputs arrive, the frame in work is not finished'
            self.get_logger().warning(f'no result for {_SILENCE_S:.0f} s: {text}')
        elif self._problem is not None:
            self.get_logger().warning(f'results go on without all they need: {self._problem}')


def main() -> NoReturn:
    """Run the node until it is stopped."""
    run_node(InspectionNode)


if __name__ == '__main__':
    main()
