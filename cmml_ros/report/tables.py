"""Results as tables and files: millimetres for people, unknown as an empty cell, the same bytes for the same result."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.mapping.record import FrameRecord
from cmml_ros.measurement.defect import Defect, Measurement

Row = dict[str, str]

# Column, its value in SI, and the factor to the unit in its name.
_MEASUREMENT_COLUMNS: tuple[tuple[str, Callable[[Measurement], float], float], ...] = (
    ('x_m', lambda measurement: measurement.position[0], 1.0),
    ('y_m', lambda measurement: measurement.position[1], 1.0),
    ('z_m', lambda measurement: measurement.position[2], 1.0),
    ('nx', lambda measurement: measurement.normal[0], 1.0),
    ('ny', lambda measurement: measurement.normal[1], 1.0),
    ('nz', lambda measurement: measurement.normal[2], 1.0),
    ('area_mm2', lambda measurement: measurement.area_m2, 1e6),
    ('area_std_mm2', lambda measurement: measurement.area_std_m2, 1e6),
    ('equivalent_diameter_mm', lambda measurement: measurement.equivalent_diameter_m, 1e3),
    ('major_axis_mm', lambda measurement: measurement.major_axis_m, 1e3),
    ('minor_axis_mm', lambda measurement: measurement.minor_axis_m, 1e3),
    ('depth_max_mm', lambda measurement: measurement.depth_max_m, 1e3),
    ('depth_max_std_mm', lambda measurement: measurement.depth_max_std_m, 1e3),
    ('volume_mm3', lambda measurement: measurement.volume_m3, 1e9),
    ('volume_std_mm3', lambda measurement: measurement.volume_std_m3, 1e9),
    ('volume_upper_bound_mm3', lambda measurement: measurement.volume_upper_bound_m3, 1e9),
)
_MEASUREMENT_NAMES = tuple(name for name, _, _ in _MEASUREMENT_COLUMNS)

DEFECT_COLUMNS = (
    'defect_id', 'frame_id', *_MEASUREMENT_NAMES, 'area_status', 'volume_status', 'confidence', 'observations',
    'point_count', 'first_stamp_ns', 'last_stamp_ns',
)  # fmt: skip
_TEXTS = ('frame_id', 'area_status', 'volume_status')
_INTEGERS = ('defect_id', 'observations', 'point_count', 'first_stamp_ns', 'last_stamp_ns')
OBSERVATION_COLUMNS = (
    'stamp_ns', 'defect_id', 'frame_id', 'roi_left', 'roi_top', 'roi_width', 'roi_height', 'confidence',
    *_MEASUREMENT_NAMES, 'area_status', 'volume_status', 'point_count', 'reason',
)  # fmt: skip
FRAME_COLUMNS = (
    'stamp_ns', 'frame_id', 'defect_count', 'cloud_stamp_ns', 'cloud_points', 'sync_offset_s', 'in_map', 'reason',
)  # fmt: skip


def format_number(value: float) -> str:
    """Nine significant digits, enough to compare runs to 1e-6; NaN is an empty string."""
    return '' if math.isnan(value) else f'{value + 0.0:.9g}'  # + 0.0: no "-0"


def defect_row(entry: MapEntry) -> Row:
    """One airhole by DEFECT_COLUMNS, in the frame `frame_id`."""
    return {
        'defect_id': str(entry.defect_id),
        'frame_id': entry.frame_id,
        **_measurement_cells(entry.measurement),
        'confidence': format_number(entry.confidence),
        'observations': str(entry.observations),
        'first_stamp_ns': str(entry.first_stamp_ns),
        'last_stamp_ns': str(entry.last_stamp_ns),
    }


def observation_row(record: FrameRecord, defect_id: int, defect: Defect) -> Row:
    """One airhole in one frame by OBSERVATION_COLUMNS, in the camera's frame."""
    left, top, width, height = defect.roi
    return {
        'stamp_ns': str(record.stamp_ns),
        'defect_id': str(defect_id),
        'frame_id': record.frame_id,
        'roi_left': str(left),
        'roi_top': str(top),
        'roi_width': str(width),
        'roi_height': str(height),
        'confidence': format_number(defect.confidence),
        **_measurement_cells(defect.measurement),
        'reason': defect.measurement.reason,
    }


def frame_row(record: FrameRecord) -> Row:
    """One frame by FRAME_COLUMNS; reason: why it has no cloud or no transform."""
    return {
        'stamp_ns': str(record.stamp_ns),
        'frame_id': record.frame_id,
        'defect_count': str(len(record.defects)),
        'cloud_stamp_ns': '' if record.cloud_stamp_ns is None else str(record.cloud_stamp_ns),
        'cloud_points': '' if record.cloud_points is None else str(record.cloud_points),
        'sync_offset_s': format_number(record.sync_offset_s),
        'in_map': str(int(record.T_map_camera is not None)),
        'reason': record.transform_reason,
    }


class TableWriter:
    """A CSV file that grows row by row, to be used as a context manager; it has its name when it is complete."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        self._columns = tuple(columns)
        self._path, self._unfinished = path, path.with_suffix('.unfinished')
        self._file = self._unfinished.open('w', encoding='utf-8', newline='')
        self._writer = csv.DictWriter(self._file, self._columns, extrasaction='ignore', lineterminator='\n')
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        """Append a row; cells that are not columns are left out."""
        self._writer.writerow(row)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if exc_type is None:
            self._unfinished.replace(self._path)
        else:
            self._unfinished.unlink()


def write_defects(path: Path, entries: Iterable[MapEntry]) -> None:
    """`defects.csv`: one row per airhole."""
    with TableWriter(path, DEFECT_COLUMNS) as table:
        for entry in entries:
            table.write(defect_row(entry))


def write_geojson(path: Path, entries: Iterable[MapEntry]) -> None:
    """`defects.geojson`: the rim of every airhole that has a place, with the columns of defects.csv as properties.

    The structure is that of RFC 7946; the coordinates are local metres x, y, z and not longitude and latitude.
    """
    features = [
        {
            'type': 'Feature',
            'id': entry.defect_id,
            'geometry': _geometry(entry.measurement),
            'properties': {name: _property(name, cell) for name, cell in defect_row(entry).items()},
        }
        for entry in entries
    ]
    write_json(
        path,
        {
            'type': 'FeatureCollection',
            'coordinate_reference': 'local metres x, y, z in the frame named by the property frame_id; not WGS 84',
            'features': features,
        },
    )


def write_parquet(path: Path, entries: Iterable[MapEntry]) -> None:
    """`defects.parquet`: the columns of defects.csv with types, the same bytes for the same result."""
    import pyarrow
    from pyarrow import parquet

    rows = [defect_row(entry) for entry in entries]
    columns = {}
    for name in DEFECT_COLUMNS:
        kind = pyarrow.string() if name in _TEXTS else pyarrow.int64() if name in _INTEGERS else pyarrow.float64()
        columns[name] = pyarrow.array([_property(name, row[name]) for row in rows], kind)
    parquet.write_table(pyarrow.table(columns), path, compression='zstd')


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """`document` as indented JSON."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + '\n', encoding='utf-8')


def _measurement_cells(measurement: Measurement) -> Row:
    cells = {name: format_number(float(value(measurement)) * factor) for name, value, factor in _MEASUREMENT_COLUMNS}
    return cells | {
        'area_status': measurement.area_status.name,
        'volume_status': measurement.volume_status.name,
        'point_count': str(measurement.point_count),
    }


def _geometry(measurement: Measurement) -> dict[str, Any] | None:
    """A polygon needs four positions, the last one equal to the first."""
    ring = [[float(format_number(value)) for value in point] for point in measurement.outline]
    if len(ring) < 3:
        return None
    return {'type': 'Polygon', 'coordinates': [[*ring, ring[0]]]}


def _property(name: str, cell: str) -> str | int | float | None:
    if name in _TEXTS:
        return cell
    if name in _INTEGERS:
        return int(cell)
    return float(cell) if cell else None
