from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zstandard
from mcap.reader import make_reader
from mcap.records import Chunk
from mcap.stream_reader import StreamReader

from cmml_ros.bag.reader import BagReader
from cmml_ros.bag.writer import BagWriter
from cmml_ros.errors import BagError

STRING = 'std_msgs/msg/String'


def test_what_was_written_is_read_again_in_the_order_of_stamps(tmp_path: Path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/late', STRING)
        writer.add_topic('/early', STRING)
        writer.write('/late', writer.types[STRING](data='second'), 20)
        writer.write('/early', writer.types[STRING](data='first'), 10)
    with BagReader(tmp_path / 'bag') as reader:
        assert reader.topics() == {'/early': STRING, '/late': STRING}
        messages = list(reader.messages(['/early', '/late']))
    assert [(topic, message.data, stamp_ns) for topic, message, stamp_ns in messages] == [
        ('/early', 'first', 10),
        ('/late', 'second', 20),
    ]


def test_cdr_bytes_are_stored_as_they_came(tmp_path: Path):
    cdr = b'\x00\x01\x00\x00' + b'\x03\x00\x00\x00hi\x00'
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/text', STRING)
        writer.write('/text', cdr, 1)
        writer.write('/text', memoryview(cdr), 2)
    with BagReader(tmp_path / 'bag') as reader:
        assert [message.data for _, message, _ in reader.messages(['/text'])] == ['hi', 'hi']


def test_chunks_are_compressed_fast(tmp_path: Path):
    text = str(np.random.default_rng(0).normal(size=10000).tolist())
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/text', STRING)
        writer.write('/text', writer.types[STRING](data=text), 1)
    with (tmp_path / 'bag' / 'bag_0.mcap').open('rb') as stream:
        (chunk,) = (record for record in StreamReader(stream, emit_chunks=True).records if isinstance(record, Chunk))
    assert (chunk.compression, chunk.uncompressed_size > len(text)) == ('zstd', True)
    assert chunk.data == zstandard.compress(zstandard.decompress(chunk.data), 1)
    assert chunk.data != zstandard.compress(zstandard.decompress(chunk.data))


def test_metadata_tells_ros2_bag_play_what_to_offer(tmp_path: Path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/tf_static', 'tf2_msgs/msg/TFMessage', latched=True)
        writer.add_topic('/text', STRING)
        writer.write('/text', writer.types[STRING](data=''), 7)
    information = yaml.safe_load((tmp_path / 'bag' / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert information['version'] == 8
    assert information['storage_identifier'] == 'mcap'
    assert information['relative_file_paths'] == ['bag_0.mcap']
    offered = {
        topic['topic_metadata']['name']: yaml.safe_load(topic['topic_metadata']['offered_qos_profiles'])[0]
        for topic in information['topics_with_message_count']
    }
    assert offered['/tf_static']['durability'] == 1  # transient local
    assert offered['/text']['durability'] == 2  # volatile
    assert offered['/text']['reliability'] == 1  # reliable
    # Channels say the same as metadata.yaml: after a kill they are all there is.
    with (tmp_path / 'bag' / 'bag_0.mcap').open('rb') as file:
        channels = make_reader(file).get_summary().channels.values()
    assert {
        channel.topic: yaml.safe_load(channel.metadata['offered_qos_profiles'])[0] for channel in channels
    } == offered


def text(writer: BagWriter, value: str) -> Any:
    return writer.types[STRING](data=value)


def test_a_file_ends_by_time_and_the_next_begins_with_what_is_latched(tmp_path: Path):
    with BagWriter(tmp_path / 'bag', max_file_s=1.0) as writer:
        writer.add_topic('/tf_static', 'tf2_msgs/msg/TFMessage', latched=True)
        writer.add_topic('/map', STRING, latched=True)
        writer.add_topic('/text', STRING)
        for stamp_ns in (0, 1):  # of two publishers
            transforms = [make_transform(writer, str(stamp_ns))]
            writer.write('/tf_static', writer.types['tf2_msgs/msg/TFMessage'](transforms=transforms), stamp_ns)
        for stamp_ns in range(0, 3_000_000_000, 500_000_000):
            writer.write('/map', text(writer, f'map {stamp_ns}'), stamp_ns)
            writer.write('/text', text(writer, f'text {stamp_ns}'), stamp_ns)
    files = sorted((tmp_path / 'bag').glob('*.mcap'))
    assert [file.name for file in files] == ['bag_0.mcap', 'bag_1.mcap', 'bag_2.mcap']
    with BagReader(files[1]) as reader:
        head = [(topic, message, stamp) for topic, message, stamp in reader.messages(['/tf_static', '/map'])]
    assert [topic for topic, _, _ in head[:3]] == ['/tf_static', '/tf_static', '/map']
    assert [message.transforms[0].child_frame_id for _, message, _ in head[:2]] == ['0', '1']
    # The state before the split, under the time of the split, so that playing keeps the order.
    assert (head[2][1].data, head[2][2]) == ('map 500000000', 1_000_000_000)
    with BagReader(tmp_path / 'bag') as reader:
        assert reader.warnings == []
        assert [message.data for _, message, _ in reader.messages(['/text'])] == [
            f'text {stamp_ns}' for stamp_ns in range(0, 3_000_000_000, 500_000_000)
        ]
    information = yaml.safe_load((tmp_path / 'bag' / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert [file['message_count'] for file in information['files']] == [6, 7, 7]
    assert information['message_count'] == 20
    assert information['duration']['nanoseconds'] == 2_500_000_000


@pytest.mark.parametrize(('mounted_s', 'ends_s'), [(5.0, 5.0), (90.0, 60.0)])
def test_the_first_file_lasts_until_what_makes_it_usable_alone_has_come(
    tmp_path: Path, mounted_s: float, ends_s: float
):
    with BagWriter(tmp_path / 'bag', max_file_s=1.0, awaited=['/tf_static']) as writer:
        writer.add_topic('/text', STRING)
        for half_seconds in range(200):
            stamp_ns = half_seconds * 500_000_000
            if stamp_ns == round(mounted_s * 1e9):
                # As over DDS: a topic is added when it is discovered.
                writer.add_topic('/tf_static', 'tf2_msgs/msg/TFMessage', latched=True)
                transforms = [make_transform(writer, 'lidar')]
                writer.write('/tf_static', writer.types['tf2_msgs/msg/TFMessage'](transforms=transforms), stamp_ns)
            writer.write('/text', text(writer, ''), stamp_ns)
    files = sorted((tmp_path / 'bag').glob('*.mcap'), key=lambda path: int(path.stem.split('_')[1]))
    with BagReader(files[1]) as reader:
        assert next(reader.messages(['/text'])).stamp_ns == round(ends_s * 1e9)
    alone = []
    for file in files:
        with BagReader(file) as reader:
            alone.append('/tf_static' in reader.topics() and reader.count(['/tf_static']) == 1)
    assert alone == [True] * len(files) if mounted_s < 60.0 else sorted(alone)
    assert alone[-1]


def make_transform(writer: BagWriter, child: str) -> Any:
    make = writer.types
    header = make['std_msgs/msg/Header'](stamp=make['builtin_interfaces/msg/Time'](sec=0, nanosec=0), frame_id='base')
    transform = make['geometry_msgs/msg/Transform'](
        translation=make['geometry_msgs/msg/Vector3'](x=0.0, y=0.0, z=0.0),
        rotation=make['geometry_msgs/msg/Quaternion'](x=0.0, y=0.0, z=0.0, w=1.0),
    )
    return make['geometry_msgs/msg/TransformStamped'](header=header, child_frame_id=child, transform=transform)


def test_a_file_ends_by_size(tmp_path: Path):
    random = np.random.default_rng(0)
    with BagWriter(tmp_path / 'bag', max_file_bytes=4_000_000) as writer:
        writer.add_topic('/image', 'sensor_msgs/msg/CompressedImage')
        for index in range(20):
            writer.write('/image', b'\x00\x01\x00\x00' + random.bytes(1_000_000), index)
    sizes = [file.stat().st_size for file in sorted((tmp_path / 'bag').glob('*.mcap'))]
    assert len(sizes) >= 4
    assert max(sizes) < 6_000_000


def test_what_was_flushed_survives_a_kill(tmp_path: Path):
    code = f"""
import os, signal
from pathlib import Path
from cmml_ros.bag.writer import BagWriter
writer = BagWriter(Path({str(tmp_path / 'bag')!r}))
writer.add_topic('/text', {STRING!r})
for index in range(100):
    writer.write('/text', writer.types[{STRING!r}](data=str(index)), index)
    if index == 79:
        writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == -signal.SIGKILL
    with BagReader(tmp_path / 'bag') as reader:
        assert 'no metadata.yaml' in reader.warnings[0]
        read = []
        with contextlib.suppress(BagError):  # the file has no end
            for _, message, _ in reader.messages(['/text']):
                read.append(message.data)
    assert read == [str(index) for index in range(80)]


def test_own_messages_are_known_without_ros(tmp_path: Path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/defects', 'cmml_ros/msg/DefectArray')
        header = writer.types['std_msgs/msg/Header'](
            stamp=writer.types['builtin_interfaces/msg/Time'](sec=1, nanosec=2), frame_id='camera'
        )
        array = writer.types['cmml_ros/msg/DefectArray'](
            header=header,
            defects=[],
            model_id='small',
            sync_offset=0.25,
            calibration_status=0,
            projection_time=0.0,
            segmentation_time=0.0,
            measurement_time=0.0,
            total_time=0.0,
        )
        writer.write('/defects', array, 1)
    with BagReader(tmp_path / 'bag') as reader:
        (message,) = [message for _, message, _ in reader.messages(['/defects'])]
    assert (message.model_id, message.sync_offset, message.header.stamp.nanosec) == ('small', 0.25, 2)


def test_a_bag_left_by_an_exception_is_complete(tmp_path: Path):
    with contextlib.suppress(RuntimeError), BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/text', STRING)
        writer.write('/text', writer.types[STRING](data='kept'), 1)
        raise RuntimeError
    with BagReader(tmp_path / 'bag') as reader:
        assert [message.data for _, message, _ in reader.messages(['/text'])] == ['kept']
        assert reader.warnings == []


def test_mistakes_are_named(tmp_path: Path):
    (tmp_path / 'there').mkdir()
    with pytest.raises(BagError, match='there exists already'):
        BagWriter(tmp_path / 'there')
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/text', STRING)
        with pytest.raises(BagError, match='/text was added twice'):
            writer.add_topic('/text', STRING)
        with pytest.raises(BagError, match='unknown message type no_msgs/msg/Such for /other'):
            writer.add_topic('/other', 'no_msgs/msg/Such')
        with pytest.raises(BagError, match='topic /other was not added'):
            writer.write('/other', b'', 1)
    with pytest.raises(BagError, match='closed'):
        writer.write('/text', b'', 1)
