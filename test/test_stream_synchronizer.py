"""Each image with its nearest cloud, whatever order they come in; nothing lost without a reason."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmml_ros.config import SyncConfig
from cmml_ros.stream.synchronizer import MAX_DISORDER_NS, Synchronizer

MS = 1_000_000
LARGE = SyncConfig(tolerance_s=0.05, queue_size=1000)

# Strictly increasing times of one topic, milliseconds, up to 0.2 s apart.
topic_times = st.lists(st.integers(1, 200), max_size=30).map(
    lambda steps: [sum(steps[: i + 1]) for i in range(len(steps))]
)


def feed(synchronizer, events):
    """(image, cloud or None) in ms for events ('image' | 'cloud', ms), with what is left at the end."""
    pairs = []
    for kind, time_ms in events:
        add = synchronizer.add_image if kind == 'image' else synchronizer.add_cloud
        pairs += add(time_ms * MS, time_ms)
    pairs += synchronizer.flush()
    return [(pair.image, pair.cloud) for pair in pairs]


def pair_by_brute_force(images, clouds, tolerance_ms=50):
    expected = []
    for image in images:
        nearest = min(clouds, key=lambda cloud: (abs(cloud - image), cloud), default=None)
        near = nearest is not None and abs(nearest - image) <= tolerance_ms
        expected.append((image, nearest if near else None))
    return expected


@st.composite
def interleaved(draw):
    """Images and clouds, each in the order of its times, interleaved in any way."""
    images, clouds = draw(topic_times), draw(topic_times)
    kinds = draw(st.permutations(['image'] * len(images) + ['cloud'] * len(clouds)))
    sources = {'image': iter(images), 'cloud': iter(clouds)}
    return images, clouds, [(kind, next(sources[kind])) for kind in kinds]


def test_nearest_cloud_by_hand():
    events = [('image', 100), ('cloud', 60), ('cloud', 130), ('cloud', 160), ('image', 200), ('cloud', 300)]
    assert feed(Synchronizer(LARGE), events) == [(100, 130), (200, 160)]


def test_an_image_waits_until_no_nearer_cloud_can_come():
    synchronizer = Synchronizer(LARGE)
    assert synchronizer.add_image(100 * MS, 'image') == []
    assert synchronizer.add_cloud(70 * MS, 'before') == []
    assert synchronizer.add_cloud(149 * MS, 'after') == []
    (pair,) = synchronizer.add_cloud(150 * MS, 'later by the tolerance')
    assert (pair.image, pair.cloud, pair.image_time_ns, pair.cloud_time_ns) == ('image', 'before', 100 * MS, 70 * MS)


def test_equal_stamps_pair_at_once():
    synchronizer = Synchronizer(LARGE)
    assert synchronizer.add_cloud(100 * MS, 'cloud') == []
    (pair,) = synchronizer.add_image(100 * MS, 'image')
    assert (pair.image, pair.cloud) == ('image', 'cloud')


def test_offsets_are_added_before_pairing():
    synchronizer = Synchronizer(SyncConfig(tolerance_s=0.0, camera_offset_s=0.030, lidar_offset_s=-0.100))
    assert synchronizer.add_image(1000 * MS, 'image') == []
    (pair,) = synchronizer.add_cloud(1130 * MS, 'cloud')
    assert (pair.image_time_ns, pair.cloud_time_ns) == (1030 * MS, 1030 * MS)


def test_one_cloud_serves_several_images():
    events = [('cloud', 100), ('image', 80), ('image', 110), ('image', 140), ('cloud', 200)]
    assert feed(Synchronizer(LARGE), events) == [(80, 100), (110, 100), (140, 100)]


def test_reason_names_the_distance():
    synchronizer = Synchronizer(LARGE)
    synchronizer.add_image(100 * MS, 'image')
    (pair,) = synchronizer.add_cloud(3300 * MS, 'cloud')
    assert pair.cloud is None
    assert pair.reason == 'the nearest cloud is +3.200 s from the image, tolerance 0.05 s'
    assert synchronizer.counts['image without cloud'] == 1


@given(interleaved())
def test_every_image_gets_its_nearest_cloud_in_any_interleaving(example):
    images, clouds, events = example
    assert feed(Synchronizer(LARGE), events) == pair_by_brute_force(images, clouds)


@given(st.sets(st.integers(0, 1000)), st.sets(st.integers(0, 1000)), st.randoms(use_true_random=False))
def test_a_cloud_that_comes_late_pairs_with_the_images_that_wait(images, clouds, random):
    arrivals = [(image, 'image', image) for image in images]
    arrivals += [(cloud + random.randrange(25), 'cloud', cloud) for cloud in clouds]
    paired = feed(Synchronizer(LARGE), [event[1:] for event in sorted(arrivals)])
    # A cloud up to 25 ms late is there before one that is later than the image by the tolerance of 50 ms.
    expected = dict(pair_by_brute_force(sorted(images), sorted(clouds), 25))
    assert {image: cloud for image, cloud in paired if expected[image] is not None} == {
        image: cloud for image, cloud in expected.items() if cloud is not None
    }


@given(st.sets(st.integers(0, 199)), st.sets(st.integers(0, 199)), st.randoms(use_true_random=False))
def test_order_within_the_queue_does_not_matter(images, clouds, random):
    events = [('image', image) for image in images] + [('cloud', cloud) for cloud in clouds]
    random.shuffle(events)
    # With this tolerance only equal stamps let an image leave early: here there are none.
    events = [(kind, 2 * time_ms + (kind == 'cloud')) for kind, time_ms in events if 2 * time_ms < 190]
    synchronizer = Synchronizer(SyncConfig(tolerance_s=1.0, queue_size=1000))
    expected = pair_by_brute_force(
        sorted(t for kind, t in events if kind == 'image'), sorted(t for kind, t in events if kind == 'cloud'), 1000
    )
    assert feed(synchronizer, events) == expected


@given(interleaved(), st.integers(1, 5))
def test_a_small_queue_never_pairs_a_cloud_that_is_not_nearest(example, queue_size):
    images, clouds, events = example
    paired = feed(Synchronizer(SyncConfig(tolerance_s=0.05, queue_size=queue_size)), events)
    assert [image for image, _ in paired] == images
    expected = dict(pair_by_brute_force(images, clouds))
    for image, cloud in paired:
        assert cloud is None or abs(cloud - image) == abs(expected[image] - image)


@given(st.lists(st.tuples(st.sampled_from(['image', 'cloud']), st.integers(1, 600))), st.integers(1, 5))
def test_bounded_and_nothing_lost_without_a_reason(events, queue_size):
    synchronizer = Synchronizer(SyncConfig(tolerance_s=0.05, queue_size=queue_size))
    pairs = []
    for kind, time_ms in events:
        payload = (len(pairs), kind, object())
        add = synchronizer.add_image if kind == 'image' else synchronizer.add_cloud
        pairs += add(time_ms * MS, payload)
        assert len(synchronizer) <= queue_size
    pairs += synchronizer.flush()
    counts = synchronizer.counts
    jumps = counts['time jumped back']
    times = [pair.image_time_ns for pair in pairs]
    assert sum(later < earlier for earlier, later in pairwise(times)) <= jumps
    images = sum(kind == 'image' for kind, _ in events)
    lost = counts['image out of order'] + counts['image stamp seen before'] + counts['image lost when time jumped back']
    assert len(pairs) + lost == images
    assert counts['image without cloud'] == sum(pair.cloud is None for pair in pairs)
    used = {id(pair.cloud) for pair in pairs if pair.cloud is not None}
    assert len(used) + counts['cloud without image'] + counts['cloud stamp seen before'] == len(events) - images


def test_images_leave_a_full_queue_without_a_cloud():
    synchronizer = Synchronizer(SyncConfig(queue_size=3))
    pairs = [pair for i in range(5) for pair in synchronizer.add_image((100 + i) * MS, i)]
    assert [(pair.image, pair.cloud, pair.reason) for pair in pairs] == [
        (0, None, 'no cloud has come'),
        (1, None, 'no cloud has come'),
    ]


def test_an_image_that_comes_after_its_cloud_has_left_says_so():
    synchronizer = Synchronizer(SyncConfig(queue_size=2))
    for time_ms in (100, 110, 120, 200):
        synchronizer.add_cloud(time_ms * MS, time_ms)
    (pair,) = synchronizer.add_image(105 * MS, 'image')
    assert pair.cloud is None
    assert pair.reason == 'the nearest cloud had left before the image came; raise sync.queue_size from 2'


def test_a_cloud_that_is_later_than_the_queue_is_long_says_so():
    synchronizer = Synchronizer(SyncConfig(queue_size=2))
    synchronizer.add_cloud(50 * MS, 'early')
    pairs = [pair for time_ms in (100, 200, 300) for pair in synchronizer.add_image(time_ms * MS, time_ms)]
    expected = '2 images wait and the newest cloud is 0.050 s behind; raise sync.queue_size'
    assert [(pair.image, pair.cloud, pair.reason) for pair in pairs] == [(100, None, expected)]


def test_duplicates_and_late_images_are_dropped_and_counted():
    synchronizer = Synchronizer(LARGE)
    events = [('image', 100), ('image', 100), ('cloud', 100), ('cloud', 100), ('image', 100), ('image', 99)]
    assert feed(synchronizer, events) == [(100, 100)]
    assert synchronizer.counts == {'image stamp seen before': 2, 'cloud stamp seen before': 1, 'image out of order': 1}


@pytest.mark.parametrize('first', ['image', 'cloud'])
def test_a_bag_that_loops_pairs_again_from_its_start(first):
    second = 'cloud' if first == 'image' else 'image'
    loop = [(kind, time_ms) for time_ms in range(1000, 2000, 100) for kind in (first, second)]
    synchronizer = Synchronizer(LARGE)
    assert feed(synchronizer, loop * 3) == [(time_ms, time_ms) for time_ms in range(1000, 2000, 100)] * 3
    assert +synchronizer.counts == {'time jumped back': 2}


def test_a_jump_back_drops_what_waits():
    synchronizer = Synchronizer(LARGE)
    synchronizer.add_cloud(790 * MS, 'old')
    synchronizer.add_image(1000 * MS, 'old')
    back_ns = 1000 * MS - MAX_DISORDER_NS
    assert synchronizer.add_image(back_ns, 'late, no jump') == []
    assert synchronizer.counts['time jumped back'] == 0
    assert synchronizer.add_image(back_ns - 1, 'new') == []
    assert synchronizer.newest_time_ns == back_ns - 1
    (pair,) = synchronizer.add_cloud(back_ns - 1, 'new')
    assert (pair.image, pair.cloud) == ('new', 'new')
    assert synchronizer.counts == {
        'time jumped back': 1,
        'image lost when time jumped back': 2,
        'cloud without image': 1,
    }


def test_pairs_what_message_filters_pairs():
    message_filters = pytest.importorskip('message_filters')
    time = pytest.importorskip('rclpy.time').Time
    images, clouds = message_filters.SimpleFilter(), message_filters.SimpleFilter()
    theirs = message_filters.ApproximateTimeSynchronizer([images, clouds], 10, 0.05)
    paired = []
    theirs.registerCallback(lambda image, cloud: paired.append((image.time_ms, cloud.time_ms)))
    # A camera and a scanner of one rate: each cloud is the nearest of one image only, as message_filters wants it.
    events = [event for time_ms in range(1000, 2000, 100) for event in (('image', time_ms), ('cloud', time_ms + 20))]
    for kind, time_ms in events:
        stamp = time(nanoseconds=time_ms * MS).to_msg()
        message = SimpleNamespace(header=SimpleNamespace(stamp=stamp), time_ms=time_ms)
        (images if kind == 'image' else clouds).signalMessage(message)
    assert len(paired) == 10
    assert feed(Synchronizer(LARGE), events) == paired
