"""What recording costs: raw pictures of 1280x720 and clouds of 50,000 points at 10 Hz into recorder_node.

    python benchmarks/record.py [--seconds 30]

Prints what was lost, the processor time of the recorder as a share of one core, and the rate on the disk; ends with 1
when something was lost or more than 60 % of a core was needed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from faults import Bench, prepare_environment
from soak import Sensors

from cmml_ros.bag.reader import BagReader

RATE_HZ = 10.0
CORE_SHARE = 0.6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=30.0)
    arguments = parser.parse_args()
    prepare_environment()
    folder = Path(tempfile.mkdtemp())
    bench = Bench(inspect=False)
    try:
        sensors = Sensors()
        bench.robot.mount()
        recorder = bench.start('recorder_node', '-p', f'bag_path:={folder / "bag"}')
        for topic in ('/image', '/points', '/camera_info', '/tf'):
            recorder.await_line(f'records {topic},')
        time.sleep(1.0)
        before_s, started_s = recorder.processor_s(), time.monotonic()
        stamps = bench.stream(
            arguments.seconds, send=lambda at_ns: sensors.send(bench.robot, at_ns, 0.0), rate_hz=RATE_HZ
        )
        share = (recorder.processor_s() - before_s) / (time.monotonic() - started_s)
        time.sleep(2.0)
        values = bench.values('recording')
        recorder.stop()
        with BagReader(folder / 'bag') as reader:
            counts = {topic: reader.count([topic]) for topic in ('/image', '/points')}
    finally:
        bench.close()
        shutil.rmtree(folder)
    print(f'sent      {len(stamps)} pictures and clouds')
    print(f'recorded  {counts["/image"]} pictures, {counts["/points"]} clouds; lost by its own count: {values["lost"]}')
    rate_mb_s = float(values['written_mb']) / arguments.seconds
    print(f'recorder  {100 * share:.0f} % of one core, {rate_mb_s:.1f} MB/s on the disk')
    return 0 if counts['/image'] == counts['/points'] == len(stamps) and share < CORE_SHARE else 1


if __name__ == '__main__':
    sys.exit(main())
