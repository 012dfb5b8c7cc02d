from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from math import nan
from pathlib import Path

import numpy as np
import pytest

from cmml_ros.config import DetectionConfig, GradingConfig
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.mapping.defect_map import MapEntry, MapSnapshot, MapView
from cmml_ros.mapping.grading import Grading, grade
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.report.figures import make_sheet
from cmml_ros.report.html import Picture, write_report
from cmml_ros.report.summary import Summary
from cmml_ros.report.text import format_interval, format_quantity, format_utc

SUMMARY = Summary(
    bag='pier 3',
    topics={'image': '/camera/image', 'camera_info': '/camera/camera_info', 'points': '/points'},
    model_id='small 1a2b',
    config={'sync.tolerance_s': 0.05},
    frames=2,
    frames_with_cloud=2,
    frames_in_map=2,
    counts={'image received': 2},
    errors={},
    incomplete={},
    airholes=1,
    warnings=(),
    fault='',
    range_noise_m=0.0002,
    timings_s={'total': 1.0},
)
MEASUREMENT = Measurement(
    area_status=Status.MEASURED,
    volume_status=Status.MEASURED,
    position=np.array([0.1, -0.0001, 2.0]),
    area_m2=78.54e-6,
    area_std_m2=1.23e-6,
    equivalent_diameter_m=0.010,
    depth_max_m=0.0031,
    depth_max_std_m=0.0002,
    volume_m3=1234e-9,
    volume_std_m3=56e-9,
)
ENTRY = MapEntry(1, 0, 'map', MEASUREMENT, 0.9, 2, 1_700_000_000_123_000_000, 1_700_000_001_000_000_000)


SNAPSHOT = MapSnapshot('map', (ENTRY,), (), 0.0)
NO_GRADE = Grading('no airhole has a place in the map')


class Page(HTMLParser):
    """The text of every fact, every address that the page would load, and the rows of the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.facts: list[str] = []
        self.addresses: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script = ''
        self.feed(text)
        self.rows = json.loads(self.scripts['rows'])
        self.details = [json.loads(line) for line in self.scripts['details'].splitlines()]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self._script = (named.get('id') or 'code') if tag == 'script' else ''
        if tag == 'dd':
            self.facts.append('')
        self.addresses += [named[name] or '' for name in ('src', 'href') if name in named and tag != 'a']

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the interface
        self._script = ''

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, '') + data
        elif self.facts:
            self.facts[-1] += data.strip()


def render(
    tmp_path: Path,
    summary: Summary = SUMMARY,
    entries: tuple[MapEntry, ...] = (ENTRY,),
    grading: Grading = NO_GRADE,
) -> str:
    picture = Picture(tmp_path / '1.jpg', 1_700_000_000_123_000_000, 1)
    picture.path.write_bytes(b'\xff\xd8jpeg')
    snapshot = dataclasses.replace(SNAPSHOT, entries=entries)
    write_report(tmp_path / 'report.html', summary, snapshot, grading, [picture])
    return (tmp_path / 'report.html').read_text(encoding='utf-8')


def test_the_report_states_the_figures_with_their_deviation(tmp_path: Path):
    page = Page(render(tmp_path))
    (number, keys, texts), *others = page.rows
    assert (number, texts, others) == (1, ['10.000 ± 0.078', '78.5 ± 1.2', '3.10 ± 0.20', '1\u202f234 ± 56'], [])
    assert keys == [10.0, 78.54, 3.1, 1234.0, 0, None, None, 0.9, 2]
    assert page.details[0]['i'] == ['76.1 to 81.0', '2.71 to 3.49', '1\u202f124 to 1\u202f344']
    assert page.details[0]['p'] == '0.100, 0.000, 2.000'


def test_the_report_needs_nothing_else(tmp_path: Path):
    text = render(tmp_path)
    assert Page(text).addresses == ['data:image/jpeg;base64,/9hqcGVn']
    assert '2023-11-14 22:13:20.123 UTC' in text


def test_what_is_wrong_stands_at_the_top_and_text_is_escaped(tmp_path: Path):
    summary = dataclasses.replace(SUMMARY, bag='<b>', fault='pier.mcap: cut <off>', warnings=('no metadata.yaml',))
    text = render(tmp_path, summary)
    assert '<h1>Airholes in &lt;b&gt;</h1>' in text
    assert 'cut &lt;off&gt;' in text.split('<dl')[0]
    assert 'no metadata.yaml' in text.split('<dl')[0]


def test_text_cannot_leave_the_script_that_holds_it(tmp_path: Path):
    evil = dataclasses.replace(MEASUREMENT, reason='</script><script>alert(1)</script>')
    page = Page(render(tmp_path, entries=(dataclasses.replace(ENTRY, measurement=evil),)))
    assert page.details[0]['w'] == '</script><script>alert(1)</script>'
    assert 'alert' not in page.scripts['code']


def test_unknown_is_a_dash_and_a_bound_is_a_bound(tmp_path: Path):
    below = dataclasses.replace(
        MEASUREMENT,
        volume_status=Status.BELOW_DETECTION_LIMIT,
        depth_max_m=nan,
        volume_m3=2e-9,
        volume_upper_bound_m3=12.3e-9,
    )
    page = Page(render(tmp_path, entries=(dataclasses.replace(ENTRY, measurement=below),)))
    assert page.rows[0][2] == ['10.000 ± 0.078', '78.5 ± 1.2', '–', '< 12.3']
    unknown = Measurement.unknown(Status.NO_TRANSFORM, 'no extrinsic')
    page = Page(render(tmp_path, entries=(dataclasses.replace(ENTRY, measurement=unknown),)))
    assert page.rows[0][2] == ['–'] * 4
    assert page.rows[0][1][:4] == [None] * 4
    assert page.details[0]['w'] == 'no extrinsic'


def test_areas_that_are_unknown_do_not_sum_up_to_zero(tmp_path: Path):
    unknown = dataclasses.replace(ENTRY, measurement=Measurement.unknown(Status.NO_TRANSFORM, 'no extrinsic'))
    for entries, total, count in (
        ((ENTRY,), '78.5 mm²', None),
        ((ENTRY, unknown), '78.5 mm²', 1),
        ((unknown,), '–', 1),
        ((), '0.00 mm²', None),
    ):
        text = render(tmp_path, entries=entries)
        assert f'<dt>Area, all together</dt><dd>{total}</dd>' in text
        shown = f'<dt>Of unknown area, in neither</dt><dd>{count}</dd>' in text
        assert shown == (count is not None)


def test_nothing_found_is_said(tmp_path: Path):
    text = render(tmp_path, entries=())
    assert 'None found in 2 frames.' in text
    assert 'Not graded:</span> no airhole has a place in the map.' in text


@pytest.mark.parametrize(
    ('value', 'std', 'text'),
    [
        (78.54, 1.23, '78.5 ± 1.2'),
        (106983.0, 11345.0, '107\u202f000 ± 11\u202f000'),
        (0.00123, 0.00045, '0.00123 ± 0.00045'),
        (5.0, nan, '5.00'),
        (14905.3, nan, '14\u202f900'),
        (0.0, nan, '0.00'),
        (nan, 1.0, '–'),
    ],
)
def test_figures_are_rounded_to_their_deviation(value: float, std: float, text: str):
    assert format_quantity(value, std) == text


def test_intervals_do_not_go_below_zero():
    assert format_interval(1.0, 1.0, 1.0) == '0.0 to 3.0'
    assert format_interval(nan, 1.0, 1.0) == '–'


def test_times():
    assert format_utc(1_700_000_000_123_456_789) == '2023-11-14 22:13:20.123 UTC'
    assert format_utc(12_345_000_000) == '12.345 s'


def test_what_no_picture_shows_is_told_and_left_out_of_the_map_also_in_its_middle(tmp_path: Path):
    # Eight pictures of 0.5 x 0.5 m around a square that none shows.
    places = [(x_m, z_m) for x_m in (0.25, 0.75, 1.25) for z_m in (0.25, 0.75, 1.25) if (x_m, z_m) != (0.75, 0.75)]
    camera = Camera(width=1000, height=1000, fx=1000.0, fy=1000.0, cx=499.5, cy=499.5)
    facing = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    views = [MapView(0, SE3(facing, np.array([x_m, -0.5, z_m])), camera) for x_m, z_m in places]
    found = dataclasses.replace(MEASUREMENT, position=np.array([0.2, 0.0, 0.2]), normal=np.array([0.0, -1.0, 0.0]))
    snapshot = MapSnapshot('map', (dataclasses.replace(ENTRY, measurement=found),), tuple(views), 0.0)
    grading = grade(snapshot, GradingConfig(), DetectionConfig())
    assert grading.inspected_m2 == pytest.approx(8 * 0.5**2, rel=0.03)
    sheet = make_sheet(grading)
    assert sheet is not None
    assert sheet.gaps_m2 == pytest.approx(0.25, rel=0.05)
    around, gap = (
        np.array([point.split() for point in ring.rstrip('Z').split('L')], float)
        for ring in sheet.inspected.split('M')[1:]
    )
    # Through the middles of inspected cells of 10 mm, which the drawing makes as wide as they are.
    assert np.ptp(around, axis=0) == pytest.approx([1490, 1490], abs=10)
    assert np.ptp(gap, axis=0) == pytest.approx([510, 510], abs=21)
    assert gap.mean(axis=0) == pytest.approx([750, 750], abs=11)
    write_report(tmp_path / 'report.html', SUMMARY, snapshot, grading)
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert f'the {grading.inspected_m2:.2f} m² that the pictures show' in text
    assert f'{sheet.gaps_m2:.2f} m² in their midst were not seen' in text
