"""The report as people see it: in Chromium, which has to be there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from cmml_ros.calibration import CalibrationCheck, CalibrationStatus
from cmml_ros.config import InspectorConfig
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.mapping.closeup import Closeup
from cmml_ros.mapping.defect_map import MapEntry, MapSnapshot, MapView
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.report.calibration import Calibration
from cmml_ros.report.pdf import find_browser, print_pdf
from cmml_ros.report.results import write_results
from cmml_ros.report.summary import Summary

CAMERA = Camera(width=1000, height=1000, fx=1000.0, fy=1000.0, cx=499.5, cy=499.5)
FACING = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


CALIBRATION = Calibration(
    Camera(1280, 720, 1052.0, 1050.5, 642.3, 357.8, 'plumb_bob', (-0.12, 0.06, 0.0004, -0.0003, 0.0)),
    SE3.from_rotation_vector((0.0, -0.1, 0.0), (0.065, 0.012, -0.008)),
    CalibrationCheck(
        CalibrationStatus.CONSISTENT,
        correction=np.array([0.0, 0.001, 0.0, 0.0012, 0.0, 0.0]),
        std=np.array([0.002, 0.002, 0.002, 0.003, 0.003, 0.003]),
        match_count=210,
        inlier_ratio=0.82,
    ),
)


def make_snapshot(count: int) -> MapSnapshot:
    """`count` airholes of 2 to 12 mm on a wall in the x-z plane, every third one without a depth."""
    generator = np.random.default_rng(0)
    columns = int(np.ceil(np.sqrt(count)))
    side = 0.03 * columns
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.zeros(24), np.sin(angles)])
    picture = cv2.GaussianBlur(generator.normal(150, 20, (96, 96, 3)), (3, 3), 0).clip(0, 255).astype(np.uint8)
    closeup = Closeup(
        cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes(),
        0.5 + 0.25 * circle[:, [0, 2]],
        np.column_stack([np.linspace(-0.01, 0.01, 41), 0.002 * np.cos(np.linspace(-1.5, 1.5, 41))]),
    )
    entries = []
    for number in range(1, count + 1):
        diameter = 0.002 + 0.010 * ((number * 7919) % count) / count
        row, column = divmod(number - 1, columns)
        position = np.array([0.03 * column, 0.0, 0.03 * row]) + generator.uniform(-0.005, 0.005, 3) * [1, 0, 1]
        area = np.pi / 4 * diameter**2
        measured = number % 3 != 0
        measurement = Measurement(
            area_status=Status.MEASURED,
            volume_status=Status.MEASURED if measured else Status.NO_POINTS,
            position=position,
            normal=np.array([0.0, -1.0, 0.0]),
            outline=position + diameter / 2 * circle,
            area_m2=area,
            area_std_m2=0.05 * area,
            equivalent_diameter_m=diameter,
            major_axis_m=diameter,
            minor_axis_m=diameter,
            depth_max_m=0.3 * diameter if measured else np.nan,
            depth_max_std_m=0.03 * diameter if measured else np.nan,
            volume_m3=0.15 * area * diameter if measured else np.nan,
            volume_std_m3=0.015 * area * diameter if measured else np.nan,
        )
        entries.append(MapEntry(number, 0, 'map', measurement, 0.9, 3, 10**18, 10**18 + 10**9, closeup=closeup))
    steps = np.arange(0.2, side + 0.2, 0.4)
    views = [MapView(10**18, SE3(FACING, np.array([x, -0.5, z])), CAMERA) for x in steps for z in steps]
    return MapSnapshot('map', tuple(entries), tuple(views), 0.012)


def save(folder: Path, snapshot: MapSnapshot, site: str = 'Mill Bridge, pier 3') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    frames = len(snapshot.views)
    summary = Summary(
        bag='pier 3',
        topics={'image': '/camera/image', 'camera_info': '/camera/camera_info', 'points': '/points'},
        model_id='small 1a2b',
        config={
            'sync.tolerance_s': 0.05,
            'registration.mode': 'tf',
            'report.site': site,
            'report.robot': 'crawler 2',
            'report.camera': 'A-12',
            'report.range_sensor': '',
        },
        frames=frames,
        frames_with_cloud=frames,
        frames_in_map=frames,
        counts={'frame': frames},
        errors={},
        incomplete={},
        airholes=len(snapshot.entries),
        warnings=(),
        fault='',
        range_noise_m=0.0002,
        timings_s={},
        first_stamp_ns=10**18,
        last_stamp_ns=10**18 + 10**9,
        camera='1000 x 1000 px',
        largest_correction_m=0.012,
        calibration=CALIBRATION,
    )
    write_results(folder, snapshot, summary, InspectorConfig())
    return folder / 'report.html'


@pytest.fixture(scope='module')
def browser() -> Iterator[Browser]:
    path = find_browser()
    assert path is not None, 'these tests need Chromium: apt-get install chromium, as `make setup` does when root'
    arguments = ['--no-sandbox'] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp('report'), make_snapshot(100))


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The open report; at the end nothing may have complained, nor been asked of anything but the file itself."""
    opened = browser.new_page(viewport={'width': 1280, 'height': 900})
    complaints: list[str] = []
    requests: list[str] = []
    opened.on('console', lambda message: complaints.append(message.text))
    opened.on('pageerror', lambda error: complaints.append(str(error)))
    opened.on('request', lambda request: requests.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert complaints == []
    assert {url.split('#')[0] for url in requests if not url.startswith('data:')} == {report.as_uri()}


def column(page: Page, number: int) -> list[str]:
    return page.locator(f'#table tbody td:nth-child({number})').all_inner_texts()


def test_the_cover_tells_site_robot_sensors_calibration_and_dates(page: Page):
    terms, texts = (page.locator(f'.cover {tag}').all_inner_texts() for tag in ('dt', 'dd'))
    cover = dict(zip(terms, texts, strict=True))
    assert cover['Site'] == 'Mill Bridge, pier 3'
    assert cover['Robot'] == 'crawler 2'
    assert (cover['From'], cover['To']) == ('2001-09-09 01:46:40.000 UTC', '2001-09-09 01:46:41.000 UTC')
    assert cover['Camera'] == 'A-12, /camera/image, 1000 x 1000 px'
    assert cover['Range sensor'] == '/points, noise 0.200 mm'
    assert cover['Calibration'] == 'plumb_bob lens; extrinsic as told by /tf; the data agree with it (numbers)'
    page.locator('.cover a').click()
    page.wait_for_function('location.hash === "#calibration"')
    rows = page.locator('#calibration ~ table').first
    numbers = dict(zip(rows.locator('th').all_inner_texts(), rows.locator('td').all_inner_texts(), strict=True))
    assert numbers['focal lengths'] == '1052.00, 1050.50 px'
    assert numbers['distortion'] == 'k1 −0.12, k2 0.06, p1 0.0004, p2 −0.0003, k3 0'
    assert numbers['its place'] == '(65.0, 12.0, −8.0) mm'
    assert numbers['its turn (rotation vector)'] == '(0.00, −5.73, 0.00)°'  # 0.1 rad
    assert numbers['found turn'] == '(0.000 ± 0.115, 0.057 ± 0.115, 0.000 ± 0.115)°'
    assert numbers['found shift'] == '(1.20 ± 3.00, 0.00 ± 3.00, 0.00 ± 3.00) mm'
    assert numbers['matches'] == '210, 82 % of them agree'


def test_the_table_sorts_both_ways_with_unknown_last(page: Page):
    assert column(page, 1) == [str(number) for number in range(1, 31)]
    page.get_by_role('button', name='Diameter').click()
    diameters = [float(text.split(' ')[0]) for text in column(page, 2)]
    assert diameters == sorted(diameters, reverse=True)
    assert diameters[0] == pytest.approx(11.9, abs=0.05)
    assert page.locator('#table th').nth(1).get_attribute('aria-sort') == 'descending'
    page.get_by_role('button', name='Depth').click()
    page.get_by_role('button', name='Depth').click()
    assert page.locator('#table th').nth(3).get_attribute('aria-sort') == 'ascending'
    depths = [float(text.split(' ')[0]) for text in column(page, 4)]
    assert depths == sorted(depths)
    for _ in range(3):
        page.get_by_role('button', name='Next').click()
    assert column(page, 4) == ['–'] * 10  # the last of 33 without a depth
    assert page.get_by_role('button', name='Next').is_disabled()


def test_filters_narrow_the_list_and_can_be_taken_back(page: Page):
    page.get_by_label('Volume is').select_option(label='no points')
    assert page.locator('#shown').inner_text() == '33 of 100 airholes'
    page.get_by_label('Diameter from').fill('10')
    assert all(float(text.split(' ')[0]) >= 9.95 for text in column(page, 2))
    assert {text.strip() for text in column(page, 6)} == {'no points'}
    page.get_by_role('button', name='Show all').click()
    page.wait_for_function('document.getElementById("shown").textContent === "100 airholes"')
    page.get_by_label('Number').fill('42')
    assert column(page, 1) == ['42']
    assert page.locator('.card h3').all_inner_texts() == ['Airhole 42']


def test_links_lead_to_cards_and_sections(page: Page):
    page.evaluate('location.hash = "#airhole-77"')
    page.wait_for_selector('#airhole-77')
    assert 'Page 3 of 4' in page.locator('#page').inner_text()
    assert page.evaluate('document.activeElement.id') == 'airhole-77'
    assert page.locator('#airhole-77 image').count() == 1
    assert page.locator('#airhole-77 polyline').count() == 1
    assert '95 %' in page.locator('#airhole-76').inner_text()
    for link in page.locator('nav a').all():
        target = link.get_attribute('href')
        assert target is not None
        assert page.locator(target).count() == 1
    page.locator('#table tbody a').first.press('Enter')
    page.wait_for_function('location.hash === "#airhole-61"')


def test_an_airhole_chosen_on_the_map_opens_its_card(page: Page):
    # The first row tells where it lies on the sheet, which is drawn in millimetres.
    left, top = float(column(page, 7)[0]), float(column(page, 8)[0])
    spot = page.evaluate(
        """([x, y]) => { const sheet = document.getElementById('sheet'); sheet.scrollIntoView();
        scrollBy(0, new DOMPoint(x, y).matrixTransform(sheet.getScreenCTM()).y - 300);
        const point = new DOMPoint(x, y).matrixTransform(sheet.getScreenCTM()); return [point.x, point.y]; }""",
        [left, top],
    )
    page.mouse.click(*spot)
    page.wait_for_function('location.hash === "#airhole-1"')
    assert abs(float(page.locator('#mark').get_attribute('cx') or 'nan') - left) < 1.0


def test_everything_has_a_name_and_enough_contrast(page: Page):
    assert page.locator('svg:not([aria-label])').count() == 0
    assert page.locator('img:not([alt])').count() == 0
    assert page.evaluate('[...document.querySelectorAll("input, select")].every((e) => e.labels.length === 1)')
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        ratios = page.evaluate(
            """() => {
            const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            const light = (color) => { const [r, g, b] = color.match(/[0-9.]+/g).map((v) => linear(v / 255));
              return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
              if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
            return ['p.faint', '.facts dt', '.verdict', 'a', 'td', '.card dd small', 'figcaption'].map((name) => {
              const e = document.querySelector(name); const [x, y] = [light(getComputedStyle(e).color), light(back(e))];
              return [name, (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05)]; }); }"""
        )
        assert len(ratios) == 7
        assert all(ratio >= 4.5 for _, ratio in ratios), (scheme, ratios)  # WCAG 2.1, AA


def test_the_report_prints_to_pages_of_a4(report: Path, tmp_path: Path):
    assert print_pdf(report, tmp_path / 'report.pdf') == ''
    data = (tmp_path / 'report.pdf').read_bytes()
    assert data.startswith(b'%PDF')
    assert b'/MediaBox [0 0 594.95996 841.91998]' in data or b'/MediaBox [0 0 595' in data
    assert data.count(b'/Type /Page\n') >= 5


@pytest.mark.slow
def test_ten_thousand_airholes_open_in_three_seconds(browser: Browser, tmp_path: Path):
    report = save(tmp_path, make_snapshot(10_000))
    page = browser.new_page(viewport={'width': 1280, 'height': 900})
    session = page.context.new_cdp_session(page)
    session.send('Performance.enable')
    page.goto(report.as_uri())
    page.locator('#cards .card').nth(29).wait_for(state='attached')
    page.evaluate('new Promise((done) => requestAnimationFrame(() => setTimeout(done)))')
    assert page.locator('#shown').inner_text() == '10000 airholes'
    # Processor time of the page: what it would take on an idle machine, whatever else this one does.
    metrics = {metric['name']: metric['value'] for metric in session.send('Performance.getMetrics')['metrics']}
    page.close()
    assert 0.1 < metrics['ProcessTime'] < 3.0


def test_without_a_browser_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert 'no Chromium on this machine' in print_pdf(tmp_path / 'report.html', tmp_path / 'report.pdf')


def test_a_map_without_airholes_makes_a_report(tmp_path: Path):
    empty = dataclasses.replace(make_snapshot(1), entries=())
    path = save(tmp_path / 'new' / 'folder', empty)
    assert 'None found in 1 frames.' in path.read_text(encoding='utf-8')
    assert (path.parent / 'defects.csv').read_text().count('\n') == 1


def test_long_settings_do_not_widen_the_page(browser: Browser, tmp_path: Path):
    report = save(tmp_path / 'long', make_snapshot(3), site='Pfeiler' * 400)
    page = browser.new_page(viewport={'width': 1200, 'height': 900})
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate('document.documentElement.scrollWidth') == 1200
    page.close()
