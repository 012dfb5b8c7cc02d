"""Messages in, Frames out: the same however the topics interleave, and a plain line when something is missing."""

from __future__ import annotations

import threading
import time
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmml_ros.config import SyncConfig
from cmml_ros.errors import CmmlError, MessageError, TransformError
from cmml_ros.stream.assembler import Assembler

MS = 1_000_000
START_MS = 1_700_000_000_000


def make_header(time_ms, frame_id):
    seconds, rest_ms = divmod(time_ms, 1000)
    return SimpleNamespace(stamp=SimpleNamespace(sec=seconds, nanosec=rest_ms * MS), frame_id=frame_id)


def make_image(time_ms, width=4, height=3):
    return SimpleNamespace(
        header=make_header(time_ms, 'camera'),
        width=width,
        height=height,
        encoding='mono8',
        is_bigendian=0,
        step=width,
        data=bytes(range(width * height)),
    )


def make_info(time_ms, focal_px=100.0, width=4, height=3):
    return SimpleNamespace(
        header=make_header(time_ms, 'camera'),
        width=width,
        height=height,
        distortion_model='plumb_bob',
        d=[],
        k=[focal_px, 0.0, 1.5, 0.0, focal_px, 1.0, 0.0, 0.0, 1.0],
        binning_x=0,
        binning_y=0,
        roi=SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    )


def make_cloud(time_ms, names='xyz'):
    fields = [SimpleNamespace(name=name, offset=4 * i, datatype=7, count=1) for i, name in enumerate(names)]
    points = np.array([[time_ms % 1000, 2.0, 3.0]], dtype=np.float32)
    return SimpleNamespace(
        header=make_header(time_ms, 'lidar'),
        width=1,
        height=1,
        fields=fields,
        is_bigendian=False,
        point_step=12,
        row_step=12,
        data=points.tobytes(),
    )


def make_tf(time_ms, parent, child, x_m, quaternion=(0.0, 0.0, 0.0, 1.0)):
    transform = SimpleNamespace(
        translation=SimpleNamespace(x=x_m, y=0.0, z=0.0),
        rotation=SimpleNamespace(**dict(zip('xyzw', quaternion, strict=True))),
    )
    header = make_header(time_ms, parent)
    return SimpleNamespace(transforms=[SimpleNamespace(header=header, child_frame_id=child, transform=transform)])


def add(assembler, kind, *arguments):
    """One event, times in ms after START_MS; what comes out of it."""
    time_ms = START_MS + arguments[0]
    rest = arguments[1:]
    if kind == 'image':
        assembler.add_image(make_image(time_ms, *rest))
    elif kind == 'info':
        assembler.add_camera_info(make_info(time_ms, *rest))
    elif kind == 'cloud':
        assembler.add_cloud(make_cloud(time_ms, *rest))
    else:
        assembler.add_transforms(make_tf(time_ms, *rest), static=kind == 'tf_static')
    return assembler.take()


def run(events, config=None):
    """The frames of a whole stream, and the assembler after it."""
    assembler = Assembler(config or SyncConfig())
    frames = [frame for event in events for frame in add(assembler, *event)]
    return frames + assembler.flush(), assembler


def summarize(frame):
    """All that a frame says, comparable."""

    def matrix(transform):
        return None if transform is None else tuple(transform.matrix.round(9).ravel())

    return (
        frame.stamp_ns,
        frame.cloud_stamp_ns,
        frame.camera.fx,
        matrix(frame.T_camera_lidar),
        matrix(frame.T_map_camera),
        frame.transform_reason,
    )


STATIC = [('tf_static', 0, 'base', 'camera', 0.1), ('tf_static', 0, 'base', 'lidar', 0.4)]


def test_a_frame_by_hand():
    events = [
        *STATIC,
        ('tf', 50, 'map', 'base', 0.0),
        ('tf', 150, 'map', 'base', 1.0),
        ('info', 100),
        ('image', 100),
        ('cloud', 100),
    ]
    (frame,), assembler = run(events)
    assert frame.stamp_ns == frame.cloud_stamp_ns == (START_MS + 100) * MS
    assert frame.frame_id == 'camera'
    assert frame.image[1, 2].tolist() == [6, 6, 6]
    assert (frame.camera.fx, frame.camera.cx) == (100.0, 1.5)
    assert frame.cloud.points.tolist() == [[100.0, 2.0, 3.0]]
    assert frame.T_camera_lidar.translation == pytest.approx([0.3, 0.0, 0.0])
    assert frame.T_map_camera.translation == pytest.approx([0.6, 0.0, 0.0])
    assert frame.transform_reason == ''
    assert frame.sync_offset_s == 0.0
    assert assembler.problem() is None
    assert assembler.counts == {
        'transform received': 4,
        'camera_info received': 1,
        'image received': 1,
        'cloud received': 1,
        'frame': 1,
    }


def test_motion_between_the_stamps_is_taken_from_the_map():
    events = [
        *STATIC,
        *(('tf', time_ms, 'map', 'base', 0.001 * time_ms) for time_ms in (0, 200)),  # 1 m/s along x
        ('info', 0),
        ('image', 100),
        ('cloud', 130),
        ('cloud', 230),
    ]
    (frame,), _ = run(events)
    assert frame.sync_offset_s == pytest.approx(0.030)
    assert frame.T_camera_lidar.translation == pytest.approx([0.3 + 0.030, 0.0, 0.0])


def test_where_the_map_ends_between_the_stamps_the_sensors_are_fixed_to_each_other():
    events = [
        *STATIC,
        *(('tf', time_ms, 'map', 'base', 0.001 * time_ms) for time_ms in (0, 110)),
        ('info', 0),
        ('image', 100),
        ('cloud', 130),
    ]
    (frame,), assembler = run(events)
    assert frame.T_camera_lidar.translation == pytest.approx([0.3, 0.0, 0.0])
    assert frame.T_map_camera.translation == pytest.approx([0.1 + 0.1, 0.0, 0.0])
    expected = 'the sensors are taken as fixed to each other between their stamps: map -> base: known from'
    assert frame.transform_reason.startswith(expected)
    assert assembler.counts['no transform'] == 0
    assert assembler.problem() is None


def test_without_a_map_the_sensors_are_fixed_to_each_other():
    (frame,), assembler = run([*STATIC, ('info', 0), ('image', 100), ('cloud', 130), ('cloud', 230)])
    assert frame.T_camera_lidar.translation == pytest.approx([0.3, 0.0, 0.0])
    assert frame.T_map_camera is None
    assert frame.transform_reason == 'frame "map" is unknown; known are base, camera, lidar'
    assert assembler.problem() is None


def test_without_a_map_only_the_first_frames_wait_for_it():
    assembler = Assembler(SyncConfig(transform_wait_s=0.5))
    events = [*STATIC, ('info', 0), *((kind, time_ms) for time_ms in range(0, 800, 100) for kind in ('cloud', 'image'))]
    taken = [len(add(assembler, *event)) for event in events]
    # The cloud at 0.5 s lets five images go; from then on each image leaves at once.
    assert taken[3:] == [0] * 10 + [5, 1, 0, 1, 0, 1]


def test_image_waits_for_its_camera_info():
    assembler = Assembler(SyncConfig(queue_size=2))
    for event in STATIC:
        add(assembler, *event)
    for time_ms in range(0, 1000, 100):
        assert add(assembler, 'cloud', time_ms) == add(assembler, 'image', time_ms) == []
    assert assembler.counts['no camera_info'] == 8
    assert 'no message on "camera_info": images on "image" wait for it' in assembler.problem()
    assert [frame.stamp_ns // MS - START_MS for frame in add(assembler, 'info', 1000)] == [800, 900]


def test_static_transforms_may_come_after_the_first_images():
    assembler = Assembler(SyncConfig())
    for time_ms in (0, 100, 200):
        for kind in ('info', 'image', 'cloud'):
            assert add(assembler, kind, time_ms) == []
    for event in STATIC:
        add(assembler, *event)
    add(assembler, 'image', 600)
    frames = add(assembler, 'cloud', 600)
    assert [frame.T_camera_lidar is not None for frame in frames] == [True]
    assert assembler.counts['frame'] == 4


def test_a_missing_transform_is_waited_for_in_sensor_time_and_named():
    assembler = Assembler(SyncConfig(transform_wait_s=0.5))
    add(assembler, 'tf_static', 0, 'base', 'camera', 0.1)
    add(assembler, 'info', 0)
    events = [(kind, time_ms) for time_ms in range(0, 600, 100) for kind in ('cloud', 'image')]
    taken = [add(assembler, *event) for event in events]
    assert [len(frames) for frames in taken] == [0] * 10 + [1, 0]  # the cloud at 0.5 s ends the wait of the first
    (frame,) = taken[10]
    assert frame.stamp_ns == START_MS * MS
    assert frame.cloud is not None
    assert frame.T_camera_lidar is None
    assert frame.transform_reason.startswith('frame "lidar" is unknown')
    assert assembler.counts['no transform'] == 1
    assert assembler.problem().startswith('no transform from "lidar" to "camera": frame "lidar" is unknown')


def test_a_transform_that_ends_is_named_with_its_interval():
    events = [
        ('tf_static', 0, 'base', 'camera', 0.1),
        ('tf', 0, 'base', 'lidar', 0.0),
        ('tf', 90, 'base', 'lidar', 0.0),
        ('info', 0),
        ('image', 100),
        ('cloud', 100),
    ]
    (frame,), _ = run(events)
    first, last, asked = ((START_MS + time_ms) / 1000 for time_ms in (0, 90, 100))
    edge = f'base -> lidar: known from {first:.3f} s to {last:.3f} s, asked for {asked:.3f} s'
    assert frame.transform_reason.startswith(edge)


def test_without_clouds_frames_are_2d_only():
    frames, assembler = run([*STATIC, ('info', 0), *(('image', time_ms) for time_ms in range(0, 2000, 100))])
    assert len(frames) == 20
    assert {frame.cloud for frame in frames} == {None}
    assert frames[0].transform_reason.startswith('no cloud has come')
    assert 'no message on "points": frames have no points' in assembler.problem()


def test_sizes_that_differ_cost_the_frame_and_name_both_topics():
    assembler = Assembler(SyncConfig(), '/rgb', '/rgb/info', '/cloud')
    for event in [*STATIC, ('info', 0, 100.0, 1280, 720), ('image', 0), ('cloud', 0)]:
        assert add(assembler, *event) == []
    assert assembler.flush() == []
    assert isinstance(assembler.errors[0], MessageError)
    expected = '/rgb is 4x3 but /rgb/info says 1280x720; both must come from the same driver at the same resolution'
    assert str(assembler.errors[0]) == assembler.problem() == expected
    assert assembler.counts['frame lost by a bad message'] == 1


def test_a_damaged_header_that_announces_a_huge_picture_is_refused_before_it_is_decoded():
    data = bytearray(cv2.imencode('.png', np.zeros((3, 4, 3), np.uint8))[1].tobytes())
    data[16:24] = (11000).to_bytes(4, 'big') * 2  # below OpenCV's own limit: seconds and 360 MB
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    huge = SimpleNamespace(header=make_header(START_MS + 100, 'camera'), format='png', data=bytes(data))
    assembler = Assembler(SyncConfig())
    for event in [*STATIC, ('info', 0)]:
        add(assembler, *event)
    assembler.add_image(huge)
    started_s = time.thread_time()
    assert assembler.flush() == []
    assert time.thread_time() - started_s < 0.05
    assert 'image is 11000x11000 but camera_info says 4x3' in str(assembler.errors[0])


def test_the_name_of_the_topic_tells_that_a_picture_is_rectified():
    info = make_info(START_MS, 100.0)
    info.d, info.p = [0.1, 0.0, 0.0, 0.0], [80.0, 0, 2, 0, 0, 80, 1.5, 0, 0, 0, 1, 0]
    for topic, fx, distortion in (('/cam/image_raw', 100.0, (0.1, 0.0, 0.0, 0.0)), ('/cam/image_rect', 80.0, ())):
        assembler = Assembler(SyncConfig(), topic)
        assembler.add_camera_info(info)
        add(assembler, 'image', 0)
        (frame,) = assembler.flush()
        assert (frame.camera.fx, frame.camera.distortion) == (fx, distortion)


def test_a_changed_camera_info_holds_from_its_stamp_on():
    events = [('info', 0, 100.0), ('info', 200, 150.0), ('image', 100), ('cloud', 100), ('image', 200), ('cloud', 200)]
    frames, _ = run(events)
    assert [frame.camera.fx for frame in frames] == [100.0, 150.0]


def test_bad_messages_are_refused_at_once_and_cost_nothing_else():
    assembler = Assembler(SyncConfig(), points_topic='/lidar/points')
    for event in [*STATIC, ('info', 0)]:
        add(assembler, *event)
    with pytest.raises(MessageError, match='/lidar/points: no field "x" among'):
        add(assembler, 'cloud', 100, 'uvw')
    with pytest.raises(MessageError, match='image: stamp is zero'):
        add(assembler, 'image', -START_MS)
    with pytest.raises(MessageError, match='camera_info: focal lengths must be positive'):
        add(assembler, 'info', 0, -1.0)
    with pytest.raises(MessageError, match='/tf: base -> lidar: a quaternion must be finite and not zero'):
        add(assembler, 'tf', 0, 'base', 'lidar', 0.0, (0.0, 0.0, 0.0, 0.0))
    with pytest.raises(TransformError, match='camera -> base: would close the loop'):
        add(assembler, 'tf', 0, 'camera', 'base', 0.0)
    add(assembler, 'image', 100)
    add(assembler, 'cloud', 120)
    (frame,) = assembler.flush()
    assert frame.cloud is not None
    counts = assembler.counts
    assert (counts['cloud refused'], counts['image refused'], counts['camera_info refused']) == (1, 1, 1)
    assert counts['transform refused'] == 2
    assert 'would close the loop' in assembler.problem()
    assert 'no message on "image"' in assembler.problem()  # of the time since the previous call


def test_an_image_of_a_bad_layout_is_refused_at_the_door():
    assembler = Assembler(SyncConfig())
    for event in [*STATIC, ('info', 0)]:
        add(assembler, *event)
    broken = make_image(START_MS)
    broken.encoding = 'bgr12'
    with pytest.raises(MessageError, match='unknown encoding "bgr12"'):
        assembler.add_image(broken)
    add(assembler, 'image', 100)
    add(assembler, 'cloud', 0)
    add(assembler, 'cloud', 100)
    assert [frame.stamp_ns // MS - START_MS for frame in assembler.flush()] == [100]
    assert assembler.counts['image refused'] == 1


def make_undecodable(time_ms):
    """A compressed image that is none, which only decoding can tell."""
    return SimpleNamespace(header=make_image(time_ms).header, format='png', data=b'no picture')


def test_an_image_that_cannot_be_converted_costs_its_frame_only():
    assembler = Assembler(SyncConfig())
    for event in [*STATIC, ('info', 0)]:
        add(assembler, *event)
    assembler.add_image(make_undecodable(START_MS))
    add(assembler, 'image', 100)
    add(assembler, 'cloud', 0)
    add(assembler, 'cloud', 100)
    assert [frame.stamp_ns // MS - START_MS for frame in assembler.flush()] == [100]
    assert 'neither a JPEG nor a PNG' in str(assembler.errors[0])


def test_an_image_that_cannot_be_converted_does_not_take_the_place_of_a_good_one():
    assembler = Assembler(SyncConfig())
    for event in [*STATIC, ('info', 0)]:
        add(assembler, *event)
    assembler.add_image(make_image(START_MS))
    assembler.add_image(make_image(START_MS + 100))
    assembler.add_image(make_undecodable(START_MS + 200))
    for time_ms in (0, 100, 200, 2000):
        assembler.add_cloud(make_cloud(START_MS + time_ms))
    (frame,) = assembler.take(newest=1)
    assert frame.stamp_ns // MS - START_MS == 100
    assert assembler.counts['pipeline behind'] == 1
    assert assembler.counts['frame lost by a bad message'] == 1


def test_clocks_that_differ_are_explained():
    frames, assembler = run([('info', 0), *(('image', t) for t in range(0, 500, 100)), ('cloud', 9000)])
    assert {frame.cloud for frame in frames} == {None}
    problem = assembler.problem()
    assert '"image" and "points" do not pair: the nearest cloud is +8.600 s from the image' in problem
    assert 'synchronise the clocks, set sync.camera_offset_s or sync.lidar_offset_s, or raise' in problem
    _, assembler = run([('info', 0), ('image', 0), ('cloud', 5000 - START_MS), ('image', 100)])
    assert assembler.problem().startswith('stamps of "points" count from the start of the device')


def test_offsets_move_pairing_and_transforms_but_not_the_stamp():
    config = SyncConfig(tolerance_s=0.0, camera_offset_s=0.1)
    motion = [('tf', time_ms, 'map', 'base', 0.001 * time_ms) for time_ms in (0, 400)]
    (frame,), _ = run([*STATIC, *motion, ('info', 0), ('image', 100), ('cloud', 200)], config)
    assert frame.stamp_ns == (START_MS + 100) * MS
    assert frame.cloud_stamp_ns == (START_MS + 200) * MS
    assert frame.T_map_camera.translation == pytest.approx([0.2 + 0.1, 0.0, 0.0])


def test_a_looping_bag_gives_the_same_frames_again():
    loop = [('info', 0)]
    for time_ms in range(0, 1000, 100):
        loop += [('tf', time_ms, 'map', 'base', 0.001 * time_ms), ('image', time_ms), ('cloud', time_ms)]
    assembler = Assembler(SyncConfig())
    for event in STATIC:
        add(assembler, *event)
    once = [summarize(frame) for event in loop for frame in add(assembler, *event)]
    twice = [summarize(frame) for event in loop for frame in add(assembler, *event)]
    assert len(once) == 10
    # The first pose of the loop comes before the image that tells of the jump, and is cleared with the old ones.
    assert twice[0][:4] == once[0][:4]
    assert twice[0][4] is None
    assert twice[1:] == once[1:]
    assert assembler.counts['time jumped back'] == 1
    assert assembler.problem() is None


def test_time_that_jumps_again_and_again_is_explained():
    events = [('info', 0), *(('cloud', t) for i in range(5) for t in (i * 100, i * 100 + 5000)), ('image', 500)]
    _, assembler = run(events)
    assert 'time jumped back 4 times on "image" or "points"; do two publishers' in assembler.problem()


def test_newest_only_counts_the_others():
    assembler = Assembler(SyncConfig(queue_size=5))
    assembler.add_transforms(make_tf(0, 'base', 'camera', 0.1), static=True)
    assembler.add_transforms(make_tf(0, 'base', 'lidar', 0.4), static=True)
    assembler.add_camera_info(make_info(START_MS))
    for time_ms in range(START_MS, START_MS + 2000, 100):
        assembler.add_image(make_image(time_ms))
        assembler.add_cloud(make_cloud(time_ms))
    (frame,) = assembler.take(newest=1)
    assert frame.stamp_ns == (START_MS + 1900) * MS
    assert assembler.counts['pipeline behind'] == 19
    assert assembler.take() == []
    assembler.drop(2, 'inspection failed')
    assert assembler.counts['inspection failed'] == 2


def test_as_many_of_the_newest_are_taken_as_there_is_room_for():
    assembler = Assembler(SyncConfig())
    for event in [*STATIC, ('info', 0)]:
        add(assembler, *event)
    for time_ms in (0, 100, 200):
        assembler.add_image(make_image(START_MS + time_ms))
        assembler.add_cloud(make_cloud(START_MS + time_ms))
    assembler.release()
    assert [frame.stamp_ns // MS - START_MS for frame in assembler.take(newest=2)] == [100, 200]
    assert assembler.counts['pipeline behind'] == 1
    assert assembler.take(newest=2) == []


def test_what_waits_behind_an_image_without_a_cloud_is_released():
    """At the end of a run: the first image waits for a cloud that would be nearer, the second for the first."""
    assembler = Assembler(SyncConfig())
    for event in [*STATIC, ('info', 0)]:
        add(assembler, *event)
    assembler.add_image(make_image(START_MS + 90))
    assembler.add_image(make_image(START_MS + 100))
    assembler.add_cloud(make_cloud(START_MS + 100))
    assert assembler.take() == []
    assembler.release()
    assert [frame.stamp_ns // MS - START_MS for frame in assembler.take()] == [90, 100]
    # One whose scan takes long goes on waiting, and what comes later goes its usual way.
    assembler.add_image(make_image(START_MS + 1000))
    assembler.release()
    assert assembler.take() == []
    assembler.add_cloud(make_cloud(START_MS + 1000))
    assert [frame.stamp_ns // MS - START_MS for frame in assembler.take()] == [1000]
    assembler.add_image(make_image(START_MS + 2000))
    assembler.add_cloud(make_cloud(START_MS + 2000))
    assert [frame.stamp_ns // MS - START_MS for frame in assembler.take()] == [2000]


@st.composite
def deliveries(draw):
    """A moving robot's messages: each topic in order, and each topic late by an amount of its own."""
    pushes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=25))
    camera_period, lidar_period = draw(st.integers(60, 150)), draw(st.integers(60, 150))
    lidar_phase = draw(st.integers(0, 60))
    end_ms = camera_period * len(pushes)
    topics = {
        'image': [('image', i * camera_period + push) for i, push in enumerate(pushes)],
        'cloud': [('cloud', time_ms) for time_ms in range(lidar_phase, end_ms + 300, lidar_period)],
        'info': [('info', time_ms) for time_ms in range(0, end_ms, 500)],
        'tf': [('tf', time_ms, 'map', 'base', 0.001 * time_ms) for time_ms in range(-100, end_ms + 400, 50)],
        'static': [('tf_static', -100, *event[2:]) for event in STATIC],
    }
    late_ms = {topic: draw(st.integers(0, 200)) for topic in topics}
    arrivals = [(event[1] + late_ms[topic], i, event) for topic in topics for i, event in enumerate(topics[topic])]
    return topics, [event for _, _, event in sorted(arrivals, key=lambda arrival: arrival[:2])]


@given(deliveries(), st.integers(1, 4))
def test_frames_do_not_depend_on_how_topics_interleave_nor_on_when_they_are_taken(delivery, take_every):
    topics, events = delivery
    in_order = [event for name in ('static', 'info', 'tf') for event in topics[name]]
    in_order += sorted(topics['image'] + topics['cloud'], key=lambda event: event[1])
    config = SyncConfig(queue_size=30)
    expected = [summarize(frame) for frame in run(in_order, config)[0]]
    assert len(expected) == len(topics['image'])

    assembler = Assembler(config)
    frames = []
    makers = {'image': (make_image, assembler.add_image), 'cloud': (make_cloud, assembler.add_cloud)}
    makers['info'] = (make_info, assembler.add_camera_info)
    for index, (kind, time_ms, *rest) in enumerate(events):
        if kind in makers:
            make, enqueue = makers[kind]
            enqueue(make(START_MS + time_ms))
        else:
            assembler.add_transforms(make_tf(START_MS + time_ms, *rest), static=kind == 'tf_static')
        if index % take_every == 0:
            frames += assembler.take()
    frames += assembler.flush()
    assert [summarize(frame) for frame in frames] == expected


@given(st.lists(st.tuples(st.sampled_from(['image', 'cloud', 'info', 'tf']), st.integers(0, 3000)), max_size=60))
def test_any_stream_is_bounded_ordered_and_accounted_for(events):
    assembler = Assembler(SyncConfig(queue_size=3))
    frames = []
    for kind, time_ms in events:
        rest = ('map', 'camera', 0.0) if kind == 'tf' else ()
        frames += add(assembler, kind, time_ms, *rest)
    frames += assembler.flush()
    counts = assembler.counts
    assert counts['frame'] == len(frames)
    lost = ('no camera_info', 'image out of order', 'image stamp seen before', 'image lost when time jumped back')
    assert len(frames) + sum(counts[reason] for reason in lost) == counts['image received']
    stamps = [frame.stamp_ns for frame in frames]
    assert counts['time jumped back'] > 0 or stamps == sorted(set(stamps))


def test_messages_may_be_added_while_frames_are_taken():
    assembler = Assembler(SyncConfig(queue_size=4))
    for event in [*STATIC, ('info', 0)]:
        add(assembler, *event)
    frames, done = [], threading.Event()

    def take():
        while not done.is_set():
            frames.extend(assembler.take())

    worker = threading.Thread(target=take)
    worker.start()
    for time_ms in range(START_MS, START_MS + 30_000, 100):
        assembler.add_cloud(make_cloud(time_ms))
        assembler.add_image(make_image(time_ms))
    done.set()
    worker.join()
    frames += assembler.flush()
    assert len(frames) + assembler.counts['pipeline behind'] == 300
    assert [frame.stamp_ns for frame in frames] == sorted(frame.stamp_ns for frame in frames)


@given(st.data())
def test_no_message_raises_anything_but_our_own_errors(data):
    assembler = Assembler(SyncConfig(queue_size=2))
    makers = [
        (make_image, assembler.add_image),
        (make_info, assembler.add_camera_info),
        (make_cloud, assembler.add_cloud),
    ]
    for _ in range(data.draw(st.integers(1, 10))):
        make, enqueue = data.draw(st.sampled_from(makers))
        msg = make(START_MS)
        msg.header.stamp.sec = data.draw(st.integers(-(2**31), 2**31 - 1))
        msg.header.frame_id = data.draw(st.sampled_from(['', '/', 'camera', 'lidar']))
        msg.width = data.draw(st.integers(0, 8))
        try:
            enqueue(msg)
        except CmmlError:
            continue
        assembler.take()
    assembler.flush()
    assert all(isinstance(error, CmmlError) for error in assembler.errors)
