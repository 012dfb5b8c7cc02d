from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cmml_ros.bag.event_filter import EventFilter, HeldMessage, read_header_stamp_ns

SECOND = 10**9


def message(index: int, size: int = 10) -> HeldMessage:
    return HeldMessage('/image', bytes(size), index)


def numbers(messages: list[HeldMessage]) -> list[int]:
    return [each.received_ns for each in messages]


def test_what_lies_around_an_event_passes_before_and_after_it() -> None:
    events = EventFilter(window_s=1.0, hold_s=10.0, hold_bytes=10**6)
    for second in range(5):
        assert events.add(message(second), second * SECOND) == []
    assert numbers(events.event(3 * SECOND)) == [2, 3, 4]
    assert numbers(events.event(3 * SECOND)) == []  # each passes once
    assert numbers(events.add(message(99), 4 * SECOND)) == [99]
    assert events.add(message(5), 5 * SECOND) == []


def test_what_waited_long_enough_is_forgotten() -> None:
    events = EventFilter(window_s=1.0, hold_s=2.0, hold_bytes=10**6)
    for second in range(6):
        events.add(message(second), second * SECOND)
    assert events.forgotten == 3
    assert numbers(events.event(2 * SECOND)) == [3]


def test_memory_is_bounded() -> None:
    events = EventFilter(window_s=10.0, hold_s=100.0, hold_bytes=100)
    for second in range(6):
        events.add(message(second, size=40), second * SECOND)
    assert numbers(events.event(2 * SECOND)) == [4, 5]


def test_a_jump_back_of_time_starts_anew() -> None:
    events = EventFilter(window_s=1.0, hold_s=10.0, hold_bytes=10**6)
    events.add(message(1), 1000 * SECOND)
    events.event(1000 * SECOND)
    assert events.add(message(2), 2 * SECOND) == []
    assert numbers(events.event(2 * SECOND)) == [2]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20 * SECOND)), max_size=40))
def test_each_message_passes_at_most_once_and_only_near_an_event(steps: list[tuple[bool, int]]) -> None:
    events = EventFilter(window_s=0.5, hold_s=100.0, hold_bytes=10**6)
    stamps, event_stamps, passed = {}, [], []
    for index, (is_event, stamp_ns) in enumerate(steps):
        if is_event:
            event_stamps.append(stamp_ns)
            passed += numbers(events.event(stamp_ns))
        else:
            stamps[index] = stamp_ns
            passed += numbers(events.add(message(index), stamp_ns))
    near = {
        index for index, stamp_ns in stamps.items() if any(abs(stamp_ns - each) <= SECOND // 2 for each in event_stamps)
    }
    assert sorted(passed) == sorted(near)


def test_the_stamp_is_read_in_both_byte_orders() -> None:
    assert read_header_stamp_ns(bytes.fromhex('00010000 02000000 03000000')) == 2 * SECOND + 3
    assert read_header_stamp_ns(bytes.fromhex('00000000 00000002 00000003')) == 2 * SECOND + 3
    assert read_header_stamp_ns(b'\x00\x01') == 0
