from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmml_ros.bag.reader import BagReader
from cmml_ros.bag.recording import Recording
from cmml_ros.bag.writer import BagWriter
from cmml_ros.errors import BagError

STRING = 'std_msgs/msg/String'
GIGABYTE = 10**9


def cdr(size: int) -> bytes:
    """A String of `size` characters."""
    return b'\x00\x01\x00\x00' + (size + 1).to_bytes(4, 'little') + b'x' * size + b'\x00'


def make_recording(path: Path, queue_bytes: int = GIGABYTE, reserve_bytes: int = 0) -> Recording:
    recording = Recording(BagWriter(path), queue_bytes, reserve_bytes)
    recording.add_topic('/text', STRING, latched=False, reliable=True)
    return recording


def count_recorded(path: Path) -> int:
    with BagReader(path) as reader:
        assert reader.warnings == []
        return sum(1 for _ in reader.messages(['/text']))


def is_flushed(path: Path) -> bool:
    """Whether the first message can be read while the bag is open."""
    try:
        with BagReader(path) as reader:
            return bool(next(reader.messages(['/text'])))
    except BagError:
        return False


def await_true(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_all_is_written_before_the_end(tmp_path: Path) -> None:
    recording = make_recording(tmp_path / 'bag')
    assert all(recording.write('/text', cdr(100), index) for index in range(1000))
    state = recording.stop()
    assert (state.messages, state.waiting_bytes, state.lost, state.fault) == (1000, 0, {}, '')
    assert count_recorded(tmp_path / 'bag') == 1000


def test_what_finds_no_room_is_lost_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = BagWriter.write

    def write_slowly(*arguments: object) -> None:
        time.sleep(0.02)
        write(*arguments)

    monkeypatch.setattr(BagWriter, 'write', write_slowly)
    recording = make_recording(tmp_path / 'bag', queue_bytes=10_000)
    accepted = sum(recording.write('/text', cdr(1000), index) for index in range(50))
    state = recording.stop()
    assert 9 <= accepted < 50
    assert state.lost == {'/text': 50 - accepted}
    assert count_recorded(tmp_path / 'bag') == accepted == state.messages


def test_recording_stops_before_the_reserve_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [3 * GIGABYTE]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=free[0]))
    recording = make_recording(tmp_path / 'bag', reserve_bytes=2 * GIGABYTE)
    assert recording.write('/text', cdr(10), 1)
    await_true(lambda: recording.state().messages == 1)
    free[0] = 2 * GIGABYTE - 1
    await_true(lambda: recording.state().fault)
    assert not recording.write('/text', cdr(10), 2)
    # The bag is complete before anybody stops the recording.
    assert count_recorded(tmp_path / 'bag') == 1
    state = recording.stop()
    assert state.lost == {'/text': 1}
    assert '2000 MB are free on the disk' in state.fault
    assert '2000 MB are kept in reserve' in state.fault


def test_a_disk_that_fails_ends_the_recording_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = make_recording(tmp_path / 'bag')
    assert recording.write('/text', cdr(10), 1)
    await_true(lambda: is_flushed(tmp_path / 'bag'))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('mcap.writer.Writer.add_message', fail)
    recording.write('/text', cdr(10), 2)
    await_true(lambda: recording.state().fault)
    assert not recording.write('/text', cdr(10), 3)
    state = recording.stop()
    assert 'No space left on device' in state.fault
    assert state.lost == {'/text': 2}
    with BagReader(tmp_path / 'bag') as reader:
        messages = reader.messages(['/text'])
        assert next(messages).stamp_ns == 1
