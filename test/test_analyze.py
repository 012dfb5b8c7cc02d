"""A bag in, results out: the real pipeline, with a threshold in place of the network so that results are known."""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import errno
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from cmml_ros.analyze import analyze
from cmml_ros.bag.reader import BagReader
from cmml_ros.bag.writer import BagWriter
from cmml_ros.cli import main
from cmml_ros.config import InspectorConfig, SyncConfig
from cmml_ros.errors import PoseError
from cmml_ros.frame import Frame
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.inspector import Inspection, Inspector
from cmml_ros.mapping.closeup import CloseupMaker
from cmml_ros.mapping.defect_map import DefectMap
from cmml_ros.report.tables import DEFECT_COLUMNS, write_defects, write_geojson, write_parquet
from cmml_ros.splits import ReasonCounter, SplitResult
from cmml_ros.stream.assembler import Assembler

# A camera 0.5 m in front of a wall, 1 pixel = 0.5 mm, moving 10 mm along x from frame to frame.
WIDTH, HEIGHT, FOCAL_PX, DISTANCE_M = 320, 240, 1000.0, 0.5
STEP_M = 0.010
STAMPS_NS = [1_750_000_000_000_000_000 + index * 200_000_000 for index in range(5)]
# Centre x, y and radius in the map, metres; depth is that of a cylinder.
HOLES = ((-0.010, -0.020, 0.008), (0.025, 0.010, 0.005))
DEPTH_M = 0.004


class ThresholdSegmenter:
    model_id = 'threshold'
    parallel = 2
    matcher = None

    def __init__(self, *_: object) -> None:
        pass

    def segment(self, image: NDArray[np.uint8], *_: object) -> list[InstanceMask]:
        _, labels, boxes, _ = cv2.connectedComponentsWithStats((image[:, :, 0] < 90).astype(np.uint8))
        masks = []
        for label, (left, top, width, height, _) in enumerate(boxes[1:].tolist(), start=1):
            coverage = (labels[top : top + height, left : left + width] == label).astype(np.float32)
            border = left == 0 or top == 0 or left + width == WIDTH or top + height == HEIGHT
            masks.append(InstanceMask(coverage, left, top, 0.9, border))
        return masks


class NoRegistrar:
    """There is no network to match with, so the extrinsic stays as it is given."""

    def __init__(self, *_: object) -> None:
        pass

    def refine(self, *_: object) -> None:
        raise PoseError('no network')


@pytest.fixture(autouse=True)
def known_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('cmml_ros.inspector.Segmenter', ThresholdSegmenter)
    monkeypatch.setattr('cmml_ros.inspector.Registrar', NoRegistrar)


@dataclasses.dataclass
class Recording:
    """What goes into the bag; tests change what they are about."""

    frames: int = len(STAMPS_NS)
    encoding: str = 'bgr8'
    cloud_fields: tuple[str, ...] = ('x', 'y', 'z')
    info_width: int = WIDTH
    with_camera_info: bool = True
    with_cloud: bool = True
    clouds: int = len(STAMPS_NS)
    cloud_delay_ns: int = 0  # of its stamp
    extrinsic_m: float = 0.0  # along x
    latched_delay_ns: int | None = None  # of the extrinsic; the camera_info then comes once, with it
    with_extrinsic: bool = True
    with_map: bool = True
    noise_m: float = 0.0001


MakeBag = Callable[..., Path]


@pytest.fixture
def make_bag(tmp_path: Path) -> MakeBag:
    def make(**changes: Any) -> Path:
        write_bag(tmp_path / 'wall', Recording(**changes))
        return tmp_path / 'wall'

    return make


def write_bag(path: Path, recording: Recording) -> None:
    with BagWriter(path) as writer:
        types = writer.types
        writer.add_topic('/tf_static', 'tf2_msgs/msg/TFMessage', latched=True)
        writer.add_topic('/tf', 'tf2_msgs/msg/TFMessage')
        writer.add_topic('/camera/image', 'sensor_msgs/msg/Image')
        if recording.with_cloud:
            writer.add_topic('/points', 'sensor_msgs/msg/PointCloud2')
        if recording.with_camera_info:
            writer.add_topic('/camera/camera_info', 'sensor_msgs/msg/CameraInfo')

        def header(stamp_ns: int, frame_id: str) -> Any:
            stamp = types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
            return types['std_msgs/msg/Header'](stamp, frame_id)

        def transform(stamp_ns: int, parent: str, child: str, x_m: float) -> Any:
            rotation = types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0)
            translation = types['geometry_msgs/msg/Vector3'](x_m, 0.0, 0.0)
            pose = types['geometry_msgs/msg/Transform'](translation, rotation)
            stamped = types['geometry_msgs/msg/TransformStamped'](header(stamp_ns, parent), child, pose)
            return types['tf2_msgs/msg/TFMessage']([stamped])

        generator = np.random.default_rng(1)
        latched_ns = STAMPS_NS[0] + (recording.latched_delay_ns or 0)
        if recording.with_extrinsic:
            writer.write('/tf_static', transform(STAMPS_NS[0], 'camera', 'lidar', recording.extrinsic_m), latched_ns)
        for index, stamp_ns in enumerate(STAMPS_NS[: recording.frames]):
            camera_x_m = STEP_M * index
            if recording.with_map:
                writer.write('/tf', transform(stamp_ns, 'map', 'camera', camera_x_m), stamp_ns)
            if recording.with_camera_info:
                info = types['sensor_msgs/msg/CameraInfo'](
                    header=header(stamp_ns, 'camera'),
                    height=HEIGHT,
                    width=recording.info_width,
                    distortion_model='plumb_bob',
                    d=np.zeros(5),
                    k=np.array([FOCAL_PX, 0, WIDTH / 2, 0, FOCAL_PX, HEIGHT / 2, 0, 0, 1]),
                    r=np.eye(3).ravel(),
                    p=np.zeros(12),
                    binning_x=0,
                    binning_y=0,
                    roi=types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False),
                )
                if recording.latched_delay_ns is None or stamp_ns == STAMPS_NS[0]:
                    writer.write('/camera/camera_info', info, stamp_ns + (recording.latched_delay_ns or 0))
            image = draw_wall(camera_x_m)
            writer.write(
                '/camera/image',
                types['sensor_msgs/msg/Image'](
                    header(stamp_ns, 'camera'), HEIGHT, WIDTH, recording.encoding, 0, 3 * WIDTH, image.ravel()
                ),
                stamp_ns + 1000,
            )
            points = scan_wall(camera_x_m, recording.noise_m, generator).astype('<f4')
            fields = [
                types['sensor_msgs/msg/PointField'](name, 4 * offset, 7, 1)
                for offset, name in enumerate(recording.cloud_fields)
            ]
            cloud = types['sensor_msgs/msg/PointCloud2'](
                header(stamp_ns + recording.cloud_delay_ns, 'lidar'), 1, len(points), fields, False,
                12, 12 * len(points), points.view(np.uint8).ravel(), True,
            )  # fmt: skip
            if recording.with_cloud and index < recording.clouds:
                writer.write('/points', cloud, stamp_ns + 2000)


def draw_wall(camera_x_m: float) -> NDArray[np.uint8]:
    image = np.full((HEIGHT, WIDTH, 3), 160, np.uint8)
    for x_m, y_m, radius_m in HOLES:
        center = FOCAL_PX / DISTANCE_M * np.array([x_m - camera_x_m, y_m]) + (WIDTH / 2, HEIGHT / 2)
        cv2.circle(image, np.round(center).astype(int), round(radius_m * FOCAL_PX / DISTANCE_M), (20, 20, 20), -1)
    return image


def scan_wall(camera_x_m: float, noise_m: float, generator: np.random.Generator) -> NDArray[np.float64]:
    grid = np.stack(np.meshgrid(np.arange(-0.075, 0.075, 0.0006), np.arange(-0.055, 0.055, 0.0006)), axis=-1)
    points = np.column_stack([grid.reshape(-1, 2), np.full(grid[..., 0].size, DISTANCE_M)])
    for x_m, y_m, radius_m in HOLES:
        inside = np.hypot(points[:, 0] + camera_x_m - x_m, points[:, 1] - y_m) < radius_m
        points[inside, 2] += DEPTH_M
    points[:, 2] += generator.normal(0.0, noise_m, len(points))
    return points


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def test_every_airhole_is_one_row_with_its_place_and_size(make_bag: MakeBag, tmp_path: Path):
    summary = analyze(make_bag(), tmp_path / 'out', InspectorConfig())
    rows = read_table(tmp_path / 'out' / 'defects.csv')
    assert tuple(rows[0]) == DEFECT_COLUMNS
    assert len(rows) == 2
    for row, (x_m, y_m, radius_m) in zip(rows, HOLES, strict=True):
        assert row['frame_id'] == 'map'
        assert [float(row[name]) for name in ('x_m', 'y_m', 'z_m')] == pytest.approx([x_m, y_m, DISTANCE_M], abs=5e-4)
        assert [float(row[name]) for name in ('nx', 'ny', 'nz')] == pytest.approx([0, 0, -1], abs=0.01)
        area_mm2 = math.pi * radius_m**2 * 1e6
        assert float(row['area_mm2']) == pytest.approx(area_mm2, rel=0.10)  # a drawn disc of 10 pixels is that coarse
        assert float(row['volume_mm3']) == pytest.approx(area_mm2 * DEPTH_M * 1e3, rel=0.15)
        assert row['volume_status'] == 'MEASURED'
        assert row['observations'] == '5'
        assert (int(row['first_stamp_ns']), int(row['last_stamp_ns'])) == (STAMPS_NS[0], STAMPS_NS[-1])
    assert (summary.frames, summary.frames_in_map, summary.frames_with_cloud, summary.airholes) == (5, 5, 5, 2)
    assert summary.range_noise_m == pytest.approx(0.0001, rel=0.3)
    assert (summary.errors, summary.incomplete, summary.warnings, summary.fault) == ({}, {}, (), '')


def test_all_files_agree(make_bag: MakeBag, tmp_path: Path):
    out = tmp_path / 'out'
    analyze(make_bag(), out, InspectorConfig(), bag_out=tmp_path / 'results')
    defects, observations, frames = (read_table(out / f'{name}.csv') for name in ('defects', 'observations', 'frames'))
    assert [int(row['stamp_ns']) for row in frames] == STAMPS_NS
    assert [row['defect_count'] for row in frames] == ['2'] * 5
    assert [row['in_map'] for row in frames] == ['1'] * 5
    assert len(observations) == 10
    # The second frame was taken 10 mm further along x, so the camera sees the same airhole 10 mm further back.
    seen = [row for row in observations if row['defect_id'] == '1']
    assert float(seen[0]['x_m']) - float(seen[1]['x_m']) == pytest.approx(STEP_M, abs=5e-4)
    assert seen[0]['frame_id'] == 'camera'

    collection = json.loads((out / 'defects.geojson').read_text())
    assert collection['type'] == 'FeatureCollection'
    assert 'metres' in collection['coordinate_reference']
    for feature, row in zip(collection['features'], defects, strict=True):
        assert feature['type'] == 'Feature'
        assert feature['properties']['area_mm2'] == float(row['area_mm2'])
        (ring,) = feature['geometry']['coordinates']
        assert len(ring) >= 4
        assert ring[0] == ring[-1]
        x, y = np.array(ring)[:, :2].T
        area_m2 = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
        assert area_m2 == pytest.approx(float(row['area_mm2']) * 1e-6, rel=0.15)

    summary = json.loads((out / 'summary.json').read_text())
    assert summary['topics'] == {'image': '/camera/image', 'camera_info': '/camera/camera_info', 'points': '/points'}
    assert summary['airholes'] == 2
    assert summary['volume_status']['MEASURED'] == 2
    assert summary['config']['sync.tolerance_s'] == 0.05
    assert summary['model_id'] == 'threshold'

    assert sorted(path.stem for path in (out / 'overlays').iterdir()) == [str(stamp) for stamp in STAMPS_NS]
    report = (out / 'report.html').read_text(encoding='utf-8')
    assert report.count('<img src="data:image/jpeg;base64,') == 5
    assert not re.findall(r'(?:src|<link[^>]*href)="(?!data:)', report)  # nothing is loaded from elsewhere
    table = parquet.read_table(out / 'defects.parquet').to_pylist()
    assert [row['defect_id'] for row in table] == [1, 2]
    assert [f'{row["area_mm2"]:.9g}' for row in table] == [row['area_mm2'] for row in defects]

    with BagReader(tmp_path / 'results') as reader:
        markers = [message for _, message, _ in reader.messages(['/inspection_node/markers'])]
        (map_markers,) = [message for _, message, _ in reader.messages(['/inspection_node/map_markers'])]
        arrays = [message for _, message, _ in reader.messages(['/inspection_node/defects'])]
        (on_map,) = [message for _, message, _ in reader.messages(['/inspection_node/map'])]
    assert [array.header.stamp.sec * 10**9 + array.header.stamp.nanosec for array in arrays] == STAMPS_NS
    recorded = [f'{defect.area * 1e6:.9g}' for array in arrays for defect in array.defects]
    assert recorded == [row['area_mm2'] for row in observations]
    assert [defect.id for defect in on_map.defects] == [1, 2]
    # For RViz: what was there goes, then one closed rim each, as large as the airhole.
    assert [len(array.markers) for array in markers] == [3] * 5
    assert [marker.action for marker in map_markers.markers] == [3, 0, 0]
    rim = np.array([(point.x, point.y) for point in map_markers.markers[1].points])
    assert np.ptp(rim[:, 0]) == pytest.approx(2 * HOLES[0][2], rel=0.15)
    assert rim[0] == pytest.approx(rim[-1])
    assert [defect.observation_count for defect in on_map.defects] == [5, 5]


def test_a_second_run_gives_the_same_bytes(make_bag: MakeBag, tmp_path: Path):
    bag = make_bag()
    for name in ('one', 'two'):
        analyze(bag, tmp_path / name, InspectorConfig())
    for name in ('defects.csv', 'defects.parquet', 'defects.geojson', 'frames.csv', 'observations.csv', 'report.html'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()
    one, two = (json.loads((tmp_path / name / 'summary.json').read_text()) for name in ('one', 'two'))
    del one['timings_s'], two['timings_s']
    assert one == two


def test_splits_give_the_same_map_as_the_whole(make_bag: MakeBag, tmp_path: Path):
    bag = make_bag()
    analyze(bag, tmp_path / 'whole', InspectorConfig())
    analyze(bag, tmp_path / 'split', InspectorConfig(), split_s=0.2)
    for name in ('defects.csv', 'defects.geojson', 'frames.csv', 'observations.csv'):
        assert (tmp_path / 'whole' / name).read_bytes() == (tmp_path / 'split' / name).read_bytes()
    one, two = (json.loads((tmp_path / name / 'summary.json').read_text()) for name in ('whole', 'split'))
    assert one['counts'] == two['counts']
    assert not (tmp_path / 'split' / 'parts').exists()


def test_a_second_call_does_only_what_is_missing(make_bag: MakeBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bag, out = make_bag(), tmp_path / 'out'
    inspected: list[int] = []
    limit = 3
    original = Inspector.begin

    def begin(self: Inspector, frame: Frame) -> Future[Inspection]:
        if len(inspected) == limit:
            raise KeyboardInterrupt
        inspected.append(frame.stamp_ns)
        return original(self, frame)

    monkeypatch.setattr(Inspector, 'begin', begin)
    with pytest.raises(KeyboardInterrupt):
        analyze(bag, out, InspectorConfig(), split_s=0.2)
    kept = sorted((out / 'parts').iterdir())
    assert len(kept) == 2  # the split that was stopped has left nothing
    done = [frame.stamp_ns for path in kept for frame in SplitResult.from_bytes(path.read_bytes()).frames]
    inspected.clear()
    limit = 1000
    analyze(bag, out, InspectorConfig(), split_s=0.2)
    assert sorted([*done, *inspected]) == STAMPS_NS
    assert [int(row['stamp_ns']) for row in read_table(out / 'frames.csv')] == STAMPS_NS
    assert not (out / 'parts').exists()
    assert not list(out.glob('*.unfinished'))


def test_several_bags_become_one_map_and_a_broken_one_is_told(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs = tmp_path / 'runs'
    shutil.copytree(make_bag(), runs / 'b')
    shutil.copytree(runs / 'b', runs / 'a')
    (runs / 'broken').mkdir()
    (runs / 'broken' / 'metadata.yaml').write_text('nonsense')
    shutil.copytree(runs / 'b', runs / 'cut')
    file = next((runs / 'cut').glob('*.mcap'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    error = fail(capsys, str(runs / '*'), '--out', tmp_path / 'out', '--no-pdf')
    assert 'broken' in error
    assert 'the file ends inside a record' in error
    assert 'report.html covers what was read' in error
    rows = read_table(tmp_path / 'out' / 'defects.csv')
    assert len(rows) == 2
    # Five frames of each of two bags, and those before the cut.
    assert all(10 < int(row['observations']) < 15 for row in rows)
    # The one without an index does not tell its time and comes first.
    assert json.loads((tmp_path / 'out' / 'summary.json').read_text())['bag'] == 'cut, a, b'


def test_a_live_map_and_the_analysis_of_its_recording_are_the_same(make_bag: MakeBag, tmp_path: Path):
    """As the node does it: messages into an Assembler, frames through an Inspector, into a map that is saved."""
    bag, config = make_bag(), InspectorConfig()
    analyze(bag, tmp_path / 'offline', config)
    assembler = Assembler(config.sync, '/camera/image', '/camera/camera_info', '/points')
    inspector, defect_map = Inspector(config), DefectMap(config.map, config.sync.map_frame)
    frames = []
    with BagReader(bag) as reader:
        for topic, message, _ in reader.messages(list(reader.topics())):
            if topic.startswith('/tf'):
                assembler.add_transforms(message, static=topic == '/tf_static')
            else:
                add = {'/camera/image': assembler.add_image, '/points': assembler.add_cloud}
                add.get(topic, assembler.add_camera_info)(message)
            frames += assembler.take()
    for frame in [*frames, *assembler.flush()]:
        inspection = inspector.inspect(frame)
        maker = CloseupMaker(frame, inspection.T_camera_lidar)
        defect_map.add(inspection.defects, frame.T_map_camera, frame.stamp_ns, frame.frame_id, frame.camera, maker.make)
    (tmp_path / 'live').mkdir()
    writers = {'csv': write_defects, 'parquet': write_parquet, 'geojson': write_geojson}
    for suffix, write in writers.items():
        write(tmp_path / 'live' / f'defects.{suffix}', defect_map.entries)
    for name in ('defects.csv', 'defects.parquet', 'defects.geojson'):
        assert (tmp_path / 'live' / name).read_bytes() == (tmp_path / 'offline' / name).read_bytes()


ANALYSE = (
    'import sys; from pathlib import Path; from cmml_ros.analyze import analyze; '
    'from cmml_ros.config import InspectorConfig; '
    'bag, out, workers, cluster = (*sys.argv[1:], None)[:4]; '
    'analyze(Path(bag), Path(out), InspectorConfig(), split_s=0.2, workers=int(workers), cluster=cluster)'
)


def find_worker(session: int) -> int | None:
    """A process of `session` in which Ray inspects a split."""
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            mine = os.getsid(int(process.name)) == session
            if mine and b'ray::_work' in (process / 'cmdline').read_bytes():
                return int(process.name)
    return None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_that_is_killed_leaves_what_was_done(tmp_path: Path):
    bag, out = tmp_path / 'wall', tmp_path / 'out'
    write_bag(bag, Recording())
    arguments = [sys.executable, '-c', ANALYSE, bag, out, '1']
    driver = subprocess.Popen(arguments)
    while driver.poll() is None and not list((out / 'parts').glob('*.zst')):
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in (out / 'parts').glob('*.zst')}
    assert 1 <= len(kept) < 4
    assert not list(out.glob('*.csv'))  # no table that is not complete
    subprocess.run(arguments, check=True)
    assert [int(row['stamp_ns']) for row in read_table(out / 'frames.csv')] == STAMPS_NS
    assert not (out / 'parts').exists()
    assert not list(out.glob('*.unfinished'))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_do_the_same_and_one_that_is_killed_is_replaced(tmp_path: Path):
    """The real network in real workers; one of them is killed by force while it computes."""
    bag = tmp_path / 'wall'
    write_bag(bag, Recording())
    subprocess.run([sys.executable, '-c', ANALYSE, bag, tmp_path / 'one', '1'], check=True)
    driver = subprocess.Popen([sys.executable, '-c', ANALYSE, bag, tmp_path / 'two', '2'], start_new_session=True)
    kill_a_worker(driver, driver.pid)
    assert driver.wait() == 0
    for name in ('defects.csv', 'frames.csv', 'observations.csv'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


def kill_a_worker(driver: subprocess.Popen[bytes], session: int) -> None:
    """Kill by force the first process of `session` that inspects a split."""
    worker = None
    while worker is None:
        assert driver.poll() is None
        time.sleep(0.05)
        worker = find_worker(session)
    os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
def test_workers_for_which_memory_is_short_are_not_started_for_ever(tmp_path: Path):
    write_bag(tmp_path / 'wall', Recording(frames=1))
    done = subprocess.run(
        [sys.executable, '-c', ANALYSE, tmp_path / 'wall', tmp_path / 'out', '2'],
        env=os.environ | {'RAY_memory_usage_threshold': '0.001'},  # less than any machine uses
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert 'too little memory; take fewer workers' in done.stdout + done.stderr
    assert '1 of 1 splits were lost with their workers' in done.stderr


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Address of a Ray cluster of two nodes, both on this machine, that asks for a token; session of its processes."""
    monkeypatch.setenv('RAY_AUTH_MODE', 'token')
    monkeypatch.setenv('RAY_AUTH_TOKEN', secrets.token_hex(32))
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    monkeypatch.setenv(
        'PYTHONPATH', os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
    )
    with socket.socket() as one, socket.socket() as other:
        one.bind(('127.0.0.1', 0))
        other.bind(('127.0.0.1', 0))
        port, client_port = one.getsockname()[1], other.getsockname()[1]
    start = f'"{Path(sys.executable).with_name("ray")}" start --num-cpus 1 --object-store-memory 100000000 --block'
    address = f'127.0.0.1:{port}'
    head = f'{start} --head --node-ip-address 127.0.0.1 --port {port} --ray-client-server-port {client_port}'
    head += ' --include-dashboard false'
    session = subprocess.Popen(
        ['/bin/sh', '-c', f'{head} & sleep 10; {start} --address {address} & wait'], start_new_session=True
    )
    yield address, session.pid
    os.killpg(session.pid, signal.SIGKILL)
    session.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_does_the_same_though_driver_and_worker_are_killed(cluster: tuple[str, int], tmp_path: Path):
    address, session = cluster
    bag, out = tmp_path / 'wall', tmp_path / 'out'
    write_bag(bag, Recording())
    # Workers of this machine alone, beside the cluster on it.
    subprocess.run([sys.executable, '-c', ANALYSE, bag, tmp_path / 'here', '2'], check=True)
    arguments = [sys.executable, '-c', ANALYSE, bag, out, '1', address]
    driver = subprocess.Popen(arguments)
    kill_a_worker(driver, session)
    while driver.poll() is None and not list((out / 'parts').glob('*.zst')):
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert not (out / 'defects.csv').exists()
    subprocess.run(arguments, check=True)
    for name in ('defects.csv', 'frames.csv', 'observations.csv', 'report.html'):
        assert (out / name).read_bytes() == (tmp_path / 'here' / name).read_bytes()


def test_what_is_latched_may_be_recorded_after_the_images(make_bag: MakeBag, tmp_path: Path):
    first = make_bag()
    early = tmp_path / 'early'
    first.rename(early)
    late = make_bag(latched_delay_ns=60 * 10**9)
    for bag, name in ((early, 'early'), (late, 'late')):
        analyze(bag, tmp_path / f'out_{name}', InspectorConfig(), split_s=0.2 if name == 'early' else 20.0)
    for table in ('defects.csv', 'frames.csv', 'observations.csv'):
        assert (tmp_path / 'out_early' / table).read_bytes() == (tmp_path / 'out_late' / table).read_bytes()
    counts = json.loads((tmp_path / 'out_late' / 'summary.json').read_text())['counts']
    assert counts == {
        'camera_info received': 1,
        'cloud received': 5,
        'frame': 5,
        'image received': 5,
        'transform received': 6,
    }


def test_pictures_of_bags_with_the_same_stamps_do_not_replace_each_other(make_bag: MakeBag, tmp_path: Path):
    first = make_bag(frames=2)
    bags = [tmp_path / side / 'wall' for side in ('left', 'right')]
    shutil.copytree(first, bags[0])
    shutil.rmtree(first)
    shutil.copytree(make_bag(frames=2, with_extrinsic=False), bags[1])
    overlays = tmp_path / 'out' / 'overlays'
    (overlays / 'gone').mkdir(parents=True)
    (overlays / 'gone' / '1.jpg').write_bytes(b'')
    analyze(bags, tmp_path / 'out', InspectorConfig(), split_s=0.2)
    names = [f'{folder}/{stamp}.jpg' for folder in ('wall', 'wall_2') for stamp in STAMPS_NS[:2]]
    assert sorted(str(path.relative_to(overlays)) for path in overlays.rglob('*.jpg')) == names
    assert sorted(path.name for path in overlays.iterdir()) == ['wall', 'wall_2']
    assert (overlays / names[0]).read_bytes() != (overlays / names[2]).read_bytes()
    for name in names:
        picture = base64.b64encode((overlays / name).read_bytes()).decode()
        assert picture in (tmp_path / 'out' / 'report.html').read_text()


def test_an_interrupted_recording_in_a_folder_of_bags_is_not_left_out(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs = tmp_path / 'runs [north]'  # no pattern: there is such a folder
    shutil.copytree(make_bag(), runs / 'whole')
    shutil.copytree(runs / 'whole', runs / 'interrupted')
    (runs / 'interrupted' / 'metadata.yaml').unlink()
    assert main(['analyze', str(runs), '--out', str(tmp_path / 'out'), '--no-pdf']) == 0
    output = capsys.readouterr()
    assert '2 airholes in 10 frames' in output.out
    assert 'interrupted: no metadata.yaml' in output.err


def test_a_clock_that_was_set_during_the_recording_does_not_multiply_splits(make_bag: MakeBag, tmp_path: Path):
    bag = make_bag()
    with BagReader(bag) as reader:
        topics = reader.topics()
        messages = [*reader.messages(list(topics))]
    since_boot = tmp_path / 'since_boot'
    with BagWriter(since_boot) as writer:
        for name, type_name in topics.items():
            writer.add_topic(name, type_name)
        for topic, message, stamp_ns in messages:  # the robot knows the date from its first image on
            writer.write(topic, message, 5 * 10**9 if topic == '/tf_static' else stamp_ns)
    summary = analyze(since_boot, tmp_path / 'out', InspectorConfig())
    assert (summary.frames, summary.frames_in_map, summary.airholes) == (5, 5, 2)


def test_reasons_that_differ_in_numbers_only_are_one():
    reasons = ReasonCounter()
    for text in ('+0.203 s from the image', '-0.197 s from the image', 'no cloud has come'):
        reasons.add(text)
    assert reasons.counts == {'+0.203 s from the image': 2, 'no cloud has come': 1}


def test_without_a_map_every_sighting_is_a_row_in_the_camera_frame(make_bag: MakeBag, tmp_path: Path):
    summary = analyze(make_bag(with_map=False), tmp_path / 'out', InspectorConfig())
    rows = read_table(tmp_path / 'out' / 'defects.csv')
    assert [int(row['defect_id']) for row in rows] == list(range(1, 11))
    assert {row['frame_id'] for row in rows} == {'camera'}
    assert {row['volume_status'] for row in rows} == {'MEASURED'}
    assert summary.frames_in_map == 0
    assert 'map' in next(iter(summary.incomplete))


def test_a_missing_extrinsic_leaves_sizes_unknown_and_is_named(make_bag: MakeBag, tmp_path: Path):
    summary = analyze(make_bag(with_extrinsic=False), tmp_path / 'out', InspectorConfig())
    rows = read_table(tmp_path / 'out' / 'defects.csv')
    assert len(rows) == 10
    assert {(row['area_mm2'], row['volume_mm3'], row['volume_status']) for row in rows} == {('', '', 'NO_TRANSFORM')}
    ((reason, count),) = summary.incomplete.items()
    assert 'lidar' in reason
    assert count == 5
    assert reason in (tmp_path / 'out' / 'report.html').read_text().replace('&#34;', '"')
    (warning,) = summary.warnings
    assert warning.startswith('no transform from "lidar" to "camera": ')


def test_what_frames_lack_is_said_on_the_command_line(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bag = make_bag(cloud_delay_ns=-1_000_000_000_000_000_000)
    assert main(['analyze', str(bag), '--out', str(tmp_path / 'out'), '--no-pdf']) == 0
    said = capsys.readouterr().err
    assert 'note: 5 of 5 frames: the nearest cloud is -999999999.200 s from the image, tolerance 0.05 s' in said
    assert 'note: "/camera/image" and "/points" do not pair' in said
    assert 'synchronise the clocks' in said
    assert 'no frame is placed in' not in said


def test_without_a_map_the_command_line_says_what_that_means(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(['analyze', str(make_bag(with_map=False)), '--out', str(tmp_path / 'out'), '--no-pdf']) == 0
    output = capsys.readouterr()
    assert 'no frame is placed in "map" (sync.map_frame): airholes are listed once for each frame' in output.err
    assert output.out.startswith('10 sightings without a place in the map in 5 frames: ')


def test_what_has_no_place_is_not_counted_as_airholes(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bag = make_bag(clouds=3)
    assert main(['analyze', str(bag), '--out', str(tmp_path / 'out'), '--no-pdf']) == 0
    output = capsys.readouterr()
    assert output.out.startswith('2 airholes and 4 sightings without a place in the map in 5 frames: ')
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert (summary['airholes'], summary['unplaced'], len(read_table(tmp_path / 'out' / 'defects.csv'))) == (6, 4, 6)
    report = (tmp_path / 'out' / 'report.html').read_text(encoding='utf-8')
    assert '<dt>Airholes</dt><dd>2</dd>' in report
    assert '<dt>Sightings without a place</dt><dd>4</dd>' in report


def test_a_bag_without_clouds_says_so(make_bag: MakeBag, tmp_path: Path):
    summary = analyze(make_bag(with_cloud=False), tmp_path / 'out', InspectorConfig())
    (warning,) = summary.warnings
    assert 'wall: no sensor_msgs/msg/PointCloud2 topic: airholes are found but not measured' in warning
    assert (summary.frames, summary.frames_with_cloud, summary.airholes) == (5, 0, 10)


def test_points_beside_the_picture_are_told(make_bag: MakeBag, tmp_path: Path):
    summary = analyze(make_bag(extrinsic_m=5.0), tmp_path / 'out', InspectorConfig())
    ((reason, count),) = summary.incomplete.items()
    assert re.match(r'none of the \d+ points lies in the picture; check the transform', reason)
    assert count == 5
    assert {row['reason'] for row in read_table(tmp_path / 'out' / 'frames.csv')} == {reason}


def test_pictures_of_an_earlier_run_do_not_stay(make_bag: MakeBag, tmp_path: Path):
    overlays = tmp_path / 'out' / 'overlays'
    overlays.mkdir(parents=True)
    (overlays / '1.jpg').write_bytes(b'')
    (overlays / 'mine.jpg').write_bytes(b'')
    analyze(make_bag(frames=1), tmp_path / 'out', InspectorConfig())
    assert sorted(path.stem for path in overlays.iterdir()) == [str(STAMPS_NS[0]), 'mine']


def test_what_others_keep_in_the_folder_stays(make_bag: MakeBag, tmp_path: Path):
    out = tmp_path / 'out'
    others = [out / name for name in ('parts/mine.txt', 'overlays/2024_pier.jpg', 'overlays/pier/mine.txt', 'mine.csv')]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('mine')
    analyze(make_bag(frames=1), out, InspectorConfig())
    assert [path.read_text() for path in others] == ['mine'] * 4
    assert [path.name for path in (out / 'parts').iterdir()] == ['mine.txt']


def test_files_of_others_with_the_names_of_results_are_not_replaced(
    make_bag: MakeBag, capsys: pytest.CaptureFixture[str]
):
    bag = make_bag(frames=1)
    for name, text in (('frames.csv', 'a,b\n'), ('summary.json', '{"mine": 1}'), ('summary.json', '[]')):
        (bag / name).write_text(text)
        assert f'{name} is there and no result of an analysis' in fail(capsys, bag, '--out', bag, '--no-pdf')
        assert (bag / name).read_text() == text
        (bag / name).unlink()
    for _ in range(2):  # over results of an analysis, too
        assert main(['analyze', str(bag), '--out', str(bag), '--no-pdf']) == 0


def test_beside_the_recording_it_goes_on_where_it_was_stopped(make_bag: MakeBag, monkeypatch: pytest.MonkeyPatch):
    bag = make_bag()
    kept: list[int] = []
    limit = 2
    original = SplitResult.to_bytes

    def to_bytes(self: SplitResult) -> bytes:
        if len(kept) == limit:
            raise KeyboardInterrupt
        kept.append(len(self.frames))
        return original(self)

    monkeypatch.setattr(SplitResult, 'to_bytes', to_bytes)
    with pytest.raises(KeyboardInterrupt):
        analyze(bag, bag, InspectorConfig(), split_s=0.2)
    (bag / 'frames.unfinished').write_text('as after a kill')
    limit = 1000
    analyze(bag, bag, InspectorConfig(), split_s=0.2)
    assert len(kept) == 4  # of four splits, two in each call
    assert [int(row['stamp_ns']) for row in read_table(bag / 'frames.csv')] == STAMPS_NS


def test_a_report_on_paper_of_an_earlier_analysis_does_not_stay(
    make_bag: MakeBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bag, out = make_bag(frames=1), tmp_path / 'out'
    monkeypatch.setattr('cmml_ros.report.pdf.find_browser', lambda: None)
    for pdf in (False, True):
        analyze(bag, out, InspectorConfig())
        (out / 'report.pdf').write_text('of an earlier analysis')
        analyze(bag, out, InspectorConfig(), pdf=pdf)
        assert not (out / 'report.pdf').exists()


def test_what_cannot_be_written_leaves_the_earlier_results_whole(
    make_bag: MakeBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bag, out = make_bag(), tmp_path / 'out'
    analyze(bag, out, InspectorConfig())
    before = {path.name: path.read_bytes() for path in out.glob('*.*')}

    def fill(path: Path, *_: object) -> None:
        path.write_text('half of it')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('cmml_ros.report.results.write_report', fill)
    with pytest.raises(OSError, match='No space left'):
        analyze(bag, out, InspectorConfig(sync=SyncConfig(tolerance_s=0.01)))
    assert {path.name: path.read_bytes() for path in out.glob('*.*')} == before


def test_the_command_line_does_the_same(make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = tmp_path / 'settings.yaml'
    settings.write_text('sync.tolerance_s: 0.01\n')
    arguments = ['analyze', str(make_bag()), '--out', str(tmp_path / 'out'), '--config', str(settings)]
    assert main(arguments) == 0
    assert '2 airholes in 5 frames' in capsys.readouterr().out
    assert json.loads((tmp_path / 'out' / 'summary.json').read_text())['config']['sync.tolerance_s'] == 0.01


def test_the_cover_says_what_is_told_and_else_what_the_recording_was_told(make_bag: MakeBag, tmp_path: Path):
    bag, out = make_bag(frames=1), tmp_path / 'out'
    (bag / 'recording.yaml').write_text(
        'inspection: {report.site: pier 3, report.robot: crawler, sync.history_s: 10.0}'
    )
    assert main(['analyze', str(bag), '--out', str(out), '--no-pdf', '--robot', 'drone']) == 0
    summary = json.loads((out / 'summary.json').read_text())
    assert (summary['config']['report.site'], summary['config']['report.robot']) == ('pier 3', 'drone')
    assert summary['calibration']['camera'] == {
        'model': 'plumb_bob',
        'size_px': [WIDTH, HEIGHT],
        'k': [FOCAL_PX, 0.0, WIDTH / 2, 0.0, FOCAL_PX, HEIGHT / 2, 0.0, 0.0, 1.0],
        'd': [],  # all zero in the recording
    }
    assert summary['calibration']['T_camera_lidar'] == {
        'translation_m': [0.0] * 3,
        'rotation_xyzw': [0.0, 0.0, 0.0, 1.0],
    }
    assert summary['calibration']['check']['status'] == 'DEGENERATE'  # there is no network to match with
    assert summary['calibration']['check']['correction_rad_m'] is None
    (bag / 'recording.yaml').write_text('inspection: null')
    assert main(['analyze', str(bag), '--out', str(out), '--no-pdf']) == 0
    assert '<dt>Site</dt><dd>not stated</dd>' in (out / 'report.html').read_text(encoding='utf-8')


def fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that `cmml analyze` says when it fails."""
    assert main(['analyze', *map(str, arguments)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('cmml: error: ')]
    assert len(lines) == 1
    return lines[0]


def test_results_among_the_bags_are_not_taken_for_one(make_bag: MakeBag, tmp_path: Path):
    bag = make_bag(frames=1)
    (tmp_path / 'runs').mkdir()
    shutil.move(bag, tmp_path / 'runs' / 'wall')
    for _ in range(2):
        assert main(['analyze', f'{tmp_path}/runs/*', '--out', str(tmp_path / 'runs' / 'results'), '--no-pdf']) == 0
    assert json.loads((tmp_path / 'runs' / 'results' / 'summary.json').read_text())['bag'] == 'wall'
    # The folder of the only bag.
    assert main(['analyze', f'{tmp_path}/runs/w*', '--out', str(tmp_path / 'runs' / 'wall'), '--no-pdf']) == 0


def test_no_such_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert f'{tmp_path / "missing"}: no such bag' in fail(capsys, tmp_path / 'missing', '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('address', ['127.0.0.1:{}', 'ray://127.0.0.1:{}', 'no-such-host.invalid:{}'])
def test_a_cluster_that_is_not_there_is_told_at_once(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = address.format(free.getsockname()[1])
    started_s = time.monotonic()
    reason = fail(capsys, make_bag(frames=1), '--out', tmp_path / 'out', '--no-pdf', '--cluster', address)
    assert f'{address}: nothing answers there' in reason
    assert time.monotonic() - started_s < 20.0


def test_out_is_a_file(make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / 'out').write_text('mine')
    assert 'out is a file' in fail(capsys, make_bag(frames=1), '--out', tmp_path / 'out')
    assert (tmp_path / 'out').read_text() == 'mine'


def test_a_truncated_bag_is_analysed_up_to_the_cut(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bag = make_bag()
    file = bag / 'wall_0.mcap'
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    error = fail(capsys, bag, '--out', tmp_path / 'out')
    assert 'wall_0.mcap: the file ends inside a record' in error
    assert 'report.html covers what was read' in error
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert 0 < summary['frames'] < 5
    assert 'wall_0.mcap' in summary['fault']
    assert len(read_table(tmp_path / 'out' / 'defects.csv')) == 2


def test_a_bag_without_camera_info(make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    error = fail(capsys, make_bag(with_camera_info=False), '--out', tmp_path / 'out')
    assert 'no topic of type sensor_msgs/msg/CameraInfo' in error


def test_an_unknown_encoding(make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    error = fail(capsys, make_bag(encoding='bgr9'), '--out', tmp_path / 'out')
    assert '/camera/image' in error
    assert '"bgr9"' in error
    assert json.loads((tmp_path / 'out' / 'summary.json').read_text())['frames'] == 0


def test_image_and_camera_info_of_different_sizes(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    error = fail(capsys, make_bag(info_width=640), '--out', tmp_path / 'out')
    assert '320x240' in error
    assert '640x240' in error


def test_a_cloud_without_x_costs_only_the_cloud(make_bag: MakeBag, tmp_path: Path):
    summary = analyze(make_bag(cloud_fields=('u', 'y', 'z')), tmp_path / 'out', InspectorConfig())
    assert summary.frames == 5
    ((error, count),) = summary.errors.items()
    assert '/points' in error
    assert '"x"' in error
    assert count == 5
    rows = read_table(tmp_path / 'out' / 'defects.csv')
    assert {row['volume_status'] for row in rows} == {'NO_POINTS'}


def test_an_unknown_topic_and_an_unknown_setting(make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bag = make_bag(frames=1)
    error = fail(capsys, bag, '--out', tmp_path / 'out', '--image-topic', '/left/image')
    assert 'no topic /left/image' in error
    assert '/camera/image' in error
    settings = tmp_path / 'settings.yaml'
    settings.write_text('sync.tolerence_s: 0.01\n')
    error = fail(capsys, bag, '--out', tmp_path / 'out', '--config', settings)
    assert 'settings.yaml: unknown setting "sync.tolerence_s"' in error


def test_missing_weights(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.undo()  # the real network
    settings = tmp_path / 'settings.yaml'
    settings.write_text(f'detection.model: {tmp_path / "absent.safetensors"}\n')
    error = fail(capsys, make_bag(frames=1), '--out', tmp_path / 'out', '--config', settings)
    assert 'absent.safetensors' in error
    assert not (tmp_path / 'out').exists()
