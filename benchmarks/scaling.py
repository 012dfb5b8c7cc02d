"""How much faster two workers analyse a recording than one.

    python benchmarks/scaling.py [--seconds 60] [--split 20] [--out out/scaling]

A simulated wall is filmed again and again at 5 Hz. Wall time tells the truth only on a machine that does nothing else;
the processor time of all processes together tells what the workers cost in any case: on idle cores the speed-up of N
workers is at most N times that of one over that of N.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from cmml_ros.bag.reader import BagReader
from cmml_ros.bag.writer import BagWriter
from cmml_ros.simulation.scenario import Scenario, simulate_bag

RATE_HZ = 5.0
FRAMES = 20
TICKS_PER_S = os.sysconf('SC_CLK_TCK')


def make_recording(path: Path, seconds: float) -> None:
    """A simulated pass, played forwards again and again: stamps go on, poses come back."""
    once = path.with_name(f'{path.name}_once')
    if not once.exists():
        simulate_bag(once, Scenario(seed=1, rate_hz=RATE_HZ), FRAMES)
    period_ns = round(FRAMES / RATE_HZ * 1e9)
    with BagReader(once) as reader, BagWriter(path) as writer:
        for topic, type_name in reader.topics().items():
            writer.add_topic(topic, type_name, latched=topic == '/tf_static')
        messages = list(reader.messages(list(reader.topics())))
        for turn in range(round(seconds * RATE_HZ / FRAMES)):
            for topic, message, stamp_ns in messages:
                if topic == '/tf_static' and turn:
                    continue
                if turn:
                    for header in _headers(message):
                        total_ns = header.stamp.sec * 10**9 + header.stamp.nanosec + period_ns
                        header.stamp.sec, header.stamp.nanosec = divmod(total_ns, 10**9)
                writer.write(topic, message, stamp_ns + turn * period_ns)


def _headers(message: object) -> list[object]:
    transforms = getattr(message, 'transforms', None)
    return [message.header] if transforms is None else [one.header for one in transforms]


def run(bag: Path, out: Path, workers: int, split_s: float) -> tuple[float, float]:
    """Wall and processor seconds of one analysis and all the processes it starts."""
    code = (
        'import sys; from pathlib import Path; import cv2; from cmml_ros.analyze import analyze; cv2.setNumThreads(1); '
        'from cmml_ros.config import DetectionConfig, InspectorConfig; '
        'config = InspectorConfig(detection=DetectionConfig(threads=1)); '
        'analyze(Path(sys.argv[1]), Path(sys.argv[2]), config, workers=int(sys.argv[3]), split_s=float(sys.argv[4]))'
    )
    # The one worker, which is this process, has as many threads as each of two.
    environment = {**os.environ, **dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')}
    started = time.perf_counter()
    driver = subprocess.Popen(
        [sys.executable, '-c', code, str(bag), str(out), str(workers), str(split_s)], env=environment
    )
    spent: dict[int, float] = {}
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(driver.pid, spent, stop))
    watcher.start()
    status = driver.wait()
    stop.set()
    watcher.join()
    if status:
        raise SystemExit(f'analysis failed with {status}')
    return time.perf_counter() - started, sum(spent.values())


def _watch(root: int, spent: dict[int, float], stop: threading.Event) -> None:
    """Processor time of `root` and its descendants, by process."""
    family = {root}
    while not stop.wait(0.1):
        parents: dict[int, int] = {}
        for entry in Path('/proc').glob('[0-9]*/stat'):
            try:
                fields = entry.read_text().rpartition(')')[2].split()
            except OSError:
                continue
            number = int(entry.parent.name)
            parents[number] = int(fields[1])
            if number in family or parents[number] in family:
                family.add(number)
                spent[number] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--split', type=float, default=20.0)
    parser.add_argument('--out', type=Path, default=Path('out/scaling'))
    options = parser.parse_args()
    bag = options.out / f'recording_{options.seconds:.0f}_s'
    if not bag.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        make_recording(bag, options.seconds)
    rows = {}
    for workers in (1, 2):
        rows[workers] = run(bag, options.out / f'workers_{workers}', workers, options.split)
        print(workers, rows[workers], flush=True)
    one, two = ((options.out / f'workers_{workers}' / 'defects.csv').read_bytes() for workers in (1, 2))
    frames = json.loads((options.out / 'workers_1' / 'summary.json').read_text())['frames']
    load = os.getloadavg()[0]
    print(f'{frames} frames; same defects.csv: {one == two}; load of the machine {load:.1f} on {os.cpu_count()} cores')
    print('| workers | wall | processor | speed-up, wall | speed-up on idle cores, at most |\n|---|---|---|---|---|')
    for workers, (wall_s, processor_s) in rows.items():
        print(
            f'| {workers} | {wall_s:.0f} s | {processor_s:.0f} s | {rows[1][0] / wall_s:.2f} '
            f'| {workers * rows[1][1] / processor_s:.2f} |'
        )
    return 0


if __name__ == '__main__':
    sys.exit(main())
