"""`make bench`: how accurate and how fast, on simulated walls that training never saw; rewrites docs/benchmarks.md.

    python benchmarks/run.py [--out out/bench] [--model small] [--seeds 1 2] [--only accuracy stages peers growth]

Times depend on the machine and on what else it does: compare ratios within one run. Writes OUT/bench.json too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import growth
import speed
from score_wall import Score, read_score
from tqdm import tqdm

from cmml_ros.analyze import analyze
from cmml_ros.config import DetectionConfig, InspectorConfig
from cmml_ros.simulation.scenario import Scenario, simulate_bag

SENSORS = ('depth_camera', 'line_profiler', 'tof_lidar')
FRAMES = 10
ROUNDS = 7
STAGE_REPEATS = 5
PAGE = Path(__file__).parents[1] / 'docs' / 'benchmarks.md'
PLOT = PAGE.parent / 'images' / 'growth.png'
PARTS = ('accuracy', 'stages', 'peers', 'growth')
COLUMNS = ('sensor', 'airholes', 'recall', 'precision', 'area error', 'volume error', 'MEASURED')


def find_wall(out: Path, sensor: str, seed: int) -> Path:
    """The recording of one simulated wall, made when it is not there."""
    bag = out / f'{sensor}_{seed}'
    if not (bag / 'truth.json').exists():
        simulate_bag(bag, Scenario(sensor_name=sensor, seed=seed), FRAMES)
    return bag


def measure_accuracy(out: Path, config: InspectorConfig, seeds: list[int]) -> dict[str, dict[str, Any]]:
    """Scores per sensor over all walls; each wall is simulated and analysed."""
    result: dict[str, dict[str, Any]] = {}
    for sensor in tqdm(SENSORS, desc='accuracy', unit='sensor'):
        scores = []
        for seed in seeds:
            bag = find_wall(out, sensor, seed)
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


def make_accuracy_table(accuracy: dict[str, dict[str, Any]]) -> str:
    """Markdown, one row a sensor."""
    lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|---' * len(COLUMNS) + '|']
    for sensor, row in accuracy.items():
        volume = '-' if row['volume_error'] is None else f'{row["volume_error"]:.1%}'
        lines.append(
            f'| {sensor} | {row["airholes"]} | {row["recall"]:.3f} | {row["precision"]:.3f} '
            f'| {row["area_error"]:.1%} | {volume} | {row["statuses"].get("MEASURED", 0)} |'
        )
    return '\n'.join(lines)


def measure_stages(bag: Path, out: Path, model: str) -> tuple[str, dict[str, Any]]:
    """Table and figures of `cmml benchmark`, in a process of its own: peak memory is that of the pipeline alone."""
    config = out / 'benchmark.yaml'
    config.write_text(f'detection.model: {model}\n', encoding='utf-8')
    command = [sys.executable, '-m', 'cmml_ros.cli', 'benchmark', str(bag), '--repeats', str(STAGE_REPEATS)]
    command += ['--config', str(config), '--json', str(out / 'stages.json')]
    table = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    document: dict[str, Any] = json.loads((out / 'stages.json').read_text(encoding='utf-8'))
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, '-m', 'cmml_ros.cli', '--help'], check=True, stdout=subprocess.DEVNULL)
    document['help_cpu_s'] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_s
    return f'{table}\n`cmml --help`: {document["help_cpu_s"]:.2f} s of CPU time.', document


def describe_machine() -> str:
    """The machine class, for whoever reads the figures later."""
    flags = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    vectors = [name for name in ('avx2', 'avx512f', 'avx512_vnni', 'amx_int8') if re.search(rf'\b{name}\b', flags)]
    load = os.getloadavg()[0]
    return f'{os.cpu_count()} cores ({platform.machine()}, {", ".join(vectors)}), load {load:.0f} from other work'


def write_block(name: str, text: str) -> None:
    """Replace what stands between the marks of block `name` in docs/benchmarks.md."""
    page = PAGE.read_text(encoding='utf-8')
    block = re.compile(rf'(<!-- begin {name} -->\n).*?(<!-- end {name} -->)', re.DOTALL)
    if not block.search(page):
        raise SystemExit(f'{PAGE}: no block "{name}"')
    PAGE.write_text(block.sub(lambda match: f'{match[1]}{text.rstrip()}\n{match[2]}', page), encoding='utf-8')


def main() -> int:
    """Measure, print, and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('out/bench'))
    parser.add_argument('--model', default='small')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    config = InspectorConfig(detection=DetectionConfig(model=options.model))
    machine = f'On {describe_machine()}:\n\n'
    path = out / 'bench.json'
    document = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    for part in options.only:
        if part == 'accuracy':
            document[part] = measure_accuracy(out, config, options.seeds)
            text = make_accuracy_table(document[part])
        elif part == 'stages':
            table, document[part] = measure_stages(find_wall(out, 'depth_camera', 1), out, options.model)
            text = machine + table
        elif part == 'peers':
            bag = find_wall(out, 'depth_camera', 1)
            comparisons = speed.compare_parts(ROUNDS) + speed.compare_recording(bag, ROUNDS)
            document[part] = [asdict(pair) for pair in comparisons]
            text = machine + speed.make_table(comparisons)
        else:
            curves = growth.measure_growth()
            document[part] = [asdict(curve) for curve in curves]
            growth.plot(curves, PLOT)
            text = machine + growth.make_table(curves)
        write_block(part, text)
        print(f'\n{part}\n{text}')
        path.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
