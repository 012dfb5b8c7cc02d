from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from cmml_ros.errors import PoseError, ShapeError
from cmml_ros.extrinsic_check import ExtrinsicCheck
from cmml_ros.frame import Frame
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3

SECOND = 10**9
T_GIVEN = SE3(np.eye(3), np.zeros(3))


class Registrar:
    """Says the number of the check; waits while `may_end` is not set."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.may_end.set()
        self.begun: list[str] = []

    def refine(self, *_: object) -> None:
        self.begun.append(threading.current_thread().name)
        self.may_end.wait(10.0)
        raise PoseError(f'check {len(self.begun)}')


def make_frame(seconds: float) -> Frame:
    image = np.zeros((4, 4, 3), np.uint8)
    camera = Camera(4, 4, 1.0, 1.0, 2.0, 2.0)
    cloud = Cloud(np.ones((1, 3)))
    return Frame(image, camera, round(seconds * SECOND), 'camera', cloud, round(seconds * SECOND), T_GIVEN)


def run(check: ExtrinsicCheck, *seconds: float) -> dict[float, list[tuple[float, str]]]:
    """By time of the frame: the time of the frame that was checked, and what came of it."""
    return {
        at_s: [(frame.stamp_ns / SECOND, str(found)) for frame, found in check.results(make_frame(at_s), T_GIVEN)]
        for at_s in seconds
    }


def test_a_result_belongs_to_the_frame_half_a_period_later_however_long_it_took() -> None:
    registrar = Registrar()
    check = ExtrinsicCheck(registrar, period_s=20.0)
    registrar.may_end.clear()
    assert run(check, 100.0, 101.0, 109.9) == {100.0: [], 101.0: [], 109.9: []}  # frames go on beside it
    threading.Timer(0.2, registrar.may_end.set).start()
    assert run(check, 110.5) == {110.5: [(100.0, 'check 1')]}
    assert run(check, 119.9, 120.0, 130.0) == {119.9: [], 120.0: [], 130.0: [(120.0, 'check 2')]}
    # One that was done at once does not come sooner.
    assert run(check, 140.0, 141.0, 149.0, 150.0) == {140.0: [], 141.0: [], 149.0: [], 150.0: [(140.0, 'check 3')]}
    assert {name.startswith('extrinsic check') for name in registrar.begun} == {True}


def test_a_doubt_is_looked_into_soon() -> None:
    check = ExtrinsicCheck(Registrar(), period_s=20.0)
    assert run(check, 100.0, 110.0) == {100.0: [], 110.0: [(100.0, 'check 1')]}
    check.in_doubt = True
    assert run(check, 110.5, 111.0, 111.5) == {110.5: [], 111.0: [], 111.5: [(110.5, 'check 2')]}
    assert run(check, 112.5, 113.5) == {112.5: [], 113.5: [(112.5, 'check 3')]}
    check.in_doubt = False
    assert run(check, 120.0, 132.5, 142.5) == {120.0: [], 132.5: [], 142.5: [(132.5, 'check 4')]}


def test_after_a_jump_back_of_time_a_new_check_begins() -> None:
    check = ExtrinsicCheck(Registrar(), period_s=20.0)
    assert run(check, 100.0, 110.0, 120.0) == {100.0: [], 110.0: [(100.0, 'check 1')], 120.0: []}
    assert run(check, 5.0, 10.0, 15.0) == {5.0: [(120.0, 'check 2')], 10.0: [], 15.0: [(5.0, 'check 3')]}


def test_what_is_under_way_at_the_end_is_waited_for() -> None:
    registrar = Registrar()
    check = ExtrinsicCheck(registrar, period_s=20.0)
    assert check.finish() == []
    registrar.may_end.clear()
    run(check, 100.0)
    threading.Timer(0.2, registrar.may_end.set).start()
    ((frame, found),) = check.finish()
    assert (frame.stamp_ns, str(found)) == (100 * SECOND, 'check 1')
    assert check.finish() == []


def test_zero_is_never() -> None:
    registrar = Registrar()
    check = ExtrinsicCheck(registrar, period_s=0.0)
    assert run(check, 1.0, 1000.0) == {1.0: [], 1000.0: []}
    assert check.finish() == []
    assert registrar.begun == []


def test_an_error_of_ours_is_a_refusal() -> None:
    class Failing(Registrar):
        def refine(self, *_: object) -> None:
            raise ShapeError('no proper rotation')

    assert run(ExtrinsicCheck(Failing(), period_s=20.0), 1.0, 11.0)[11.0] == [(1.0, 'no proper rotation')]


def test_what_it_does_not_expect_is_raised_where_the_frame_is() -> None:
    registrar = Registrar()
    registrar.refine = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(ExtrinsicCheck(registrar, period_s=20.0), 1.0, 11.0)


def test_what_a_failed_check_worked_on_is_freed_at_once() -> None:
    """Pyramids and features of tens of megabytes must not wait for the next full collection."""
    held: list[weakref.ref[np.ndarray]] = []

    class Exploring(Registrar):
        def refine(self, *_: object) -> None:
            work = np.zeros(1000)
            held.append(weakref.ref(work))
            try:
                raise ValueError('no feature')
            except ValueError:
                raise PoseError('a bare plane') from None

    gc.disable()
    try:
        check = ExtrinsicCheck(Exploring(), period_s=20.0)
        assert run(check, 100.0, 110.0, 120.0, 130.5) == {
            100.0: [],
            110.0: [(100.0, 'a bare plane')],
            120.0: [],
            130.5: [(120.0, 'a bare plane')],
        }
        assert [work() for work in held] == [None, None]
    finally:
        gc.enable()


def test_all_checks_run_in_one_thread() -> None:
    """The allocator keeps what a thread has freed for threads like it: a new one each time would pile it up."""
    idents: set[int] = set()
    registrar = Registrar()
    refine = registrar.refine

    def note_thread(*_: object) -> None:
        idents.add(threading.get_native_id())
        refine()

    registrar.refine = note_thread
    run(ExtrinsicCheck(registrar, period_s=20.0), 100.0, 120.0, 130.5, 140.0, 150.5)
    assert len(idents) == 1
