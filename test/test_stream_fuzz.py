"""A short run of benchmarks/fuzz.py."""

from __future__ import annotations

import pytest
from fuzz import fuzz


@pytest.mark.parametrize('seed', [1, 2])
def test_messages_that_are_nearly_right_are_taken_or_refused(seed: int) -> None:
    figures = fuzz(5000, seed)
    assert figures.crashes == []
    assert figures.frames > 50
    assert {name.split(':')[0] for name in figures.refused} >= {'info', 'cloud', 'tf', 'frame'}
    assert all(figures.taken[kind] > 100 for kind in ('image', 'compressed', 'info', 'cloud', 'tf', 'tf_static'))
