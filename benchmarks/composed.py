"""What simulator, inspection and recorder cost in one process and in three.

    python benchmarks/composed.py [--seconds 30]

Both ways the simulator renders the same frames and publishes one each second. Prints the time from the start to the
first result, and from then on the processor time a second and the memory; what processes share is counted once.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from faults import Bench, prepare_environment

SEPARATE = ('recorder_node', 'inspection_node', 'simulator_node')
TOGETHER = ('composed_node',)
SIMULATION = ('-p', 'simulator_node:frames:=2', '-p', 'simulator_node:rate_hz:=1.0')


def measure(names: tuple[str, ...], seconds: float) -> str:
    """Start these nodes, wait for a result, watch them: one row of the table."""
    folder = Path(tempfile.mkdtemp())
    bench = Bench(inspect=False)
    try:
        started_s = time.monotonic()
        nodes = [bench.start(name, '-p', f'recorder_node:bag_path:={folder / "bag"}', *SIMULATION) for name in names]
        bench.await_true(lambda: bench.results, 'result', 300.0)
        first_s = time.monotonic() - started_s
        before_s, began_s = sum(node.processor_s() for node in nodes), time.monotonic()
        time.sleep(seconds)
        share = (sum(node.processor_s() for node in nodes) - before_s) / (time.monotonic() - began_s)
        memory_mb = sum(node.memory_mb() for node in nodes)
    finally:
        bench.close()
        shutil.rmtree(folder)
    figures = f'first result after {first_s:.1f} s, {100 * share:.0f} % of a core, {memory_mb:.0f} MB'
    return f'{len(names)} process(es): {figures}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=30.0)
    arguments = parser.parse_args()
    prepare_environment()
    for names in (SEPARATE, TOGETHER):
        print(measure(names, arguments.seconds), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
