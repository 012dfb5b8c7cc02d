from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from cmml_ros.cli import LOOKS, SCENES, SENSORS, main
from cmml_ros.errors import CmmlError
from cmml_ros.simulation.camera import Look
from cmml_ros.simulation.range_sensor import SENSORS as KNOWN_SENSORS
from cmml_ros.simulation.scenario import Scenario
from cmml_ros.simulation.wall import Kind


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(['--help'])
    assert stopped.value.code == 0
    assert 'analyze' in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [[], ['no-such-command'], ['analyze'], ['analyze', 'bag', '--no-such-option']])
def test_a_wrong_call_ends_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert 'usage: cmml' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [
        ['analyze', 'bag', '--out', 'out', '--workers', '0'],
        ['evaluate', '--frames', '-1'],
        ['benchmark', 'bag', '--repeats', 'two'],
    ],
)
def test_a_number_of_nothing_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert f'argument {arguments[-2]}: must be a whole number from 1 on, got {arguments[-1]}' in capsys.readouterr().err


def test_a_seed_is_not_negative(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(['evaluate', '--measurement', '--seed', '-1'])
    assert stopped.value.code == 2
    assert 'argument --seed: must be a whole number from 0 on, got -1' in capsys.readouterr().err


def test_an_exported_network_needs_a_name(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for folder in ('.', str(tmp_path)):
        assert main(['export', folder]) == 2
        assert f'cmml: error: {folder} is a folder; name a file in it' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('fault', 'status', 'message'),
    [
        (CmmlError('bag: no such bag'), 2, 'cmml: error: bag: no such bag\n'),
        (PermissionError(13, 'Permission denied', '/out'), 2, "cmml: error: [Errno 13] Permission denied: '/out'\n"),
        (KeyboardInterrupt(), 130, 'cmml: interrupted\n'),
    ],
)
def test_a_fault_is_one_line_without_traceback(
    fault: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def raise_fault(_: object) -> None:
        raise fault

    monkeypatch.setattr('cmml_ros.cli._analyze', raise_fault)
    assert main(['analyze', 'bag', '--out', 'out']) == status
    assert capsys.readouterr().err == message


def test_simulate_offers_what_the_simulation_knows():
    assert get_args(Kind) == SCENES
    assert get_args(Look) == LOOKS
    assert tuple(KNOWN_SENSORS) == SENSORS


def test_simulate_passes_on_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls: list[tuple[str, Path, Scenario, int]] = []
    for name in ('simulate_bag', 'simulate_dataset'):
        monkeypatch.setattr(
            f'cmml_ros.simulation.scenario.{name}', lambda *call, name=name: calls.append((name, *call))
        )
    arguments = [
        'simulate',
        str(tmp_path),
        '--scene',
        'tunnel',
        '--sensor',
        'tof_lidar',
        '--frames',
        '3',
        '--seed',
        '7',
    ]
    assert main(arguments) == 0
    assert main([*arguments, '--dataset', '--look', 'path']) == 0
    scenario = Scenario(kind='tunnel', sensor_name='tof_lidar', seed=7)
    assert calls == [
        ('simulate_bag', tmp_path, scenario, 3),
        ('simulate_dataset', tmp_path, dataclasses.replace(scenario, look='path'), 3),
    ]


def test_simulate_refuses_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(['simulate', str(tmp_path / 'out'), '--seed', '-1']) == 2
    assert 'cmml: error: the seed must not be negative, got -1' in capsys.readouterr().err


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, '-m', 'cmml_ros.cli', '--help'], capture_output=True, text=True, check=True)
    assert done.stdout.startswith('usage: cmml')
