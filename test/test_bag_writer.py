from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml

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


def test_metadata_tells_ros2_bag_play_what_to_offer(tmp_path: Path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/tf_static', 'tf2_msgs/msg/TFMessage', latched=True)
        writer.add_topic('/text', STRING)
        writer.write('/text', writer.types[STRING](data=''), 7)
    information = yaml.safe_load((tmp_path / 'bag' / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert information['version'] == 9
    assert information['storage_identifier'] == 'mcap'
    assert information['relative_file_paths'] == ['bag.mcap']
    offered = {
        topic['topic_metadata']['name']: topic['topic_metadata']['offered_qos_profiles'][0]
        for topic in information['topics_with_message_count']
    }
    assert offered['/tf_static']['durability'] == 'transient_local'
    assert offered['/text']['durability'] == 'volatile'
    assert offered['/text']['reliability'] == 'reliable'


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
