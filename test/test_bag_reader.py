from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from cmml_ros.bag.message_types import make_typestore
from cmml_ros.bag.reader import BagReader
from cmml_ros.bag.writer import BagWriter
from cmml_ros.errors import BagError

STRING = 'std_msgs/msg/String'
IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POINTS = 'sensor_msgs/msg/PointCloud2'

MakeBag = Callable[..., Path]


@pytest.fixture
def make_bag(tmp_path: Path) -> MakeBag:
    """A bag whose topic /text holds `count` numbered texts of 10 kB, one every 100 ns."""

    def make(
        name: str = 'bag',
        plugin: StoragePlugin = StoragePlugin.MCAP,
        compression: CompressionMode = CompressionMode.NONE,
        first: int = 0,
        count: int = 5,
    ) -> Path:
        typestore = make_typestore()
        writer = Writer(tmp_path / name, version=9, storage_plugin=plugin)
        writer.set_compression(compression, CompressionFormat.ZSTD)
        with writer:
            connection = writer.add_connection('/text', STRING, typestore=typestore)
            for number in range(first, first + count):
                # Random-looking, so that compression does not shrink it to nothing.
                text = f'{number} ' + ''.join(chr(33 + (7919 * number + i * i) % 90) for i in range(10_000))
                writer.write(connection, 100 * number, typestore.serialize_cdr(typestore.types[STRING](text), STRING))
        return tmp_path / name

    return make


def make_topics(path: Path, topics: dict[str, str], silent: Sequence[str] = ()) -> Path:
    """A bag with one (undecodable) message on each topic that is not silent."""
    with BagWriter(path) as writer:
        for topic, type_name in topics.items():
            writer.add_topic(topic, type_name)
            if topic not in silent:
                writer.write(topic, b'\x00\x01\x00\x00', 1)
    return path


def read_numbers(path: Path) -> list[int]:
    with BagReader(path) as reader:
        return [int(message.data.split()[0]) for _, message, _ in reader.messages(['/text'])]


def read_until_fault(path: Path) -> tuple[list[int], str]:
    numbers = []
    with BagReader(path) as reader:
        try:
            for _, message, _ in reader.messages(['/text']):
                numbers.append(int(message.data.split()[0]))
        except BagError as error:
            return numbers, str(error)
    raise AssertionError(f'{path} was read without a fault')


@pytest.mark.parametrize(
    ('plugin', 'compression'),
    [
        (StoragePlugin.MCAP, CompressionMode.NONE),
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
        (StoragePlugin.MCAP, CompressionMode.MESSAGE),
        (StoragePlugin.MCAP, CompressionMode.FILE),
        (StoragePlugin.SQLITE3, CompressionMode.NONE),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
    ],
)
def test_every_storage_and_compression(make_bag: MakeBag, plugin: StoragePlugin, compression: CompressionMode):
    path = make_bag(plugin=plugin, compression=compression)
    assert read_numbers(path) == [0, 1, 2, 3, 4]
    with BagReader(path) as reader:
        assert reader.count(['/text']) == 5
        assert reader.warnings == []


@pytest.mark.parametrize('plugin', StoragePlugin)
@pytest.mark.parametrize('compression', [CompressionMode.NONE, CompressionMode.MESSAGE])
def test_a_single_file_and_a_folder_without_metadata(
    make_bag: MakeBag, plugin: StoragePlugin, compression: CompressionMode
):
    path = make_bag(plugin=plugin, compression=compression)
    (file,) = (file for file in path.iterdir() if file.suffix in ('.mcap', '.db3'))
    assert read_numbers(file) == [0, 1, 2, 3, 4]
    (path / 'metadata.yaml').unlink()
    assert read_numbers(path) == [0, 1, 2, 3, 4]
    with BagReader(path) as reader:
        assert 'no metadata.yaml' in reader.warnings[0]


def test_a_split_bag_is_read_in_the_order_of_its_parts(make_bag: MakeBag, tmp_path: Path):
    split = tmp_path / 'split'
    split.mkdir()
    for part, number in enumerate([0, 5, 10]):
        # Part 10 comes after part 2, though not by the alphabet.
        name = f'split_{[1, 2, 10][part]}.mcap'
        shutil.copy(make_bag(f'part{part}', first=number) / f'part{part}.mcap', split / name)
    assert read_numbers(split) == list(range(15))


def test_a_truncated_mcap_gives_all_before_the_cut_then_says_so(make_bag: MakeBag):
    path = make_bag(compression=CompressionMode.STORAGE, count=500)  # several chunks
    file = path / 'bag.mcap'
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    numbers, fault = read_until_fault(path)
    assert re.search(r'bag\.mcap: the file ends inside a record.*\(\d+ messages\)', fault)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 100


def test_a_truncated_part_does_not_hide_the_next_one(make_bag: MakeBag, tmp_path: Path):
    split = tmp_path / 'split'
    split.mkdir()
    first = (make_bag('a', compression=CompressionMode.STORAGE, count=300) / 'a.mcap').read_bytes()
    (split / 'split_0.mcap').write_bytes(first[: len(first) // 2])
    shutil.copy(make_bag('b', first=300) / 'b.mcap', split / 'split_1.mcap')
    numbers, fault = read_until_fault(split)
    assert 'split_0.mcap' in fault
    assert numbers[0] == 0
    assert numbers[-5:] == [300, 301, 302, 303, 304]


@pytest.mark.parametrize('suffix', ['.mcap', '.db3'])
def test_an_empty_or_unreadable_part_does_not_hide_the_others(make_bag: MakeBag, suffix: str):
    path = make_bag(plugin=StoragePlugin.MCAP if suffix == '.mcap' else StoragePlugin.SQLITE3)
    (path / 'metadata.yaml').unlink()
    last = path / f'bag_last{suffix}'
    last.write_bytes(b'')
    assert read_numbers(path) == [0, 1, 2, 3, 4]  # nothing is lost
    with BagReader(path) as reader:
        assert any(f'{last}: cannot be read' in warning for warning in reader.warnings)
    last.write_bytes(bytes(range(256)))
    numbers, fault = read_until_fault(path)
    assert numbers == [0, 1, 2, 3, 4]
    assert f'{last}: cannot be read' in fault


def test_messages_that_sqlite_has_not_moved_into_the_file_are_told(make_bag: MakeBag, tmp_path: Path):
    """As the preset "resilient" of rosbag2 leaves them when it is killed."""
    path = make_bag(plugin=StoragePlugin.SQLITE3)
    (path / 'metadata.yaml').unlink()
    file = path / 'bag.db3'
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute('PRAGMA journal_mode = WAL')
        database.execute('INSERT INTO messages (topic_id, timestamp, data) SELECT topic_id, 500, data FROM messages')
        database.commit()
        killed = tmp_path / 'killed'
        shutil.copytree(path, killed)
    for bag in (killed, killed / 'bag.db3'):
        numbers, fault = read_until_fault(bag)
        assert numbers == [0, 1, 2, 3, 4]
        assert 'bag.db3-wal: its messages are not read; `sqlite3 ' in fault
    with contextlib.closing(sqlite3.connect(killed / 'bag.db3')) as database:
        database.execute('PRAGMA wal_checkpoint')
    assert len(read_numbers(killed)) == 10


def test_a_recorder_that_was_killed_leaves_a_readable_file(make_bag: MakeBag):
    """Without footer and index, but with complete records, as SIGKILL leaves it."""
    path = make_bag(compression=CompressionMode.STORAGE, count=300)
    file = path / 'bag.mcap'
    data = file.read_bytes()
    last_index = data.rindex(b'\x0f\x04\x00\x00\x00\x00\x00\x00\x00')  # the DataEnd record
    file.write_bytes(data[:last_index])
    (path / 'metadata.yaml').unlink()
    numbers, _ = read_until_fault(path)
    assert numbers == list(range(300))


def test_undecodable_messages_are_counted_and_cost_nothing_else(tmp_path: Path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/text', STRING)
        writer.write('/text', writer.types[STRING](data='1'), 1)
        writer.write('/text', b'\x00\x01\x00\x00\xff\xff\xff\x7f', 2)
        writer.write('/text', b'', 3)
        writer.write('/text', writer.types[STRING](data='4'), 4)
    with BagReader(tmp_path / 'bag') as reader:
        assert [message.data for _, message, _ in reader.messages(['/text'])] == ['1', '4']
        assert reader.undecodable == {'/text': 2}


def test_bags_that_are_none(tmp_path: Path):
    with pytest.raises(BagError, match='missing: no such bag'):
        BagReader(tmp_path / 'missing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BagError, match=r'empty: no metadata.yaml .* and no .mcap or .db3 file$'):
        BagReader(tmp_path / 'empty')
    (tmp_path / 'notes.txt').write_text('')
    with pytest.raises(BagError, match='not a rosbag2 folder'):
        BagReader(tmp_path / 'notes.txt')
    for name in ('noise.mcap', 'noise.db3'):
        (tmp_path / name).write_bytes(bytes(range(256)) * 10)
        with pytest.raises(BagError, match=f'{name}: cannot be read'):
            BagReader(tmp_path / name)


def test_bags_that_need_another_tool_first(make_bag: MakeBag, tmp_path: Path):
    (tmp_path / 'old.bag').write_text('#ROSBAG V2.0')
    with pytest.raises(BagError, match='rosbags-convert'):
        BagReader(tmp_path / 'old.bag')
    path = make_bag(plugin=StoragePlugin.SQLITE3, compression=CompressionMode.FILE)
    file = path / 'bag.db3.zstd'
    with pytest.raises(BagError, match='unzstd'):
        BagReader(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BagError, match=r'bag: .*ended before.*, and no .mcap or .db3 file; .*unzstd') as cut:
        BagReader(path)
    assert 'no metadata.yaml' not in str(cut.value)
    (path / 'metadata.yaml').unlink()
    with pytest.raises(BagError, match=r'no metadata.yaml .*unzstd'):
        BagReader(path)


def test_a_missing_topic_is_named(make_bag: MakeBag):
    with BagReader(make_bag()) as reader, pytest.raises(BagError, match='no topic /other among /text'):
        list(reader.messages(['/other']))


def test_sensor_topics_are_found_by_type(tmp_path: Path):
    path = make_topics(
        tmp_path / 'bag', {'/cam/image': IMAGE, '/cam/camera_info': CAMERA_INFO, '/scan': POINTS, '/text': STRING}
    )
    with BagReader(path) as reader:
        topics = reader.find_sensor_topics()
    assert (topics.image, topics.camera_info, topics.points) == ('/cam/image', '/cam/camera_info', '/scan')


def test_names_tell_candidates_apart(tmp_path: Path):
    path = make_topics(
        tmp_path / 'bag',
        {
            '/inspection_node/overlay': IMAGE,  # no camera_info beside it
            '/left/image_raw': IMAGE,
            '/left/image_raw/compressed': COMPRESSED,  # the raw topic is there
            '/left/camera_info': CAMERA_INFO,
            '/right/camera_info': CAMERA_INFO,
            '/near/points': POINTS,
            '/far/points': POINTS,  # silent
        },
        silent=['/far/points'],
    )
    with BagReader(path) as reader:
        topics = reader.find_sensor_topics()
    assert (topics.image, topics.camera_info, topics.points) == ('/left/image_raw', '/left/camera_info', '/near/points')


def test_the_picture_of_a_depth_camera_is_told_from_its_depth(tmp_path: Path):
    depths = {
        '/cam/depth/image_rect_raw': IMAGE,
        '/cam/depth/image_rect_raw/compressedDepth': COMPRESSED,
        '/cam/depth/camera_info': CAMERA_INFO,
        '/cam/aligned_depth_to_color/image_raw': IMAGE,
        '/cam/aligned_depth_to_color/camera_info': CAMERA_INFO,
        '/cam/depth/color/points': POINTS,
    }
    colors = {'/cam/color/image_raw': IMAGE, '/cam/color/camera_info': CAMERA_INFO}
    with BagReader(make_topics(tmp_path / 'both', {**depths, **colors})) as reader:
        topics = reader.find_sensor_topics()
    assert (topics.image, topics.camera_info, topics.points) == (*colors, '/cam/depth/color/points')
    with BagReader(make_topics(tmp_path / 'depth', depths)) as reader:
        with pytest.raises(BagError, match=r'only depth images \(/cam/aligned_depth_to_color/image_raw, /cam/depth/'):
            reader.find_sensor_topics()
        topics = reader.find_sensor_topics('/cam/depth/image_rect_raw')
    assert (topics.image, topics.camera_info) == ('/cam/depth/image_rect_raw', '/cam/depth/camera_info')
    with BagReader(
        make_topics(tmp_path / 'named', {f'/depth_camera{topic}': kind for topic, kind in colors.items()})
    ) as reader:
        assert reader.find_sensor_topics().image == '/depth_camera/cam/color/image_raw'


def test_a_compressed_image_finds_its_camera_info(tmp_path: Path):
    path = make_topics(
        tmp_path / 'bag',
        {'/cam/image/compressed': COMPRESSED, '/cam/camera_info': CAMERA_INFO, '/other/camera_info': CAMERA_INFO},
    )
    with BagReader(path) as reader:
        topics = reader.find_sensor_topics()
        assert (topics.image, topics.camera_info) == ('/cam/image/compressed', '/cam/camera_info')
        assert topics.points is None
        assert 'no sensor_msgs/msg/PointCloud2 topic' in reader.warnings[0]


def test_what_could_become_a_cloud_is_named(tmp_path: Path):
    topics = {
        '/cam/image': IMAGE,
        '/cam/camera_info': CAMERA_INFO,
        '/cam/depth/image_rect_raw': IMAGE,
        '/scan': 'sensor_msgs/msg/LaserScan',
        '/text': STRING,
    }
    with BagReader(make_topics(tmp_path / 'bag', topics)) as reader:
        assert reader.find_sensor_topics().points is None
        (warning,) = reader.warnings
    others = '/scan (sensor_msgs/msg/LaserScan), /cam/depth/image_rect_raw'
    assert warning.endswith(f'not measured; publish sensor_msgs/msg/PointCloud2 of {others} and record that')


def test_candidates_that_cannot_be_told_apart_are_listed(tmp_path: Path):
    path = make_topics(
        tmp_path / 'bag',
        {
            '/left/image': IMAGE,
            '/left/camera_info': CAMERA_INFO,
            '/right/image': IMAGE,
            '/right/camera_info': CAMERA_INFO,
            '/a': POINTS,
            '/b': POINTS,
        },
    )
    with BagReader(path) as reader:
        with pytest.raises(BagError, match=r'/left/image, /right/image; name one with --image-topic'):
            reader.find_sensor_topics()
        with pytest.raises(BagError, match=r'/a, /b; name one with --points-topic'):
            reader.find_sensor_topics(image='right/image')
        topics = reader.find_sensor_topics(image='right/image', points='/b')
        assert (topics.image, topics.camera_info, topics.points) == ('/right/image', '/right/camera_info', '/b')
        with pytest.raises(BagError, match=r'no topic /c .*: /a, /b'):
            reader.find_sensor_topics(image='/right/image', points='/c')
        with pytest.raises(BagError, match=r'/a is sensor_msgs/msg/PointCloud2, not'):
            reader.find_sensor_topics(image='/a')


def test_a_bag_without_camera_info_says_so(tmp_path: Path):
    path = make_topics(tmp_path / 'bag', {'/cam/image': IMAGE, '/scan': POINTS})
    with BagReader(path) as reader, pytest.raises(BagError, match=r'CameraInfo among /cam/image \(sensor_msgs/'):
        reader.find_sensor_topics()


def test_a_bag_of_an_older_distribution_needs_no_definitions_inside(make_bag: MakeBag):
    """Before Iron, SQLite bags hold none: the types are those of the distribution that metadata names."""
    path = make_bag(plugin=StoragePlugin.SQLITE3)
    with contextlib.closing(sqlite3.connect(path / 'bag.db3')) as database:
        database.executescript('DROP TABLE message_definitions; UPDATE schema SET schema_version = 3')
    metadata = (path / 'metadata.yaml').read_text()
    for distro in ('galactic', "''"):
        (path / 'metadata.yaml').write_text(metadata.replace('ros_distro: rosbags', f'ros_distro: {distro}'))
        assert read_numbers(path) == [0, 1, 2, 3, 4]


def test_a_message_compressed_on_its_own_is_told_from_cdr(tmp_path: Path):
    cdr = b'\x00\x01\x00\x00' + b'\x03\x00\x00\x00hi\x00'
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/text', STRING)
        writer.write('/text', zstandard.compress(cdr), 1)
    with BagReader(tmp_path / 'bag') as reader:
        assert [message.data for _, message, _ in reader.messages(['/text'])] == ['hi']
