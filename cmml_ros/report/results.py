"""Everything that is written about one map: tables, files for other programs, and the report for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cmml_ros.config import InspectorConfig, flatten_config
from cmml_ros.errors import ConfigError
from cmml_ros.mapping.defect_map import MapSnapshot
from cmml_ros.mapping.grading import Grading, grade
from cmml_ros.report.html import Picture, write_report
from cmml_ros.report.summary import Summary
from cmml_ros.report.tables import write_defects, write_geojson, write_json, write_parquet


def write_results(
    out: Path, snapshot: MapSnapshot, summary: Summary, config: InspectorConfig, pictures: Sequence[Picture] = ()
) -> Grading:
    """defects.csv, defects.parquet, defects.geojson, summary.json and report.html in the folder `out`; the grading.

    Raises ConfigError for grading standards that cannot be read.
    """
    grading = grade(snapshot, config.grading, config.detection)
    entries = snapshot.entries
    write_defects(out / 'defects.csv', entries)
    write_parquet(out / 'defects.parquet', entries)
    write_geojson(out / 'defects.geojson', entries)
    write_json(out / 'summary.json', summary.document(entries, grading))
    write_report(out / 'report.html', summary, snapshot, grading, pictures)
    return grading


def save_report(
    directory: Path,
    snapshot: MapSnapshot,
    config: InspectorConfig,
    model_id: str,
    topics: Mapping[str, str],
    counts: Mapping[str, int],
    name: str = 'live inspection',
) -> Path:
    """Absolute path of report.html of a map that still grows, with its tables beside it: what `~/save_report` answers.

    directory: made where missing. snapshot: `DefectMap.snapshot()`, taken in the thread that owns the map; this
    function may run in any other. topics: resolved names by input. counts: those of the Assembler. name: title of the
    report. The number of rows in defects.csv is `len(snapshot.entries)`.
    Raises ConfigError when the folder cannot be written.
    """
    stamps = [view.stamp_ns for view in snapshot.views]
    cameras = Counter(f'{view.camera.width} x {view.camera.height} px' for view in snapshot.views)
    noises = [entry.measurement.range_noise_m for entry in snapshot.entries]
    summary = Summary(
        bag=name,
        topics=dict(topics),
        model_id=model_id,
        config=flatten_config(config),
        frames=len(snapshot.views),
        frames_with_cloud=len(snapshot.views),
        frames_in_map=len(snapshot.views),
        counts=dict(sorted(counts.items())),
        errors={},
        incomplete={},
        airholes=len(snapshot.entries),
        warnings=(),
        fault='',
        range_noise_m=float(np.nanmedian(noises)) if np.isfinite(noises).any() else float('nan'),
        timings_s={},
        first_stamp_ns=min(stamps, default=0),
        last_stamp_ns=max(stamps, default=0),
        camera=', '.join(cameras),
        largest_correction_m=snapshot.largest_correction_m,
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_results(directory, snapshot, summary, config)
    except OSError as error:
        raise ConfigError(f'{directory}: cannot be written ({error.strerror}); name another folder') from None
    return (directory / 'report.html').resolve()
