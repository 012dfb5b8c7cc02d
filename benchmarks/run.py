"""`make bench`: how accurate and how fast, on simulated walls that training never saw.

    python benchmarks/run.py [--out out/bench] [--model small] [--seeds 1 2]

Times depend on the machine and on what else it does: compare ratios within one run. Writes OUT/bench.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from score_wall import Score, read_score
from tqdm import tqdm

from cmml_ros.analyze import analyze
from cmml_ros.bag.reader import BagReader
from cmml_ros.config import DetectionConfig, InspectorConfig
from cmml_ros.inspector import Inspector
from cmml_ros.simulation.scenario import Scenario, simulate_bag
from cmml_ros.stream.assembler import Assembler

SENSORS = ('depth_camera', 'line_profiler', 'tof_lidar')
FRAMES = 10
COLUMNS = ('sensor', 'airholes', 'recall', 'precision', 'area error', 'volume error', 'MEASURED')


def measure_accuracy(out: Path, config: InspectorConfig, seeds: list[int]) -> dict[str, dict[str, Any]]:
    """Scores per sensor over all walls; each wall is simulated and analysed."""
    result: dict[str, dict[str, Any]] = {}
    for sensor in tqdm(SENSORS, desc='accuracy', unit='sensor'):
        scores = []
        for seed in seeds:
            bag = out / f'{sensor}_{seed}'
            if not (bag / 'truth.json').exists():
                simulate_bag(bag, Scenario(sensor_name=sensor, seed=seed), FRAMES)
            analyze(bag, out / f'{sensor}_{seed}_result', config)
            scores.append(read_score(bag, out / f'{sensor}_{seed}_result'))
        result[sensor] = _join(scores)
    return result


def _join(scores: list[Score]) -> dict[str, Any]:
    statuses: Counter[str] = sum((score.statuses for score in scores), Counter())
    alarms: Counter[str] = sum((score.false_alarms for score in scores), Counter())
    true, found = sum(score.true_count for score in scores), sum(score.found_count for score in scores)
    return {
        'airholes': true,
        'recall': found / true,
        'precision': 1.0 - alarms.total() / sum(score.defect_count for score in scores),
        'area_error': statistics.fmean(score.area_error for score in scores),
        'volume_error': _mean_known([score.volume_error for score in scores]),
        'statuses': dict(statuses),
        'false_alarms': dict(alarms),
    }


def _mean_known(values: list[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return statistics.fmean(known) if known else None


def measure_speed(bag: Path, config: InspectorConfig) -> dict[str, float]:
    """Median seconds per frame of each stage, warm, and of what is called around them."""
    inspector = Inspector(config)
    frames = []
    with BagReader(bag) as reader:
        topics = reader.find_sensor_topics()
        assembler = Assembler(config.sync, topics.image, topics.camera_info, topics.points or 'points')
        add = {topics.image: assembler.add_image, topics.camera_info: assembler.add_camera_info}
        if topics.points:
            add[topics.points] = assembler.add_cloud
        for message in reader.messages(list(reader.topics())):
            if message.topic in add:
                add[message.topic](message.message)
            else:
                assembler.add_transforms(message.message, static=message.topic.endswith('tf_static'))
            frames.extend(assembler.take())
        frames.extend(assembler.flush())
    inspector.inspect(frames[0])
    stages: dict[str, list[float]] = {}
    for frame in tqdm(frames, desc='speed', unit='frame'):
        started = time.perf_counter()
        inspection = inspector.inspect(frame)
        for stage, seconds in {**inspection.timings_s, 'whole frame': time.perf_counter() - started}.items():
            stages.setdefault(stage, []).append(seconds)
    times = {stage: statistics.median(seconds) for stage, seconds in stages.items()}
    scenario = Scenario(seed=1)
    scenario.frame(0)
    started = time.perf_counter()
    scenario.frame(1)
    times['simulated frame (fast)'] = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run([sys.executable, '-m', 'cmml_ros.cli', '--help'], check=True, stdout=subprocess.DEVNULL)
    times['cmml --help'] = time.perf_counter() - started
    return times


def main() -> int:
    """Print both tables and write bench.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('out/bench'))
    parser.add_argument('--model', default='small')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2])
    options = parser.parse_args()
    config = InspectorConfig(detection=DetectionConfig(model=options.model))
    accuracy = measure_accuracy(options.out, config, options.seeds)
    speed = measure_speed(options.out / f'depth_camera_{options.seeds[0]}', config)
    print('| ' + ' | '.join(COLUMNS) + ' |\n' + '|---' * len(COLUMNS) + '|')
    for sensor, row in accuracy.items():
        volume = '-' if row['volume_error'] is None else f'{row["volume_error"]:.1%}'
        print(
            f'| {sensor} | {row["airholes"]} | {row["recall"]:.3f} | {row["precision"]:.3f} '
            f'| {row["area_error"]:.1%} | {volume} | {row["statuses"].get("MEASURED", 0)} |'
        )
    print('\n| step | median |\n|---|---|')
    for name, seconds in speed.items():
        print(f'| {name} | {1e3 * seconds:.0f} ms |')
    document = {'accuracy': accuracy, 'seconds': speed}
    (options.out / 'bench.json').write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
