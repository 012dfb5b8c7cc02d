from __future__ import annotations

import subprocess
import sys

import pytest

from cmml_ros.cli import main
from cmml_ros.errors import CmmlError


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


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, '-m', 'cmml_ros.cli', '--help'], capture_output=True, text=True, check=True)
    assert done.stdout.startswith('usage: cmml')
