from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmml_ros.cli import main
from cmml_ros.config import InspectorConfig
from cmml_ros.evaluation import measurement
from cmml_ros.evaluation.measurement import Grid, Sample, TestView, assess, make_views, sample_measurements, total
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.measurement.defect import Status
from cmml_ros.simulation.scenario import CAMERA

GRID = Grid((0.006, 0.015), (0.2, 0.6), (0.4,), (30.0,), 1, sensors=('depth_camera 0.1 mm',), kinds=('plane',))


@pytest.fixture(scope='module')
def views() -> list[TestView]:
    return list(make_views(GRID, 3))


@pytest.fixture(scope='module')
def samples(views: list[TestView]) -> list[Sample]:
    return list(sample_measurements(iter(views), GRID.sensors, InspectorConfig(), 'true'))


def test_every_cell_is_shown_once_and_its_truth_is_what_was_asked(views: list[TestView]) -> None:
    sizes = sorted(size for view in views for size in view.sizes)
    assert sizes == [(0.006, 0.2), (0.006, 0.6), (0.015, 0.2), (0.015, 0.6)]
    for view in views:
        for hole, (diameter_m, depth_ratio) in zip(view.holes, view.sizes, strict=True):
            assert hole.equivalent_diameter_m == pytest.approx(diameter_m, rel=1e-6)
            assert hole.depth_max_m == pytest.approx(diameter_m * depth_ratio, rel=0.25)
            to_hole = hole.centre - view.T_scene_camera.translation
            cosine = -to_hole @ hole.normal / np.linalg.norm(to_hole)
            assert math.degrees(math.acos(cosine)) == pytest.approx(30.0, abs=10.0)


def test_true_masks_hold_the_projected_rim(views: list[TestView]) -> None:
    for view in views:
        assert len(view.spot_masks) > 3
        for hole, mask in zip(view.holes, view.masks, strict=True):
            pixels, _ = CAMERA.project(view.T_scene_camera.inverse().apply(hole.rim))
            u, v = pixels.T
            area_px = abs(0.5 * float(u @ np.roll(v, -1) - v @ np.roll(u, -1)))
            assert mask.area_px == pytest.approx(area_px, rel=0.01)


def test_a_good_sensor_is_right_and_sound_wall_is_not_measured(samples: list[Sample]) -> None:
    totals = total(samples)
    assert (totals.airholes, totals.area.count) == (4, 4)
    assert totals.area.error < 0.01
    assert totals.volume.error < 0.1
    assert totals.spots > 3
    assert totals.spots_measured == 0


def test_assess_counts_errors_and_intervals(samples: list[Sample]) -> None:
    sample = next(sample for sample in samples if sample.truth is not None)
    assert sample.truth is not None
    off = [
        replace(
            sample,
            measurement=replace(
                sample.measurement,
                volume_status=Status.MEASURED,
                volume_m3=factor * sample.truth.volume_m3,
                volume_std_m3=0.1 * sample.truth.volume_m3,
            ),
        )
        for factor in (0.75, 0.9, 1.0, 1.1)
    ]
    quality = assess(off, 'volume')
    assert quality.count == 4
    assert quality.error == pytest.approx(0.1)
    assert quality.bias == pytest.approx(-0.0625)
    assert quality.covered == 0.75
    assert quality.claimed == pytest.approx(0.1)
    assert math.isnan(assess([], 'volume').error)


def test_found_masks_belong_to_what_they_cover_most() -> None:
    def disc(left: int) -> InstanceMask:
        return InstanceMask(np.ones((10, 10), np.float32), left, 50, 1.0)

    true = [disc(100), disc(200), disc(300)]
    found = [disc(203), disc(104), disc(98), disc(400)]
    matched, sound = measurement._match(true, found)
    assert matched == [found[2], found[0], None]
    assert sound == [found[3]]


@pytest.mark.slow
def test_the_command_writes_tables_cells_and_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measurement, 'FAST', GRID)
    assert main(['evaluate', '--measurement', '--out', str(tmp_path)]) == 0
    assert '| depth_camera 0.1 mm | 4 |' in capsys.readouterr().out
    document = json.loads((tmp_path / 'measurement_true_masks.json').read_text())
    assert [cell['volume']['count'] for cell in document['cells']] == [1, 1, 1, 1]
    assert document['totals']['depth_camera 0.1 mm']['airholes'] == 4
    assert (tmp_path / 'measurability.png').read_bytes().startswith(b'\x89PNG')
