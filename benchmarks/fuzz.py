"""Messages that are nearly right, by the million, through stream/: each is taken or refused with a CmmlError.

    python benchmarks/fuzz.py [--messages 1000000] [--seed 1]

Each message begins valid, with a random layout, and then has up to three of its fields changed: lengths, steps,
offsets, types, encodings, numbers that are none, stamps that jump, frames that make loops, payloads cut short. Prints
how many were taken and refused, the slowest message and the growth of memory; ends with 1 on any other exception, on a
message that takes longer than a second, or when memory grows by more than 5 %.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cmml_ros.bag.message_types import make_typestore
from cmml_ros.config import SyncConfig
from cmml_ros.errors import CmmlError
from cmml_ros.stream.assembler import Assembler

TYPES = make_typestore().types
ENCODINGS = {
    'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1, '8UC1': 1, 'bgr16': 6, 'rgba16': 8, 'mono16': 2,
    '16UC1': 2, '16SC1': 2, '32FC1': 4, '64FC1': 8, 'yuv422': 2, 'yuv422_yuy2': 2, 'bayer_rggb8': 1, 'bayer_gbrg16': 2,
    'nv21': 1,
}  # fmt: skip
DATATYPES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 8}
WORDS = ('', '/', 'map', 'camera', 'lidar', 'base', '/camera', 'a' * 3000, 'Ångström', 'x\0y', '%s', '../..', '0')
NUMBERS = (float('nan'), float('inf'), -float('inf'), 0.0, -0.0, 1e-320, 1e308, -1.0, 2.0**53)
COUNTS = (0, 1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)
SIZES = ((16, 12), (16, 12), (16, 12), (2, 40))
SLOWEST_S = 1.0
MEMORY_GROWTH = 0.05
START_NS = 1_700_000_000 * 10**9


@dataclass
class Figures:
    """What came of the messages.

    slowest_s: CPU time of `slowest`, which says how to make that message again. memory_mb: after a fifth of them, and
    at the end.
    """

    taken: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    crashes: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ''
    memory_mb: tuple[float, float] = (0.0, 0.0)

    @property
    def growth(self) -> float:
        return self.memory_mb[1] / self.memory_mb[0] - 1.0

    def faults(self) -> list[str]:
        """Every target that is missed."""
        return [
            text
            for missed, text in (
                (bool(self.crashes), f'{len(self.crashes)} other exceptions, the first:\n{"".join(self.crashes[:1])}'),
                (self.slowest_s > SLOWEST_S, f'a message took {self.slowest_s:.1f} s: {self.slowest}'),
                (self.growth > MEMORY_GROWTH, f'memory grew by {100 * self.growth:.1f} %'),
            )
            if missed
        ]


class Fuzzer:
    """Makes messages of one kind after the other, from one seed."""

    def __init__(self, seed: int) -> None:
        import cv2  # after cmml_ros, which bounds the pictures it decodes

        self.random = np.random.default_rng(seed)
        self._now_ns = START_NS
        picture = self.random.integers(0, 256, (12, 16, 3), np.uint8)
        self._compressed = {name: cv2.imencode(f'.{name}', picture)[1] for name in ('png', 'jpeg', 'bmp', 'tiff')}

    def make(self) -> tuple[str, Any]:
        """Kind and message."""
        self._now_ns += int(self.random.integers(0, 20_000_000))
        kind = ('image', 'compressed', 'info', 'cloud', 'tf', 'tf_static')[self.random.integers(6)]
        message = getattr(self, f'_make_{kind.removesuffix("_static")}')()
        for _ in range(self.random.integers(4)):
            self._damage(message)
        return kind, message

    def _pick(self, values: Any) -> Any:
        return values[self.random.integers(len(values))]

    def _header(self, frame: str) -> Any:
        at_ns = self._now_ns
        luck = self.random.random()
        if luck < 0.1:
            at_ns -= 30_000_000  # late
        elif luck < 0.105:  # a second ago, long ago, ahead, since boot, none at all: most of these reset everything
            at_ns = int(self._pick((at_ns - 10**9, at_ns - 10**12, at_ns + 10**11, 10**12, 0, -1, 2**31 * 10**9 - 1)))
        stamp = TYPES['builtin_interfaces/msg/Time'](sec=int(at_ns // 10**9), nanosec=int(at_ns % 10**9))
        return TYPES['std_msgs/msg/Header'](
            stamp=stamp, frame_id=self._pick(('camera', 'lidar')) if frame is None else frame
        )

    def _make_image(self) -> Any:
        encoding = self._pick(list(ENCODINGS))
        width, height = self._pick(SIZES)
        step = width * ENCODINGS[encoding] + int(self._pick((0, 0, 3, 64)))
        rows = height + height // 2 if encoding == 'nv21' else height
        return TYPES['sensor_msgs/msg/Image'](
            header=self._header('camera'),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=int(self.random.integers(2)),
            step=step,
            data=self.random.integers(0, 256, rows * step, np.uint8),
        )

    def _make_compressed(self) -> Any:
        name = self._pick(list(self._compressed))
        data = self._compressed[name].copy()
        if self.random.random() < 0.5:
            places = self.random.integers(0, len(data), 3)
            data[places] = self.random.integers(0, 256, 3, np.uint8)
        form = self._pick((name, f'bgr8; {name} compressed bgr8', f'rgb8; {name} compressed rgb8', 'mono8', '16UC1; x'))
        return TYPES['sensor_msgs/msg/CompressedImage'](header=self._header('camera'), format=form, data=data)

    def _make_info(self) -> Any:
        model, count = self._pick((('plumb_bob', 5), ('rational_polynomial', 8), ('equidistant', 4), ('', 0)))
        k = np.array([500.0, 0.0, 8.0, 0.0, 500.0, 6.0, 0.0, 0.0, 1.0])
        width, height = self._pick(SIZES)
        roi = TYPES['sensor_msgs/msg/RegionOfInterest'](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        return TYPES['sensor_msgs/msg/CameraInfo'](
            header=self._header('camera'),
            height=height,
            width=width,
            distortion_model=model,
            d=self.random.normal(0.0, 0.1, count),
            k=k,
            r=np.eye(3).reshape(-1),
            p=np.zeros(12),
            binning_x=int(self._pick((0, 1, 1, 2))),
            binning_y=int(self._pick((0, 1, 1, 2))),
            roi=roi,
        )

    def _make_cloud(self) -> Any:
        names = ['x', 'y', 'z', *self._pick(((), ('intensity',), ('reflectivity', 'ring'), ('i', 't')))]
        datatypes = [self._pick(list(DATATYPES)) if self.random.random() < 0.3 else 7 for _ in names]
        fields, offset = [], int(self._pick((0, 0, 4)))
        for name, datatype in zip(names, datatypes, strict=True):
            fields.append(TYPES['sensor_msgs/msg/PointField'](name=name, offset=offset, datatype=datatype, count=1))
            offset += DATATYPES[datatype]
        step = offset + int(self._pick((0, 0, 5)))
        width, height = (int(value) for value in self.random.integers(1, 40, 2))
        row = width * step + int(self._pick((0, 0, 13)))
        return TYPES['sensor_msgs/msg/PointCloud2'](
            header=self._header('lidar'),
            height=height,
            width=width,
            fields=fields,
            is_bigendian=bool(self.random.integers(2)),
            point_step=step,
            row_step=row,
            data=self.random.integers(0, 256, row * height, np.uint8),
            is_dense=bool(self.random.integers(2)),
        )

    def _make_tf(self) -> Any:
        edges = []
        for _ in range(self.random.integers(0, 4)):
            parent, child = self._pick((('map', 'base'), ('base', 'camera'), ('camera', 'lidar'), ('lidar', 'map')))
            if self.random.random() < 0.2:
                # New names without end are what a broken publisher sends, too.
                child = self._pick((*WORDS, f'frame_{self.random.integers(10**9)}'))
            rotation, translation = self.random.normal(size=4), self.random.normal(size=3)
            transform = TYPES['geometry_msgs/msg/Transform'](
                translation=TYPES['geometry_msgs/msg/Vector3'](*translation.tolist()),
                rotation=TYPES['geometry_msgs/msg/Quaternion'](*rotation.tolist()),
            )
            edges.append(
                TYPES['geometry_msgs/msg/TransformStamped'](
                    header=self._header(parent), child_frame_id=child, transform=transform
                )
            )
        return TYPES['tf2_msgs/msg/TFMessage'](transforms=edges)

    def _damage(self, message: Any) -> None:
        """Change one field, anywhere in the message, to something of its type that it should not be."""
        owner, name = message, ''
        while True:
            names = [each for each in vars(owner) if each != '__msgtype__']
            name = self._pick(names)
            value = getattr(owner, name)
            if isinstance(value, list) and value and self.random.random() < 0.7:
                owner = self._pick(value)
            elif hasattr(value, '__msgtype__'):
                owner = value
            else:
                break
        changed = self._change(name, value)
        object.__setattr__(owner, name, changed)

    def _change(self, name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            way = self.random.integers(4)
            if way == 0 or not len(value):
                return value[: self.random.integers(len(value) + 1)]
            if way == 1:
                return np.concatenate([value, value])
            value = value.copy()
            if value.dtype == np.float64:
                value[self.random.integers(len(value))] = self._pick(NUMBERS)
            else:
                value[self.random.integers(len(value), size=3)] = self.random.integers(0, 256, 3)
            return value
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            if name == 'sec':
                return int(self._pick((-(2**31), -1, 0, value, 2**31 - 1))) if self.random.random() < 0.02 else value
            return int(self._pick((*COUNTS, value + 1, max(value - 1, 0), value * 2)))
        if isinstance(value, float):
            return self._pick(NUMBERS)
        if isinstance(value, str):
            return self._pick((*WORDS, *ENCODINGS, 'x', 'y', 'z', 'intensity', 'sepia8', 'jpeg'))
        if isinstance(value, list):
            return self._pick((value[:-1], value * 2, value[::-1], []))
        return value


def fuzz(messages: int, seed: int) -> Figures:
    """Send so many through an Assembler; what came of them."""
    fuzzer, figures = Fuzzer(seed), Figures()
    assembler = Assembler(SyncConfig(tolerance_s=0.5))
    add: dict[str, Callable[[Any], None]] = {
        'image': assembler.add_image,
        'compressed': assembler.add_image,
        'info': assembler.add_camera_info,
        'cloud': assembler.add_cloud,
        'tf': lambda message: assembler.add_transforms(message, static=False),
        'tf_static': lambda message: assembler.add_transforms(message, static=True),
    }
    early_mb = 0.0
    for index in tqdm(range(messages), unit='message', disable=None, dynamic_ncols=True):
        kind, message = fuzzer.make()
        started_s = time.thread_time()  # what the message costs, however busy the machine is
        try:
            add[kind](message)
            figures.taken[kind] += 1
        except CmmlError as error:
            figures.refused[f'{kind}: {type(error).__name__}'] += 1
        except Exception:
            figures.crashes.append(f'{kind} {message}\n{traceback.format_exc()}')
        try:
            figures.frames += len(assembler.take())
            if index % 100 == 0:
                assembler.problem()
        except Exception:
            figures.crashes.append(traceback.format_exc())
        while assembler.errors:
            figures.refused[f'frame: {type(assembler.errors.popleft()).__name__}'] += 1
        spent_s = time.thread_time() - started_s
        if spent_s > figures.slowest_s:
            figures.slowest_s, figures.slowest = spent_s, f'{kind}, number {index} of seed {seed}: {message}'
        if index == messages // 5:
            early_mb = resident_mb()
    figures.memory_mb = early_mb, resident_mb()
    return figures


def resident_mb() -> float:
    """Memory that this process holds on to, without what it has freed and the allocator keeps in pieces."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--messages', type=int, default=1_000_000)
    parser.add_argument('--seed', type=int, default=1)
    arguments = parser.parse_args()
    figures = fuzz(arguments.messages, arguments.seed)
    print(f'taken    {figures.taken.total()}: {dict(sorted(figures.taken.items()))}')
    print(f'refused  {figures.refused.total()}: {dict(sorted(figures.refused.items()))}')
    print(f'frames   {figures.frames}')
    print(f'slowest  {figures.slowest_s * 1e3:.0f} ms: {figures.slowest[:500]}')
    print(f'memory   {figures.memory_mb[0]:.0f} -> {figures.memory_mb[1]:.0f} MB')
    for fault in figures.faults():
        print(f'MISSED: {fault}')
    return 1 if figures.faults() else 0


if __name__ == '__main__':
    sys.exit(main())
