"""Two minutes of the soak: benchmarks/soak.py runs ten."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')
from soak import MEMORY_GROWTH, soak


@pytest.mark.slow
def test_two_minutes_lose_nothing_and_leak_nothing() -> None:
    figures = soak(minutes=2.0, rate_hz=5.0)
    assert figures.sent == 600
    assert figures.received == 600
    assert figures.clouds_received == 600
    assert figures.results > 10
    assert figures.results + figures.behind >= 595
    assert figures.growth < MEMORY_GROWTH
    assert figures.age_s[1] <= figures.age_limit_s
    assert figures.errors == []
