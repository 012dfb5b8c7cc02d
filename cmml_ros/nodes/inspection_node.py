"""Live inspection: messages in, the Inspector in between, results out.

Callbacks only put messages into the Assembler; one worker thread takes the newest frame, inspects and publishes it.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from cmml_ros.config import InspectorConfig
from cmml_ros.errors import CmmlError
from cmml_ros.frame import Frame
from cmml_ros.inspector import Inspector
from cmml_ros.mapping.defect_map import DefectMap
from cmml_ros.nodes.diagnostics import Diagnostics
from cmml_ros.nodes.endpoints import explain_silence
from cmml_ros.nodes.parameters import declare_config
from cmml_ros.nodes.process import run_node
from cmml_ros.nodes.publishers import InspectionPublishers
from cmml_ros.stream.assembler import Assembler

_COMPRESSED = '/compressed'
_SILENCE_S = 5.0
_MAP_PERIOD_S = 1.0
_STOP_TIMEOUT_S = 2.0

# Best effort connects to reliable and to best-effort publishers alike.
_SENSOR_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
# A lost transform changes what is interpolated across its gap, so these are asked for reliably.
_TF_QOS = QoSProfile(depth=1000)
_TF_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_TF_BEST_EFFORT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


class InspectionNode(Node):
    """Finds and measures airholes in the images of a camera with the points of a range sensor."""

    def __init__(self) -> None:
        super().__init__('inspection_node')
        config = declare_config(self, InspectorConfig)
        names = ('image', 'camera_info', 'points', '/tf', '/tf_static')
        self._topics = {name: self.resolve_topic_name(name) for name in names}
        self._inspector = Inspector(config)
        self._assembler = Assembler(config.sync, *(self._topics[name] for name in names[:3]))
        self._map = DefectMap(config.map, config.sync.map_frame)
        self._map_frame = config.sync.map_frame
        self._map_due_s = math.inf
        self._outputs = InspectionPublishers(self)
        self._diagnostics = Diagnostics(self, self._topics)
        self._latest_stamp_ns = 0
        self._tf_falls_back = False
        self._results_reported = 0
        self._problem: str | None = None
        self._wake, self._reset, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._worker = threading.Thread(target=self._work, name='inspector', daemon=True)
        self._worker.start()
        self._subscribe()
        self.create_service(Trigger, '~/reset', self._on_reset)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self.create_timer(1.0, self._diagnose, clock=steady)
        self.create_timer(_SILENCE_S, self._report_silence, clock=steady)
        self.get_logger().info(f'{self._inspector.model_id} listens to {", ".join(self._topics.values())}')

    def destroy_node(self) -> None:
        """Let the frame in work finish, then go."""
        self._stop.set()
        self._wake.set()
        self._worker.join(_STOP_TIMEOUT_S)
        super().destroy_node()

    def _subscribe(self) -> None:
        topics, add = self._topics, self._assembler
        # Compressed images are taken from `<image>/compressed`, as image_transport names it, until a raw one comes.
        if topics['image'].endswith(_COMPRESSED):
            image = self._listen('image', CompressedImage, topics['image'], _SENSOR_QOS, add.add_image)
            self._compressed = None
        else:
            image = self._listen('image', Image, topics['image'], _SENSOR_QOS, self._add_raw_image)
            compressed = topics['image'] + _COMPRESSED
            self._compressed = self._listen('image', CompressedImage, compressed, _SENSOR_QOS, add.add_image)
        self._required = (
            image,
            self._listen('camera_info', CameraInfo, topics['camera_info'], _SENSOR_QOS, add.add_camera_info),
            self._listen('points', PointCloud2, topics['points'], _SENSOR_QOS, add.add_cloud),
        )
        for name, qos in (('/tf', _TF_QOS), ('/tf_static', _TF_STATIC_QOS)):
            add_transforms = partial(add.add_transforms, static=name == '/tf_static')
            self._listen(name, TFMessage, topics[name], qos, add_transforms)

    def _listen(
        self, name: str, message_type: type, topic: str, qos: QoSProfile, add: Callable[[Any], None]
    ) -> Subscription:
        def on_message(message: Any) -> None:
            # The executor takes one message of each topic a turn. All that wait are taken here, or transforms at 100 Hz
            # and more would fall behind the pictures while the worker keeps Python busy.
            for _ in range(qos.depth):
                try:
                    add(message)
                    self._diagnostics.received(name, message)
                except CmmlError as error:
                    self._reject(error)
                taken = subscription.handle.take_message(message_type, False)
                if taken is None:
                    break
                message = taken[0]
            self._wake.set()

        def on_incompatible_qos(_: object) -> None:
            if qos is _TF_QOS and not self._tf_falls_back:
                self._tf_falls_back = True  # some drivers publish even this as best effort
                self._listen(name, message_type, topic, _TF_BEST_EFFORT_QOS, add)
                return
            for reason in explain_silence(self, [subscription]):
                self.get_logger().error(reason)

        events = SubscriptionEventCallbacks(incompatible_qos=on_incompatible_qos)
        subscription = self.create_subscription(message_type, topic, on_message, qos, event_callbacks=events)
        return subscription

    def _add_raw_image(self, message: Image) -> None:
        if self._compressed is not None:
            self.destroy_subscription(self._compressed)
            self._compressed = None
        self._assembler.add_image(message)

    def _work(self) -> None:
        """The worker thread: the newest frame that is ready, until the node stops."""
        while not self._stop.is_set():
            self._wake.wait(_MAP_PERIOD_S)
            self._wake.clear()
            try:
                if self._reset.is_set():
                    self._reset.clear()
                    self._clear_map()
                for frame in self._assembler.take(newest_only=True):
                    self._inspect(frame)
                while self._assembler.errors:
                    self._reject(self._assembler.errors.popleft())
                if time.monotonic() >= self._map_due_s:
                    self._publish_map()
            except Exception as error:  # one frame is lost, never the node
                if self._stop.is_set():
                    return  # the publishers are gone
                what = str(error) if isinstance(error, CmmlError) else traceback.format_exc()
                self.get_logger().error(f'one frame lost: {what}', throttle_duration_sec=1.0)
                self._assembler.drop(1, f'inspection failed: {type(error).__name__}')

    def _inspect(self, frame: Frame) -> None:
        if frame.stamp_ns < self._latest_stamp_ns:
            self._clear_map()  # time jumped back: another run begins
        self._latest_stamp_ns = frame.stamp_ns
        inspection = self._inspector.inspect(frame)
        if frame.T_map_camera is None:
            ids = map_ids = list(range(len(inspection.defects)))
        else:
            ids = self._map.add(inspection.defects, frame.T_map_camera, frame.stamp_ns, frame.frame_id)
            map_ids = {entry.defect_id for entry in self._map.entries}
            self._map_due_s = min(self._map_due_s, time.monotonic() + _MAP_PERIOD_S)
        self._outputs.publish(inspection, ids, map_ids, self._map_frame)
        self._diagnostics.inspected(inspection)

    def _publish_map(self) -> None:
        self._map_due_s = math.inf
        entries = [entry for entry in self._map.entries if entry.frame_id == self._map_frame]
        self._outputs.publish_map(entries, self._map_frame, self._latest_stamp_ns, self._inspector.model_id)

    def _clear_map(self) -> None:
        self._map.clear()
        self._outputs.clear(self._map_frame, self._latest_stamp_ns, self._inspector.model_id)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._reset.set()
        self._wake.set()
        response.success, response.message = True, 'map and markers are cleared before the next frame'
        return response

    def _reject(self, error: CmmlError) -> None:
        self.get_logger().warning(str(error), throttle_duration_sec=1.0)

    def _diagnose(self) -> None:
        self._diagnostics.publish(self._assembler.counts, self._problem)

    def _report_silence(self) -> None:
        """One line when the last period brought no result: what is missing, and the likely cause."""
        self._problem = self._assembler.problem()
        results, self._results_reported = self._results_reported, self._diagnostics.results
        if results == self._results_reported:
            compressed = self._compressed is not None and self.count_publishers(self._compressed.topic_name)
            inputs = self._required[1:] if compressed else self._required
            causes = [self._problem, *explain_silence(self, inputs)]
            text = '; '.join(filter(None, causes)) or 'all inputs arrive, the frame in work is not finished'
            self.get_logger().warning(f'no result for {_SILENCE_S:.0f} s: {text}')


def main() -> int:
    """Run the node until it is stopped."""
    return run_node(InspectionNode)


if __name__ == '__main__':
    sys.exit(main())
