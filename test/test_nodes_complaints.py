from __future__ import annotations

import pytest

pytest.importorskip('rclpy')
from cmml_ros.nodes import complaints
from cmml_ros.nodes.complaints import Complaints


class Log(list[str]):
    def warning(self, text: str) -> None:
        self.append(text)


def test_each_kind_is_said_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(complaints.time, 'monotonic', lambda: now_s[0])
    log = Log()
    said = Complaints(log)
    for step in range(10):  # twenty seconds
        said.add(ValueError(f'/image needs {step} bytes'))
        said.add(ValueError('/points: no field "x"'))
        now_s[0] += 2.0
    assert log.count('/points: no field "x"') == 4
    assert [text for text in log if 'bytes' in text] == [f'/image needs {step} bytes' for step in (0, 3, 6, 9)]


def test_kinds_without_end_do_not_fill_the_memory() -> None:
    log = Log()
    said = Complaints(log)
    for index in range(1000):
        said.add(ValueError(''.join(chr(97 + int(digit)) for digit in str(index))))
    assert len(log) == 1000
    assert len(said._logged_s) <= 200
