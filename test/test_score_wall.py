"""The score that the acceptance runs believe."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope='module')
def score_wall() -> ModuleType:
    path = Path(__file__).parent.parent / 'benchmarks' / 'score_wall.py'
    spec = importlib.util.spec_from_file_location('score_wall', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules['score_wall'] = module
    spec.loader.exec_module(module)
    return module


def hole(number: int, x_m: float, diameter_m: float) -> dict[str, Any]:
    return {
        'id': number,
        'centre_m': [x_m, 0.0, 0.5],
        'normal': [0.0, -1.0, 0.0],
        'equivalent_diameter_m': diameter_m,
        'area_m2': math.pi / 4 * diameter_m**2,
        'volume_m3': 1e-7,
    }


def defect(x_m: float, diameter_m: float, **cells: str) -> dict[str, str]:
    return {
        'x_m': str(x_m),
        'y_m': '0.004',
        'z_m': '0.5',
        'equivalent_diameter_mm': str(diameter_m * 1e3),
        'area_mm2': str(math.pi / 4 * diameter_m**2 * 1e6),
        'volume_mm3': '105.0',
        'volume_status': 'MEASURED',
        **cells,
    }


@pytest.fixture
def truth() -> dict[str, Any]:
    # 2 px per millimetre: 10 mm are 20 px, 3 mm are 6 px. The last airhole is never seen whole.
    square = [[0.49, 0.0, 0.49], [0.51, 0.0, 0.49], [0.51, 0.0, 0.51], [0.49, 0.0, 0.51]]
    return {
        'airholes': [hole(1, 0.1, 0.010), hole(2, 0.2, 0.010), hole(3, 0.3, 0.003), hole(4, 0.4, 0.010)],
        'distractors': [{'id': 1, 'kind': 'painted_spot', 'outline_m': square}],
        'frames': [
            {'airholes': [{'id': 1, 'diameter_px': 20.0}, {'id': 3, 'diameter_px': 6.0}]},
            {'airholes': [{'id': 1, 'diameter_px': 19.0}, {'id': 2, 'diameter_px': 20.0}]},
        ],
    }


def test_counts_what_was_found_missed_and_made_up(score_wall: ModuleType, truth: dict[str, Any]) -> None:
    rows = [
        defect(0.101, 0.010 * math.sqrt(1.04)),  # airhole 1, area 4 % too large, volume 5 %
        defect(0.104, 0.008),  # once more
        defect(0.30, 0.003),  # airhole 3: right, but too small to count
        defect(0.40, 0.010),  # airhole 4: right, but not asked for
        defect(0.50, 0.010),  # on the painted spot
        defect(0.60, 0.010, volume_mm3='', volume_status='NO_POINTS'),
        defect(0.70, 0.002),  # too small to count
        {**defect(0.80, 0.010), 'x_m': '', 'equivalent_diameter_mm': ''},  # nowhere
    ]
    found = score_wall.score(truth, rows)
    assert (found.true_count, found.found_count, found.defect_count) == (2, 1, 5)
    assert found.recall == 0.5
    assert dict(found.false_alarms) == {'airhole taken twice': 1, 'painted_spot': 1, 'plain wall': 1}
    assert found.precision == pytest.approx(0.4)
    assert found.area_error == pytest.approx(0.04)
    assert found.volume_error == pytest.approx(0.05)
    assert dict(found.statuses) == {'MEASURED': 1}


def test_nothing_found_is_no_number(score_wall: ModuleType, truth: dict[str, Any]) -> None:
    found = score_wall.score(truth, [])
    assert found.recall == 0.0
    assert math.isnan(found.precision)
    assert math.isnan(found.area_error)


def test_matches_are_one_to_one_and_as_many_as_can_be(score_wall: ModuleType) -> None:
    centres = np.array([[0.0, 0.0, 0.0], [0.009, 0.0, 0.0]])
    normals = np.array([[0.0, -1.0, 0.0]] * 2)
    # The first defect is nearer to airhole 1, but only airhole 0 is left for it when the second takes airhole 1.
    positions = np.array([[0.0048, 0.0, 0.0], [0.0135, -0.01, 0.0], [0.009, 0.2, 0.0]])
    pairs = score_wall.match_airholes(centres, normals, np.full(2, 0.010), positions)
    assert sorted(pairs) == [(0, 0), (1, 1)]
