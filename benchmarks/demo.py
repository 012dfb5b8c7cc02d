"""The whole chain: a simulated wall over DDS into the live node, recorded, analysed again, compared with the truth.

    python benchmarks/demo.py [--out out/demo] [--model small]

Simulator, inspection and recorder are three processes. The picture in the README is OUT/overlay.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from score_wall import MIN_DIAMETER_PX, match_airholes
from tqdm import tqdm

from cmml_ros.analyze import analyze
from cmml_ros.bag.reader import BagReader
from cmml_ros.config import DetectionConfig, InspectorConfig
from cmml_ros.errors import CmmlError
from cmml_ros.measurement.defect import Status

LIVE_S = 20
SCENE = {'scene': 'plane', 'sensor': 'depth_camera', 'seed': 1, 'rate_hz': 2.0, 'frames': 12}
TOLERANCE = 1e-6
START_TIMEOUT_S = 60.0
RENDER_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0
SETTLE_S = 2.0
DEFECTS_TOPIC = '/inspection_node/defects'
MAP_TOPIC = '/inspection_node/map'
# Name in the table, field of the message, field of the truth, unit, and how many of them make the SI unit.
QUANTITIES = (
    ('area', 'area', 'area_m2', 'mm2', 1e6),
    ('depth', 'depth_max', 'depth_max_m', 'mm', 1e3),
    ('volume', 'volume', 'volume_m3', 'mm3', 1e9),
)
PROFILE = Path(__file__).parents[1] / 'config' / 'fastdds.xml'


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class NodeProcess:
    """One node in a process of its own; what it logs goes to a file, and to `lines_until`."""

    def __init__(self, name: str, log: Path, parameters: Mapping[str, Any]) -> None:
        arguments = [part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')]
        environment = {
            **os.environ,
            'ROS_DOMAIN_ID': str(1 + os.getpid() % 100),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
            'FASTRTPS_DEFAULT_PROFILES_FILE': str(PROFILE),
            'FASTDDS_DEFAULT_PROFILES_FILE': str(PROFILE),
        }
        self.name = name
        self._log = log
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, '-m', f'cmml_ros.nodes.{name}', '--ros-args', *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def lines_until(self, text: str, timeout_s: float) -> Iterator[str]:
        """What the node says, up to the line with `text` in it."""
        end_s = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(end_s - time.monotonic(), 0.0))
            except queue.Empty:
                raise DemoError(f'{self.name} did not say "{text}" within {timeout_s:.0f} s, see {self._log}') from None
            if not line:
                raise DemoError(f'{self.name} ended, see {self._log}:\n{self._log.read_text()[-2000:]}')
            yield line
            if text in line:
                return

    def stop(self) -> int:
        """Ask it to end as Ctrl-C would; its exit code."""
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._log.open('w') as log:
            for line in self._process.stderr:
                log.write(line)
                log.flush()
                self._lines.put(line)
        self._lines.put('')


def run_live(out: Path, model: str) -> None:
    """Simulate, inspect and record for LIVE_S."""
    nodes: list[NodeProcess] = []

    def start(name: str, parameters: Mapping[str, Any]) -> NodeProcess:
        nodes.append(NodeProcess(name, out / f'{name}.log', parameters))
        return nodes[-1]

    try:
        start('recorder_node', {'bag_path': out / 'bag'})
        inspection = start('inspection_node', {'detection.model': model})
        for _ in inspection.lines_until('listens to', START_TIMEOUT_S):
            pass
        simulator = start('simulator_node', {**SCENE, 'truth_path': out / 'truth.json'})
        with tqdm(total=SCENE['frames'], desc='render', unit='frame', dynamic_ncols=True) as progress:
            for line in simulator.lines_until('publishes', RENDER_TIMEOUT_S):
                progress.update('rendered' in line)
        for _ in tqdm(range(LIVE_S), desc='live', unit='s', dynamic_ncols=True):
            time.sleep(1.0)
    finally:
        codes = {}
        for node in reversed(nodes):  # the last frames are still inspected, the last results still recorded
            codes[node.name] = node.stop()
            time.sleep(SETTLE_S)
    for name, code in codes.items():
        if code != 0:
            raise DemoError(f'{name} ended with {code}, see {out / name}.log')


def read_results(bag: Path) -> tuple[dict[int, Any], Any]:
    """Results of every frame by stamp, and the last map."""
    frames, on_map = {}, None
    with BagReader(bag) as reader:
        topics = [topic for topic in (DEFECTS_TOPIC, MAP_TOPIC) if topic in reader.topics()]
        for topic, message, _ in reader.messages(topics):
            if topic == MAP_TOPIC:
                on_map = message
            else:
                frames[message.header.stamp.sec * 10**9 + message.header.stamp.nanosec] = message.defects
    if not frames or on_map is None:
        raise DemoError(f'no results in {bag}: {", ".join(topics) or "no topic of inspection_node"} holds no message')
    return frames, on_map


def largest_difference(live: Sequence[Any], offline: Sequence[Any]) -> float:
    """Largest relative difference of any number of the same airholes; infinite when they are not the same ones."""
    if len(live) != len(offline):
        return math.inf
    differences = [0.0]
    for one, other in zip(live, offline, strict=True):
        a, b = numbers(one), numbers(other)
        if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
            return math.inf
        scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.finfo(np.float64).tiny)
        differences.append(float(np.nanmax(np.abs(a - b) / scale)))
    return max(differences)


def numbers(defect: Any) -> np.ndarray:
    """Every number of one airhole but its id, which depends on the frames seen before."""
    points = [defect.position, defect.normal, *defect.outline]
    names = [
        'area', 'area_stddev', 'equivalent_diameter', 'major_axis', 'minor_axis', 'depth_max', 'depth_max_stddev',
        'volume', 'volume_stddev', 'volume_upper_bound', 'confidence', 'area_status', 'volume_status', 'point_count',
    ]  # fmt: skip
    return np.array(
        [getattr(defect, name) for name in names] + [c for p in points for c in (p.x, p.y, p.z)], np.float64
    )


def print_table(truth: Mapping[str, Any], live: Sequence[Any], offline: Sequence[Any]) -> None:
    """Every airhole of MIN_DIAMETER_PX and more that a frame showed whole, the largest first."""
    holes = truth['airholes']
    diameters_px: dict[int, float] = {}
    for seen in (seen for frame in truth['frames'] for seen in frame['airholes']):
        diameters_px[seen['id']] = max(seen['diameter_px'], diameters_px.get(seen['id'], 0.0))
    wanted = [index for index, hole in enumerate(holes) if diameters_px.get(hole['id'], 0.0) >= MIN_DIAMETER_PX]
    wanted.sort(key=lambda index: -holes[index]['equivalent_diameter_m'])
    matched = [match(holes, live), match(holes, offline)]

    titles = '|'.join(f'{f"{name}, {unit}":^37}' for name, _, _, unit, _ in QUANTITIES)
    print(f'hole    mm |{titles}| volume status')
    titles = '|'.join(f'{"truth":>8} {"live":>13} {"offline":>13} ' for _ in QUANTITIES)
    print(f'           |{titles}| live, offline')
    errors: dict[str, list[float]] = {name: [] for name, *_ in QUANTITIES}
    for index in wanted:
        hole = holes[index]
        cells = []
        for name, attribute, true_name, _, scale in QUANTITIES:
            true = hole[true_name]
            values = [getattr(results[index], attribute) if index in results else math.nan for results in matched]
            errors[name].append(abs(values[1] / true - 1.0))
            cells.append(
                ' '.join([f'{true * scale:8.1f}', *(format_value(value, true, scale) for value in values), ''])
            )
        statuses = [
            Status(results[index].volume_status).name if index in results else 'not found' for results in matched
        ]
        diameter_mm = hole['equivalent_diameter_m'] * 1e3
        print(f'{hole["id"]:4d} {diameter_mm:5.1f} |{"|".join(cells)}| {", ".join(dict.fromkeys(statuses))}')

    found = [sum(index in results for index in wanted) for results in matched]
    medians = [f'{name} {np.nanmedian(error):.1%}' for name, error in errors.items() if np.isfinite(error).any()]
    print(
        f'\nairholes of {MIN_DIAMETER_PX:.0f} px and more: {len(wanted)} true, {found[0]} found live, '
        f'{found[1]} found offline; median error offline: {", ".join(medians) or "nothing to compare"}'
    )


def match(holes: Sequence[Mapping[str, Any]], defects: Sequence[Any]) -> dict[int, Any]:
    """The defect that lies on each airhole, by the airhole's index."""
    pairs = match_airholes(
        np.array([hole['centre_m'] for hole in holes]),
        np.array([hole['normal'] for hole in holes]),
        np.array([hole['equivalent_diameter_m'] for hole in holes]),
        np.array([[d.position.x, d.position.y, d.position.z] for d in defects]).reshape(-1, 3),
    )
    return {index: defects[found] for index, found in pairs}


def format_value(value: float, true: float, scale: float) -> str:
    """A value with its error, 13 characters."""
    return f'{value * scale:7.1f} {value / true - 1.0:+5.0%}' if math.isfinite(value) else f'{"-":>7}      '


def main() -> int:
    """Exit code: 0 when live and offline agree, 1 when they do not or when anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='folder for the results; it is replaced')
    parser.add_argument('--model', default='small', help='name of shipped weights or path of a .safetensors file')
    options = parser.parse_args()
    out: Path = options.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started_s = time.monotonic()
    try:
        run_live(out, options.model)
        config = InspectorConfig(detection=DetectionConfig(model=options.model))
        analyze(out / 'bag', out / 'report', config, bag_out=out / 'offline')
        live, live_map = read_results(out / 'bag')
        offline, offline_map = read_results(out / 'offline')
    except (DemoError, CmmlError) as error:
        print(f'demo failed: {error}', file=sys.stderr)
        return 1
    print_table(json.loads((out / 'truth.json').read_text()), live_map.defects, offline_map.defects)

    both = live.keys() & offline.keys()
    difference = max((largest_difference(live[stamp], offline[stamp]) for stamp in both), default=math.inf)
    agree = difference <= TOLERANCE
    count = sum(len(live[stamp]) for stamp in both)
    print(
        f'live and offline: {len(both)} of {len(live)} and {len(offline)} frames in common, {count} airholes in them, '
        f'largest relative difference {difference:.1e}: {"equal" if agree else "NOT EQUAL"} to {TOLERANCE:.0e}'
    )
    best = max(offline, key=lambda stamp: len(offline[stamp]))
    cv2.imwrite(str(out / 'overlay.png'), cv2.imread(str(out / 'report' / 'overlays' / f'{best}.jpg')))
    for what, path in (('report', 'report/report.html'), ('overlays', 'report/overlays'), ('picture', 'overlay.png')):
        print(f'{what:9} {out / path}')
    print(f'{time.monotonic() - started_s:.0f} s')
    return 0 if agree else 1


if __name__ == '__main__':
    sys.exit(main())
