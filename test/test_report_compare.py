from __future__ import annotations

import csv
import dataclasses
from math import pi
from pathlib import Path

import cv2
import numpy as np
import pytest

from cmml_ros.cli import main
from cmml_ros.errors import ConfigError
from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.report.compare import Comparison, compare
from cmml_ros.report.tables import write_defects, write_geojson


def make_entry(number: int, x_m: float, area_m2: float = 50e-6, **changes: object) -> MapEntry:
    angles = np.linspace(0, 2 * pi, 12, endpoint=False)
    position = np.array([x_m, 0.001 * (number % 3), 0.0])
    measurement = Measurement(
        area_status=Status.MEASURED,
        volume_status=Status.MEASURED,
        position=position,
        normal=np.array([0.0, 0.0, 1.0]),
        outline=position + 0.004 * np.column_stack([np.cos(angles), np.sin(angles), np.zeros(12)]),
        area_m2=area_m2,
        area_std_m2=2e-6,
        equivalent_diameter_m=0.008,
        volume_m3=80e-9,
        volume_std_m3=4e-9,
    )
    return MapEntry(number, 0, 'map', dataclasses.replace(measurement, **changes), 0.9, 3, 0, 0)


def write_run(folder: Path, *entries: MapEntry) -> Path:
    folder.mkdir()
    write_defects(folder / 'defects.csv', entries)
    write_geojson(folder / 'defects.geojson', entries)
    return folder


def test_matched_new_gone_and_changed(tmp_path: Path):
    a = write_run(tmp_path / 'a', make_entry(1, 0.00), make_entry(2, 0.05), make_entry(3, 0.10))
    b = write_run(
        tmp_path / 'b', make_entry(1, 0.051, area_m2=60e-6), make_entry(2, 0.001, area_m2=52e-6), make_entry(3, 0.20)
    )
    comparison = compare(a, b, tmp_path / 'out')
    assert [(row['kind'], row['defect_id_a'], row['defect_id_b']) for row in comparison.rows] == [
        ('matched', '1', '2'), ('matched', '2', '1'), ('gone', '3', ''), ('new', '', '3')
    ]  # fmt: skip
    (changed,) = comparison.changed
    assert changed['defect_id_a'] == '2'
    assert float(changed['area_mm2_difference']) == pytest.approx(10.0)
    assert float(changed['area_mm2_deviations']) == pytest.approx(10 / 8**0.5)  # both have 2 mm2
    assert changed['depth_max_mm_difference'] == ''  # unknown in both
    with (tmp_path / 'out' / 'compare.csv').open(newline='') as file:
        assert list(csv.DictReader(file)) == list(comparison.rows)
    picture = cv2.imread(str(tmp_path / 'out' / 'compare.png'))
    for color in ((40, 160, 40), (40, 40, 210), (200, 110, 20), (110, 110, 110)):
        assert (picture == color).all(axis=2).sum() > 100


def test_a_run_does_not_differ_from_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = write_run(tmp_path / 'a', make_entry(1, 0.00), make_entry(2, 0.004), make_entry(3, 0.008))
    assert main(['compare', str(a), str(a), '--out', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    assert '3 matched, 0 new' in text
    assert 'no difference' in text
    assert 'left out' not in text


def test_what_has_no_position_is_neither_new_nor_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    somewhere = make_entry(2, 0.0, position=np.full(3, np.nan), outline=np.empty((0, 3)))
    a = write_run(tmp_path / 'a', make_entry(1, 0.00), somewhere)
    assert main(['compare', str(a), str(a), '--out', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    assert '1 matched, 0 new' in text
    assert ', 0 gone' in text
    assert '2 of both without a position are left out' in text
    assert 'no difference' in text
    nowhere = write_run(tmp_path / 'b', somewhere)
    assert compare(nowhere, nowhere, tmp_path / 'out') == Comparison((), unplaced=2)


def test_close_neighbours_keep_their_own_partner(tmp_path: Path):
    # All are within reach of each other; the least total distance tells who is who.
    a = write_run(tmp_path / 'a', make_entry(1, 0.000), make_entry(4, 0.006))
    b = write_run(tmp_path / 'b', make_entry(4, 0.007), make_entry(1, 0.001))
    pairs = [(row['defect_id_a'], row['defect_id_b']) for row in compare(a, b, tmp_path / 'out').rows]
    assert pairs == [('1', '1'), ('4', '4')]


def test_what_cannot_be_compared_is_told(tmp_path: Path):
    a = write_run(tmp_path / 'a', make_entry(1, 0.0))
    b = write_run(tmp_path / 'b', dataclasses.replace(make_entry(1, 0.0), frame_id='odom'))
    with pytest.raises(ConfigError, match='cannot be compared'):
        compare(a, b, tmp_path / 'out')
    with pytest.raises(ConfigError, match=r'no defects\.csv'):
        compare(a, tmp_path / 'nothing', tmp_path / 'out')


@pytest.mark.parametrize(
    ('name', 'text', 'reason'),
    [
        ('defects.csv', 'a,b\n1,2\n', 'no column'),
        ('defects.csv', '', 'no column'),
        ('defects.geojson', '{', 'no rims can be read'),
        ('defects.geojson', '{"features": [1]}', 'no rims can be read'),
    ],
)
def test_files_that_are_no_results_are_named(tmp_path: Path, name: str, text: str, reason: str):
    a, b = (write_run(tmp_path / run, make_entry(1, 0.0)) for run in ('a', 'b'))
    (b / name).write_text(text)
    with pytest.raises(ConfigError, match=f'b/{name}: {reason}'):
        compare(a, b, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path):
    run = write_run(tmp_path / 'run', make_entry(1, 0.0))
    (tmp_path / 'out' / 'compare.png').mkdir(parents=True)
    with pytest.raises(OSError, match=r'compare\.png'):
        compare(run, run, tmp_path / 'out')
