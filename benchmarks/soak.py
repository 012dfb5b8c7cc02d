"""A day in a tunnel, in short: pictures and clouds at a steady rate into the live node, and what became of them.

    python benchmarks/soak.py [--minutes 10] [--rate 5]

Pictures of 1280x720 with airholes and clouds of 50,000 points, published from this process, inspected by the node in
its own with the shipped network. Prints frames lost before the pipeline, growth of memory, ages and exceptions, and
ends with 1 when a target is missed. `test/test_nodes_soak.py` runs two minutes of it.
"""

from __future__ import annotations

import argparse
import array
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / 'test'))
import cv2
import numpy as np
from faults import Bench, prepare_environment
from numpy.typing import NDArray
from robot import make_edge
from sensor_msgs.msg import CameraInfo, PointCloud2, PointField
from tqdm import tqdm

from cmml_ros.nodes.messages import make_header, make_image

WIDTH, HEIGHT, FOCAL_PX, DISTANCE_M = 1280, 720, 1000.0, 0.5
POINTS = (250, 200)
# Start-up is over after this share of the run: memory is compared from here.
WARM_SHARE = 0.25
MEMORY_GROWTH = 0.05
# A frame waits for its partner and for the one in work, then is worked on itself.
WAITING_S = 1.5
SETTLE_S = 5.0


@dataclass
class Figures:
    """What a soak shows.

    memory_mb: median of the quarter after the start-up, and of the last tenth. stages_s: median time of a frame in
    each.
    """

    sent: int
    received: int
    clouds_received: int
    results: int
    behind: int
    memory_mb: tuple[float, float]
    age_s: tuple[float, float]
    largest_time_s: float
    stages_s: dict[str, float]
    errors: list[str]

    @property
    def growth(self) -> float:
        return self.memory_mb[1] / self.memory_mb[0] - 1.0

    @property
    def age_limit_s(self) -> float:
        """Age that no result may exceed, given how long a frame takes here."""
        return WAITING_S + 2.0 * self.largest_time_s

    def faults(self) -> list[str]:
        """Every target that is missed."""
        return [
            text
            for missed, text in (
                (self.received < self.sent, f'{self.sent - self.received} pictures lost before the pipeline'),
                (self.clouds_received < self.sent, f'{self.sent - self.clouds_received} clouds lost'),
                (self.growth >= MEMORY_GROWTH, f'memory grew by {100 * self.growth:.1f} %'),
                (self.age_s[1] > self.age_limit_s, f'a result was {self.age_s[1]:.1f} s old'),
                (bool(self.errors), f'{len(self.errors)} errors logged, first: {self.errors[:1]}'),
                (self.results + self.behind < self.received - 5, 'pictures without result that nobody counted'),
                (not self.results, 'no result'),
            )
            if missed
        ]

    def table(self) -> str:
        """One line for each figure."""
        return '\n'.join(
            (
                f'pictures sent                      {self.sent}',
                f'lost before the pipeline           {self.sent - self.received} pictures, '
                f'{self.sent - self.clouds_received} clouds',
                f'inspected / passed over for newer  {self.results} / {self.behind}',
                f'memory after start-up, at the end  {self.memory_mb[0]:.0f} MB, {self.memory_mb[1]:.0f} MB '
                f'({100 * self.growth:+.1f} %)',
                f'age of results, median / largest   {self.age_s[0]:.2f} s / {self.age_s[1]:.2f} s '
                f'(a frame takes up to {self.largest_time_s:.2f} s)',
                'of a frame, median                 '
                + ', '.join(f'{stage} {1e3 * median_s:.1f}' for stage, median_s in self.stages_s.items())
                + ' ms',
                f'errors and exceptions in the log   {len(self.errors)}',
            )
        )


class Sensors:
    """Messages made once; only stamps change."""

    def __init__(self) -> None:
        random = np.random.default_rng(1)
        picture = cv2.GaussianBlur(random.normal(150.0, 25.0, (HEIGHT, WIDTH)), (0, 0), 1.5)
        x_m, y_m = np.meshgrid(np.linspace(-0.3, 0.3, POINTS[0]), np.linspace(-0.17, 0.17, POINTS[1]))
        z_m = DISTANCE_M + random.normal(0.0, 1e-4, x_m.shape)
        for u, v, radius_px in random.uniform((60, 60, 5), (1220, 660, 16), (12, 3)):
            cv2.circle(picture, (int(u), int(v)), int(radius_px), 25.0, -1, cv2.LINE_AA)
            centre_m = (np.array([u - WIDTH / 2, v - HEIGHT / 2])) / FOCAL_PX * DISTANCE_M
            inside = np.hypot(x_m - centre_m[0], y_m - centre_m[1]) < radius_px / FOCAL_PX * DISTANCE_M
            z_m[inside] += 0.003
        bgr = (picture[:, :, None] + random.normal(0.0, 2.0, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)
        self._image = make_image(bgr, make_header(1, 'camera'))
        self._info = CameraInfo(
            header=make_header(1, 'camera'),
            width=WIDTH,
            height=HEIGHT,
            distortion_model='plumb_bob',
            d=[0.0] * 5,
            k=[FOCAL_PX, 0.0, WIDTH / 2, 0.0, FOCAL_PX, HEIGHT / 2, 0.0, 0.0, 1.0],
        )
        self._cloud = make_cloud(np.stack([x_m, y_m, z_m, np.ones_like(z_m)], axis=-1).astype('<f4'))

    def send(self, robot: Any, at_ns: int, x_m: float) -> None:
        """One view of a robot that has come `x_m` along."""
        for message in (self._image, self._info, self._cloud):
            message.header.stamp = make_header(at_ns, '').stamp
        robot.tf.publish(make_edge(at_ns, 'map', 'camera', x_m))
        robot.info.publish(self._info)
        robot.points.publish(self._cloud)
        robot.image.publish(self._image)


def make_cloud(points: NDArray[np.float32]) -> PointCloud2:
    """x, y, z, intensity as 32-bit floats."""
    names = ('x', 'y', 'z', 'intensity')
    fields = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate(names)]
    rows, columns = points.shape[:2]
    return PointCloud2(
        header=make_header(1, 'lidar'),
        height=rows,
        width=columns,
        fields=fields,
        point_step=16,
        row_step=16 * columns,
        data=array.array('B', points.tobytes()),
        is_dense=True,
    )


def soak(minutes: float, rate_hz: float) -> Figures:
    """Run it; the figures."""
    bench = Bench(known_segmenter=False)
    try:
        return _soak(bench, minutes * 60.0, rate_hz)
    finally:
        bench.close()


def _soak(bench: Bench, seconds: float, rate_hz: float) -> Figures:
    sensors, robot = Sensors(), bench.robot
    robot.mount()
    memory: list[tuple[float, float]] = []
    ages: list[float] = []
    times: list[dict[str, float]] = []
    stop = threading.Event()
    started_s = time.monotonic()

    def watch() -> None:
        while not stop.wait(1.0):
            process, pipeline = bench.values('process'), bench.values('pipeline')
            if 'memory_mb' in process:
                memory.append((time.monotonic() - started_s, float(process['memory_mb'])))
            if 'result_age_s' in pipeline:
                ages.append(float(pipeline['result_age_s']))
                times.append(
                    {k.removesuffix('_time_s'): float(v) for k, v in pipeline.items() if k.endswith('_time_s')}
                )
            for name in ('health', 'defects', 'markers', 'map', 'calibration'):
                del robot.received[name][:-50]

    watcher = threading.Thread(target=watch)
    watcher.start()
    count = round(seconds * rate_hz)
    for index in tqdm(range(count), unit='frame', disable=None, dynamic_ncols=True):
        time.sleep(max(started_s + index / rate_hz - time.monotonic(), 0.0))
        # Up and down the same metre: what the map holds does not grow.
        sensors.send(robot, time.time_ns(), 0.5 + 0.5 * np.sin(index / rate_hz / 20.0))
    time.sleep(SETTLE_S)
    stop.set()
    watcher.join()
    bench.inspection.stop()
    pipeline, image, points = bench.values('pipeline'), bench.values('image'), bench.values('points')
    warm = [value for at_s, value in memory if WARM_SHARE * seconds <= at_s < 2 * WARM_SHARE * seconds]
    late = [value for at_s, value in memory if at_s >= 0.9 * seconds]
    errors = [line for line in bench.inspection.lines if '[ERROR]' in line or '[FATAL]' in line or 'Traceback' in line]
    return Figures(
        sent=count,
        received=int(image['received']),
        clouds_received=int(points['received']),
        results=int(pipeline['results']),
        behind=int(pipeline.get('pipeline behind', 0)),
        memory_mb=(float(np.median(warm)), float(np.median(late))),
        age_s=(float(np.median(ages)), max(ages)),
        largest_time_s=max(float(np.nansum(list(each.values()))) for each in times),
        stages_s={stage: float(np.nanmedian([each[stage] for each in times])) for stage in times[-1]},
        errors=errors,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--rate', type=float, default=5.0, help='pictures and clouds a second')
    arguments = parser.parse_args()
    prepare_environment()
    figures = soak(arguments.minutes, arguments.rate)
    print(figures.table())
    for fault in figures.faults():
        print(f'MISSED: {fault}')
    return 1 if figures.faults() else 0


if __name__ == '__main__':
    sys.exit(main())
