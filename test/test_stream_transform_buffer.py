"""The tree answers at a stamp by interpolation, or names the edge and the interval."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmml_ros.errors import TransformError
from cmml_ros.geometry.transforms import SE3
from cmml_ros.stream.transform_buffer import StampedTransform, TransformBuffer

S = 1_000_000_000


def shift(x_m, angle_rad=0.0):
    return SE3.from_rotation_vector([0.0, 0.0, angle_rad], [x_m, 0.0, 0.0])


def make_buffer(*edges, history_s=10.0):
    """edges: (parent, child, stamp in s or None for static, x in m)."""
    buffer = TransformBuffer(history_s)
    for parent, child, stamp_s, x_m in edges:
        buffer.set(StampedTransform(parent, child, round((stamp_s or 0) * S), shift(x_m)), static=stamp_s is None)
    return buffer


def x_of(buffer, target, source, stamp_s):
    return buffer.lookup(target, source, round(stamp_s * S)).translation[0]


def test_up_down_and_across_the_tree():
    buffer = make_buffer(('map', 'base', None, 1.0), ('base', 'camera', None, 0.2), ('base', 'lidar', None, 0.5))
    assert x_of(buffer, 'map', 'camera', 5) == pytest.approx(1.2)
    assert x_of(buffer, 'camera', 'map', 5) == pytest.approx(-1.2)
    assert x_of(buffer, 'camera', 'lidar', 5) == pytest.approx(0.3)
    assert x_of(buffer, 'nobody', 'nobody', 5) == 0.0


def test_interpolates_translation_and_rotation():
    buffer = TransformBuffer(10.0)
    buffer.set(StampedTransform('map', 'base', 10 * S, shift(1.0)), static=False)
    buffer.set(StampedTransform('map', 'base', 12 * S, shift(2.0, np.pi / 2)), static=False)
    quarter = buffer.lookup('map', 'base', round(10.5 * S))
    assert quarter.translation[0] == pytest.approx(1.25)
    assert quarter.rotation_vector == pytest.approx([0.0, 0.0, np.pi / 8])
    assert x_of(buffer, 'map', 'base', 12) == 2.0


def test_never_extrapolates_and_names_edge_and_interval():
    buffer = make_buffer(('base_link', 'camera', 12.1, 0.0), ('base_link', 'camera', 13.4, 0.0))
    for stamp_s in (14.0, 12.0):
        message = f'base_link -> camera: known from 12.100 s to 13.400 s, asked for {stamp_s:.3f} s'
        with pytest.raises(TransformError, match=f'^{message}$'):
            buffer.lookup('base_link', 'camera', round(stamp_s * S))


def test_only_the_edges_between_the_frames_must_be_known():
    buffer = make_buffer(('map', 'base', 1, 0.0), ('base', 'camera', None, 0.2), ('base', 'lidar', None, 0.5))
    assert x_of(buffer, 'camera', 'lidar', 500) == pytest.approx(0.3)


def test_names_unknown_frames_and_separate_trees():
    with pytest.raises(TransformError, match='"camera" is unknown: nothing was received on /tf or /tf_static'):
        TransformBuffer(10.0).lookup('camera', 'map', 0)
    buffer = make_buffer(('base', 'camera_link', None, 0.0), ('rig', 'lidar', None, 0.0))
    with pytest.raises(TransformError, match='"camera_lnk" is unknown; did you mean "camera_link"'):
        buffer.lookup('camera_lnk', 'lidar', 0)
    with pytest.raises(TransformError, match=r'frame "" is unknown: the driver does not fill header\.frame_id'):
        buffer.lookup('', 'lidar', 0)
    with pytest.raises(TransformError, match='"odom" is unknown; known are base, camera_link, lidar, rig'):
        buffer.lookup('camera_link', 'odom', 0)
    with pytest.raises(
        TransformError, match='camera_link and lidar are not connected: camera_link hangs below base, lidar below rig'
    ):
        buffer.lookup('camera_link', 'lidar', 0)


def test_an_unknown_frame_costs_little_however_many_are_known():
    """It is asked for again with every message, and some publishers make up names."""
    buffer = make_buffer(*(('base', f'frame_{index:09}', None, 0.0) for index in range(1900)))
    started_s = time.thread_time()
    for _ in range(100):
        with pytest.raises(TransformError, match='frame "frame_123456789" is unknown; known are base, frame_000000000'):
            buffer.lookup('base', 'frame_123456789', 0)
    assert time.thread_time() - started_s < 0.1  # 10 s when each time the most similar name was looked for
    buffer.set(StampedTransform('base', 'frame_123456789', 0, SE3.identity()), static=True)
    assert buffer.lookup('base', 'frame_123456789', 0).translation.tolist() == [0.0, 0.0, 0.0]


def test_refuses_loops():
    buffer = make_buffer(('a', 'b', None, 1.0), ('b', 'c', None, 1.0))
    with pytest.raises(TransformError, match='c -> a: would close the loop a <- c <- b <- a'):
        buffer.set(StampedTransform('c', 'a', 0, shift(1.0)), static=True)
    assert x_of(buffer, 'a', 'c', 0) == 2.0


def test_follows_a_frame_that_changes_its_parent():
    buffer = make_buffer(
        ('map', 'left', None, 0.0),
        ('map', 'right', None, 10.0),
        ('left', 'tool', 1, 1.0),
        ('left', 'tool', 2, 2.0),
        ('right', 'tool', 4, 3.0),
        ('right', 'tool', 5, 4.0),
    )
    assert x_of(buffer, 'map', 'tool', 1.5) == pytest.approx(1.5)
    assert x_of(buffer, 'map', 'tool', 4.5) == pytest.approx(13.5)
    with pytest.raises(
        TransformError, match=r'left -> tool: the parent changed to right between 2\.000 s and 4\.000 s'
    ):
        buffer.lookup('map', 'tool', 3 * S)


def test_a_parent_is_known_as_long_as_a_transform_names_it():
    buffer = make_buffer(('left', 'tool', 1, 1.0), ('left', 'tool', 2, 2.0))
    with pytest.raises(TransformError, match='"right" is unknown'):
        buffer.lookup('right', 'tool', 2 * S)
    buffer.set(StampedTransform('right', 'tool', 5 * S, shift(3.0)), static=False)
    assert x_of(buffer, 'left', 'tool', 1.5) == pytest.approx(1.5)
    assert x_of(buffer, 'right', 'tool', 5) == 3.0
    buffer.set(StampedTransform('right', 'tool', 50 * S, shift(3.0)), static=False)
    assert not buffer.knows('left')


def test_history_is_bounded_and_covers_its_whole_length():
    buffer = make_buffer(*(('map', 'base', stamp_s, float(stamp_s)) for stamp_s in range(100)), history_s=5.0)
    assert x_of(buffer, 'map', 'base', 94.0) == 94.0
    with pytest.raises(TransformError, match=r'known from 93.000 s to 99.000 s'):
        buffer.lookup('map', 'base', 92 * S)
    slow = make_buffer(('map', 'base', 0, 0.0), ('map', 'base', 20, 2.0), history_s=5.0)
    assert x_of(slow, 'map', 'base', 17) == pytest.approx(1.7)


def test_a_clock_that_was_set_back_is_followed():
    buffer = make_buffer(('map', 'base', 1000, 0.0), ('map', 'base', 1, 1.0), ('map', 'base', 2, 2.0))
    assert x_of(buffer, 'map', 'base', 1.5) == pytest.approx(1.5)


def test_clear_keeps_what_is_sent_only_once():
    buffer = make_buffer(('map', 'base', 1, 0.0), ('base', 'camera', None, 0.2))
    buffer.clear()
    assert x_of(buffer, 'base', 'camera', 0) == pytest.approx(0.2)
    assert not buffer.knows('map')
    assert buffer.knows('base')


def test_a_new_static_transform_replaces_the_old():
    buffer = make_buffer(('base', 'camera', None, 0.2), ('base', 'camera', None, 0.3))
    assert x_of(buffer, 'base', 'camera', 0) == 0.3


@given(
    st.lists(st.tuples(st.integers(0, 90), st.floats(-5, 5)), min_size=2, unique_by=lambda s: s[0]), st.integers(0, 90)
)
def test_order_of_arrival_does_not_matter(samples, asked):
    def answer(ordered):
        buffer = make_buffer(*(('map', 'base', 0.1 * tick, x_m) for tick, x_m in ordered))
        try:
            return x_of(buffer, 'map', 'base', 0.1 * asked)
        except TransformError as error:
            return str(error)

    assert answer(samples) == answer(sorted(samples)) == answer(sorted(samples, reverse=True))


poses = st.builds(
    SE3.from_rotation_vector, st.tuples(*[st.floats(-1.5, 1.5)] * 3), st.tuples(*[st.floats(-10.0, 10.0)] * 3)
)


@given(st.lists(st.tuples(st.integers(0, 100), poses, poses), min_size=2, max_size=8), st.data())
def test_lookups_compose_along_any_path(nodes, data):
    buffer = TransformBuffer(10.0)
    for index, (parent, before, after) in enumerate(nodes, start=1):
        for stamp_ns, pose in ((S, before), (2 * S, after)):
            buffer.set(StampedTransform(f'f{parent % index}', f'f{index}', stamp_ns, pose), static=False)
    frames = st.integers(0, len(nodes)).map('f{}'.format)
    a, b, c = data.draw(frames), data.draw(frames), data.draw(frames)
    stamp_ns = data.draw(st.integers(S, 2 * S))
    direct = buffer.lookup(a, c, stamp_ns)
    np.testing.assert_allclose(
        (buffer.lookup(a, b, stamp_ns) @ buffer.lookup(b, c, stamp_ns)).matrix, direct.matrix, atol=1e-6
    )
    np.testing.assert_allclose(buffer.lookup(c, a, stamp_ns).inverse().matrix, direct.matrix, atol=1e-6)


def test_agrees_with_tf2():
    tf2_py = pytest.importorskip('tf2_py')
    geometry = pytest.importorskip('geometry_msgs.msg')
    duration = pytest.importorskip('rclpy.duration').Duration
    time = pytest.importorskip('rclpy.time').Time
    theirs, ours = tf2_py.BufferCore(duration(seconds=10)), TransformBuffer(10.0)
    rng = np.random.default_rng(5)
    for parent, child in (('map', 'base'), ('base', 'camera'), ('base', 'lidar')):
        for stamp_s in (1, 2):
            pose = SE3.from_rotation_vector(rng.normal(size=3), rng.normal(size=3))
            ours.set(StampedTransform(parent, child, stamp_s * S, pose), static=False)
            msg = geometry.TransformStamped(child_frame_id=child)
            msg.header.frame_id, msg.header.stamp.sec = parent, stamp_s
            for name, value in zip('xyz', pose.translation, strict=True):
                setattr(msg.transform.translation, name, value)
            for name, value in zip('xyzw', pose.quaternion_xyzw, strict=True):
                setattr(msg.transform.rotation, name, value)
            theirs.set_transform(msg, 'test')
    found = theirs.lookup_transform_core('camera', 'lidar', time(nanoseconds=1_300_000_000).to_msg()).transform
    expected = SE3.from_quaternion(
        [getattr(found.rotation, name) for name in 'xyzw'], [getattr(found.translation, name) for name in 'xyz']
    )
    np.testing.assert_allclose(ours.lookup('camera', 'lidar', 1_300_000_000).matrix, expected.matrix, atol=1e-9)


def test_frames_without_end_are_refused_and_known_ones_go_on() -> None:
    buffer = TransformBuffer(10.0)
    for index in range(2000):
        buffer.set(StampedTransform('map', f'frame_{index}', 0, SE3.identity()), static=True)
    with pytest.raises(TransformError, match='2000 frames are known already'):
        buffer.set(StampedTransform('map', 'one_more', 0, SE3.identity()), static=True)
    moved = SE3(np.eye(3), np.array([1.0, 0.0, 0.0]))
    buffer.set(StampedTransform('map', 'frame_7', 0, moved), static=True)
    assert buffer.lookup('map', 'frame_7', 0).translation.tolist() == [1.0, 0.0, 0.0]
