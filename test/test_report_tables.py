from __future__ import annotations

import dataclasses
import json
import math
from math import nan
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.report.tables import DEFECT_COLUMNS, defect_row, format_number, write_defects, write_geojson

MEASUREMENT = Measurement(
    area_status=Status.MEASURED,
    volume_status=Status.BELOW_DETECTION_LIMIT,
    position=np.array([1.0, -2.0, 0.5]),
    normal=np.array([0.0, -0.0, -1.0]),
    outline=np.array([[0.0, 0, 0], [0.01, 0, 0], [0.01, 0.01, 0]]),
    area_m2=50e-6,
    equivalent_diameter_m=0.008,
    volume_upper_bound_m3=12e-9,
    point_count=3,
)
ENTRY = MapEntry(7, 0, 'map', MEASUREMENT, 0.75, 2, 1_700_000_000_000_000_001, 1_700_000_000_000_000_002)


def test_the_columns_are_those_of_the_interface():
    assert ','.join(DEFECT_COLUMNS) == (
        'defect_id,frame_id,x_m,y_m,z_m,nx,ny,nz,area_mm2,area_std_mm2,equivalent_diameter_mm,major_axis_mm,'
        'minor_axis_mm,depth_max_mm,depth_max_std_mm,volume_mm3,volume_std_mm3,volume_upper_bound_mm3,area_status,'
        'volume_status,confidence,observations,point_count,first_stamp_ns,last_stamp_ns'
    )
    assert set(defect_row(ENTRY)) == set(DEFECT_COLUMNS)


def test_a_row_is_in_millimetres_and_unknown_is_empty(tmp_path: Path):
    write_defects(tmp_path / 'defects.csv', [ENTRY])
    header, line = (tmp_path / 'defects.csv').read_text().splitlines()
    assert header.split(',') == list(DEFECT_COLUMNS)
    assert line == (
        '7,map,1,-2,0.5,0,0,-1,50,,8,,,,,,,12,MEASURED,BELOW_DETECTION_LIMIT,0.75,2,3,'
        '1700000000000000001,1700000000000000002'
    )


@given(st.floats(-1e9, 1e9, allow_subnormal=False).filter(lambda value: value == 0 or abs(value) > 1e-12))
def test_numbers_survive_to_a_millionth(value: float):
    assert float(format_number(value)) == pytest.approx(value, rel=1e-8)


def test_numbers_have_one_spelling():
    assert [format_number(value) for value in (0.0, -0.0, 1.0, 1 / 3, nan)] == ['0', '0', '1', '0.333333333', '']


def test_geojson_holds_closed_rims_and_null_for_unknown(tmp_path: Path):
    nowhere = dataclasses.replace(ENTRY, defect_id=8, measurement=Measurement.unknown(Status.NO_POINTS, 'no points'))
    write_geojson(tmp_path / 'defects.geojson', [ENTRY, nowhere])
    collection = json.loads((tmp_path / 'defects.geojson').read_text(), parse_constant=pytest.fail)
    first, second = collection['features']
    assert first['id'] == 7
    assert first['geometry'] == {
        'type': 'Polygon',
        'coordinates': [[[0, 0, 0], [0.01, 0, 0], [0.01, 0.01, 0], [0, 0, 0]]],
    }
    assert first['properties']['area_mm2'] == 50
    assert first['properties']['volume_mm3'] is None
    assert first['properties']['first_stamp_ns'] == 1_700_000_000_000_000_001
    assert second['geometry'] is None
    assert math.isclose(second['properties']['confidence'], 0.75)
