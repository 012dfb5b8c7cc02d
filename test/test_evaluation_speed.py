from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmml_ros.cli import main
from cmml_ros.evaluation.speed import Speed
from cmml_ros.simulation.scenario import Scenario, simulate_bag


def make_speed(network_s: list[float], other_s: list[float]) -> Speed:
    network, other = np.array(network_s), np.array(other_s)
    stages = {'read': np.full(len(network), 0.05), 'network': network, 'measure': other}
    frames_s = network + other
    elapsed_s = 0.5 * frames_s.sum()  # two at once
    return Speed('net-0', stages, frames_s, elapsed_s, frames_s.sum(), recorded_s=2.0, peak_memory_bytes=10**9)


def test_figures_follow_from_the_times():
    speed = make_speed([0.15] * 10, [0.05] * 10)
    assert speed.frames_per_s == pytest.approx(10.0)
    assert speed.tail_ratio == pytest.approx(1.0)
    assert speed.share_outside_network == pytest.approx(0.25)
    assert speed.real_time_ratio == pytest.approx(2.0)
    assert '| network | 150.0 ms | 150.0 ms | 75% |' in speed.table()


def test_the_tail_is_that_of_whole_frames():
    assert make_speed([0.1] * 99 + [0.3], [0.0] * 100).tail_ratio == pytest.approx(1.02, abs=1e-9)


@pytest.mark.slow
def test_every_stage_of_every_frame_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    simulate_bag(tmp_path / 'bag', Scenario(seed=1, rate_hz=5.0), 2)
    assert main(['benchmark', str(tmp_path / 'bag'), '--repeats', '2', '--json', str(tmp_path / 'speed.json')]) == 0
    document = json.loads((tmp_path / 'speed.json').read_text())
    assert document['frames'] == 4
    stages = document['stages_s']
    assert list(stages)[:3] == ['read', 'synchronize', 'convert']
    assert {'project', 'network', 'measure', 'map'} <= set(stages)
    assert all(stages[name]['median'] > 0.0 for name in ('read', 'convert', 'project', 'network', 'measure'))
    inside = sum(times['median'] for name, times in stages.items() if name != 'read')
    assert document['frame_s']['median'] == pytest.approx(inside, rel=0.5)
    # Two frames at 5 Hz stand for 0.4 s of recording, twice over.
    assert document['real_time_ratio'] == pytest.approx(document['frames_per_s'] / 5.0)
    assert document['frames_per_s'] < 3.0 / stages['network']['median']
    assert f'{document["frames"]} frames, ' in capsys.readouterr().out
