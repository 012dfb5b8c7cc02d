"""Everything that is written about one map: tables, files for other programs, and the report for people."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from cmml_ros.config import InspectorConfig
from cmml_ros.mapping.defect_map import MapSnapshot
from cmml_ros.mapping.grading import Grading, grade
from cmml_ros.report.html import Picture, write_report
from cmml_ros.report.summary import Summary
from cmml_ros.report.tables import write_defects, write_geojson, write_json, write_parquet

RESULTS = ('defects.csv', 'defects.parquet', 'defects.geojson', 'summary.json', 'report.html')


def write_results(
    out: Path, snapshot: MapSnapshot, summary: Summary, config: InspectorConfig, pictures: Sequence[Picture] = ()
) -> Grading:
    """defects.csv, defects.parquet, defects.geojson, summary.json and report.html in the folder `out`; the grading.

    snapshot: `DefectMap.snapshot()`, taken in the thread that owns the map; this function may run in any other.
    Raises ConfigError for grading standards that cannot be read.
    """
    grading = grade(snapshot, config.grading, config.detection)
    entries = snapshot.entries
    # All of them, or none: a full disk leaves no half a report, and no mixture with an earlier one.
    with tempfile.TemporaryDirectory(prefix='unfinished_', dir=out) as name:
        folder = Path(name)
        write_defects(folder / 'defects.csv', entries)
        write_parquet(folder / 'defects.parquet', entries)
        write_geojson(folder / 'defects.geojson', entries)
        write_json(folder / 'summary.json', summary.document(entries, grading))
        write_report(folder / 'report.html', summary, snapshot, grading, pictures)
        for result in RESULTS:
            (folder / result).replace(out / result)
    return grading
