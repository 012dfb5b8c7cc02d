"""How time and memory grow with points, pixels and airholes. The map's growth is in docs/map.md.

    python benchmarks/growth.py [--plot growth.png]

The exponent is the slope of the last decade in the log-log plot: 1 is linear.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from speed import CAMERA, make_messages, make_wall
from tqdm import tqdm

from cmml_ros.config import DetectionConfig, InspectorConfig
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import project_cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.measure import measure
from cmml_ros.model.range_features import range_features
from cmml_ros.model.runtime import Segmenter
from cmml_ros.stream.conversions import cloud_from_message

_REPEATS = 3


@dataclass(frozen=True)
class Growth:
    """sizes: (N,) of `unit`. cpu_s: (N,) CPU time; memory_bytes: (N,) peak of what Python and numpy allocated."""

    what: str
    unit: str
    sizes: Sequence[float]
    cpu_s: Sequence[float]
    memory_bytes: Sequence[float]

    @property
    def exponent(self) -> float:
        """Slope of time over size in the log-log plot, over the last factor of ten at most."""
        return _slope(self.sizes, self.cpu_s)

    @property
    def memory_exponent(self) -> float:
        """The same of memory."""
        return _slope(self.sizes, self.memory_bytes)


def _slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    x, y = np.log(np.array(sizes)), np.log(np.array(values))
    last = x >= x[-1] - np.log(10.0) - 1e-9
    return float(np.polyfit(x[last], y[last], 1)[0])


def _measure(what: str, unit: str, cases: Iterable[tuple[float, Callable[[], object]]]) -> Growth:
    sizes, times, memory = [], [], []
    for size, call in cases:
        call()
        elapsed = []
        for _ in range(_REPEATS):
            started_s = time.process_time()
            call()
            elapsed.append(time.process_time() - started_s)
        tracemalloc.start()
        call()
        memory.append(float(tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        sizes.append(size)
        times.append(min(elapsed))
    return Growth(what, unit, sizes, times, memory)


def _by_points(largest: int) -> Iterable[tuple[float, Callable[[], object]]]:
    T_camera_lidar = SE3.identity()
    count = 10_000
    while count <= largest:
        projected, _ = make_wall(count, 1)
        _, msg = make_messages(projected.points_camera)

        def run(msg: object = msg) -> object:
            seen = project_cloud(cloud_from_message(msg, 'points'), CAMERA, T_camera_lidar)
            return range_features(seen.pixels, seen.points_camera[:, 2], CAMERA.height, CAMERA.width)

        yield count, run
        count *= 10


def _by_pixels() -> Iterable[tuple[float, Callable[[], object]]]:
    segmenter = Segmenter(DetectionConfig(device='cpu', threads=1))
    for width, height in ((640, 480), (1280, 720), (1920, 1200), (4000, 3000)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        yield width * height, lambda image=image: segmenter.probabilities(image, None)


def _by_airholes() -> Iterable[tuple[float, Callable[[], object]]]:
    config = InspectorConfig()
    camera = Camera(2560, 1440, 2400.0, 2400.0, 1279.5, 719.5)
    for count in (1, 10, 100, 1000):
        projected, masks = make_wall(200_000, count, camera)

        def run(projected=projected, masks=masks) -> object:  # type: ignore[no-untyped-def]
            return measure(masks, projected, camera, config.surface, config.measurement)

        yield count, run


def measure_growth(largest_cloud: int = 10_000_000) -> list[Growth]:
    """All curves."""
    parts: list[tuple[str, str, Iterable[tuple[float, Callable[[], object]]]]] = [
        ('cloud message to range features', 'points', _by_points(largest_cloud)),
        ('network on a picture, 1 thread', 'pixels', _by_pixels()),
        ('measurement', 'airholes a frame', _by_airholes()),
    ]
    return [_measure(*part) for part in tqdm(parts, desc='growth', unit='curve')]


def make_table(growths: Sequence[Growth]) -> str:
    """Markdown, one row a curve."""
    lines = [
        '| what | over | sizes | CPU time | exponent | peak memory | exponent |',
        '|---|---|---|---|---|---|---|',
    ]
    for growth in growths:
        sizes = ', '.join(f'{size:.2g}' for size in growth.sizes)
        times = ', '.join(f'{1e3 * seconds:.3g}' for seconds in growth.cpu_s)
        memory = ', '.join(f'{size / 2**20:.3g}' for size in growth.memory_bytes)
        lines.append(
            f'| {growth.what} | {growth.unit} | {sizes} | {times} ms | {growth.exponent:.2f} | {memory} MiB '
            f'| {growth.memory_exponent:.2f} |'
        )
    return '\n'.join(lines)


def plot(growths: Sequence[Growth], path: Path) -> None:
    """Time over size, log-log, one panel a curve, with a line of slope 1."""
    figure = Figure(figsize=(3.2 * len(growths), 3.2), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, growth in zip(figure.subplots(1, len(growths), squeeze=False)[0], growths, strict=True):
        sizes, milliseconds = np.array(growth.sizes), 1e3 * np.array(growth.cpu_s)
        axes.loglog(sizes, milliseconds[-1] * sizes / sizes[-1], color='0.7', linestyle='--', label='linear')
        axes.loglog(sizes, milliseconds, marker='o', color='#0b6e4f', label=f'exponent {growth.exponent:.2f}')
        axes.set_title(growth.what, fontsize=9)
        axes.set_xlabel(growth.unit)
        axes.set_ylabel('CPU time, ms')
        axes.grid(which='major', color='0.9')
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plot', type=Path)
    options = parser.parse_args()
    growths = measure_growth()
    print(make_table(growths))
    if options.plot:
        plot(growths, options.plot)
    return 0


if __name__ == '__main__':
    sys.exit(main())
