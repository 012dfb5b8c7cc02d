"""Messages to arrays: every layout a driver may choose, and a clear refusal of what cannot be read."""

from __future__ import annotations

import array
import copy
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmml_ros.errors import CmmlError, MessageError
from cmml_ros.stream import returns
from cmml_ros.stream.conversions import (
    announced_size,
    camera_from_info,
    check_cloud,
    cloud_from_message,
    image_to_bgr,
    is_rectified,
    stamp_to_ns,
    transforms_from_message,
)

TYPES = {1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4', 8: 'f8'}


def make_header(stamp_s=1.0, frame_id='camera'):
    stamp = SimpleNamespace(sec=int(stamp_s), nanosec=round(stamp_s % 1.0 * 1e9))
    return SimpleNamespace(stamp=stamp, frame_id=frame_id)


def make_image(pixels, encoding, *, bigendian=False, padding=0, data_type=bytes):
    """pixels: (rows, width) or (rows, width, channels) in the encoding's own order."""
    rows, width = pixels.shape[:2]
    ordered = pixels.astype(pixels.dtype.newbyteorder('>' if bigendian else '<'))
    lines = [line.tobytes() + b'\xa5' * padding for line in ordered]
    data = b''.join(lines)
    return SimpleNamespace(
        header=make_header(),
        height=rows,
        width=width,
        encoding=encoding,
        is_bigendian=int(bigendian),
        step=len(lines[0]),
        data=data_type(data),
    )


def make_compressed(data, message_format):
    return SimpleNamespace(header=make_header(), format=message_format, data=array.array('B', data))


def make_cloud(columns, *, offsets=None, point_step=None, height=1, row_padding=0, bigendian=False, data_type=bytes):
    """columns: name -> (datatype, values); every point padded with 0xa5 where no field lies."""
    count = len(next(iter(columns.values()))[1])
    order = '>' if bigendian else '<'
    fields, start = [], 0
    for name, (datatype, _) in columns.items():
        offset = start if offsets is None else offsets[name]
        fields.append(SimpleNamespace(name=name, offset=offset, datatype=datatype, count=1))
        start = offset + np.dtype(TYPES[datatype]).itemsize
    step = point_step or max(f.offset + np.dtype(TYPES[f.datatype]).itemsize for f in fields)
    raw = np.full((count, step), 0xA5, dtype=np.uint8)
    for field in fields:
        datatype, values = columns[field.name]
        column = np.asarray(values).astype(order + TYPES[datatype]).reshape(count, 1)
        raw[:, field.offset : field.offset + column.dtype.itemsize] = column.view(np.uint8)
    rows = raw.reshape(height, -1)
    padded = np.pad(rows, ((0, 0), (0, row_padding)), constant_values=0x5A)
    return SimpleNamespace(
        header=make_header(frame_id='lidar'),
        height=height,
        width=count // height,
        fields=fields,
        is_bigendian=bigendian,
        point_step=step,
        row_step=padded.shape[1],
        data=data_type(padded.tobytes()),
        is_dense=False,
    )


def make_camera_info(**changes):
    values = {
        'header': make_header(),
        'width': 640,
        'height': 480,
        'distortion_model': 'plumb_bob',
        'd': array.array('d', [-0.1, 0.01, 0.001, -0.002, 0.0]),
        'k': np.array([500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]),
        'r': np.eye(3).ravel(),
        'p': np.zeros(12),
        'binning_x': 0,
        'binning_y': 0,
        'roi': SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    }
    return SimpleNamespace(**{**values, **changes})


def make_transforms(*edges):
    """edges: (parent, child, translation, quaternion xyzw)."""
    transforms = []
    for parent, child, (x, y, z), (qx, qy, qz, qw) in edges:
        transform = SimpleNamespace(
            translation=SimpleNamespace(x=x, y=y, z=z), rotation=SimpleNamespace(x=qx, y=qy, z=qz, w=qw)
        )
        transforms.append(SimpleNamespace(header=make_header(2.5, parent), child_frame_id=child, transform=transform))
    return SimpleNamespace(transforms=transforms)


BUFFERS = [bytes, lambda data: array.array('B', data), lambda data: np.frombuffer(data, np.uint8), memoryview]
BGR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_stamps():
    assert stamp_to_ns(SimpleNamespace(sec=1_700_000_000, nanosec=123_456_789)) == 1_700_000_000_123_456_789
    with pytest.raises(MessageError, match=r'^image: stamp is zero: the driver does not fill header.stamp$'):
        stamp_to_ns(SimpleNamespace(sec=0, nanosec=0), 'image')
    with pytest.raises(MessageError, match='negative'):
        stamp_to_ns(SimpleNamespace(sec=-3, nanosec=0))


# Images


@pytest.mark.parametrize('data_type', BUFFERS)
@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(
    ('encoding', 'channels'),
    [('bgr8', [0, 1, 2]), ('8UC3', [0, 1, 2]), ('rgb8', [2, 1, 0]), ('bgra8', [0, 1, 2, 0]), ('rgba8', [2, 1, 0, 0])],
)
def test_colour_images_in_any_buffer_and_with_padded_rows(encoding, channels, padding, data_type):
    msg = make_image(BGR[:, :, channels], encoding, padding=padding, data_type=data_type)
    np.testing.assert_array_equal(image_to_bgr(msg, 'image'), BGR)


@pytest.mark.parametrize('bigendian', [False, True])
@pytest.mark.parametrize(
    ('encoding', 'channels'), [('bgr16', [0, 1, 2]), ('rgb16', [2, 1, 0]), ('rgba16', [2, 1, 0, 0])]
)
def test_16_bit_colour_keeps_its_high_byte(encoding, channels, bigendian):
    msg = make_image(BGR[:, :, channels].astype(np.uint16) * 257, encoding, bigendian=bigendian, padding=3)
    np.testing.assert_array_equal(image_to_bgr(msg, 'image'), BGR)


@pytest.mark.parametrize('encoding', ['mono8', '8UC1'])
def test_mono_is_grey(encoding):
    image = image_to_bgr(make_image(BGR[:, :, 0], encoding, padding=1), 'image')
    np.testing.assert_array_equal(image, np.repeat(BGR[:, :, :1], 3, axis=2))


@pytest.mark.parametrize('bigendian', [False, True])
def test_mono16_has_its_white_at_65535(bigendian):
    msg = make_image(np.array([[0, 257, 32896, 65535]], dtype=np.uint16), 'mono16', bigendian=bigendian)
    assert image_to_bgr(msg, 'image')[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize('bits', [10, 12, 14])
def test_a_picture_in_the_low_bits_of_16_is_not_black(bits):
    white = 2**bits - 1
    mono = np.array([[0, white // 2 + 1, white]], dtype=np.uint16)
    assert image_to_bgr(make_image(mono, 'mono16'), 'image')[0, :, 0].tolist() == [0, 128, 255]
    tile = np.array([[white // 2 + 1, white], [white, 0]], dtype=np.uint16)
    image = image_to_bgr(make_image(np.tile(tile, (6, 6)), 'bayer_rggb16'), 'image')
    np.testing.assert_array_equal(image, np.broadcast_to([0, 255, 128], (12, 12, 3)))
    assert not image_to_bgr(make_image(np.zeros((2, 2), np.uint16), 'mono16'), 'image').any()


@pytest.mark.parametrize('bigendian', [False, True])
def test_values_without_a_white_are_stretched(bigendian):
    depth = np.array([[500, 600, 1000]], dtype=np.uint16)
    assert image_to_bgr(make_image(depth, '16UC1', bigendian=bigendian), 'image')[0, :, 0].tolist() == [0, 51, 255]
    numbers = np.array([[np.nan, -1.0, 0.0, 1.0, np.inf]], dtype=np.float32)
    grey = image_to_bgr(make_image(numbers, '32FC1', bigendian=bigendian), 'image')
    assert grey[0, :, 2].tolist() == [0, 0, 128, 255, 0]
    largest = np.array([[-1.7e308, 1.7e308]])
    assert image_to_bgr(make_image(largest, '64FC1', bigendian=bigendian), 'image')[0, :, 2].tolist() == [0, 255]
    assert not image_to_bgr(make_image(np.full((2, 2), np.nan, np.float32), '32FC1'), 'image').any()


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_patterns_by_their_first_two_rows(pattern, bits):
    colour = {'b': 40, 'g': 120, 'r': 200}
    tile = np.array([colour[c] for c in pattern]).reshape(2, 2)
    raw = np.tile(tile, (6, 6)).astype(np.uint8 if bits == 8 else np.uint16)
    msg = make_image(raw if bits == 8 else raw * 257, f'bayer_{pattern}{bits}', bigendian=bits == 16, padding=2)
    image = image_to_bgr(msg, 'image')
    np.testing.assert_array_equal(image, np.broadcast_to([40, 120, 200], (12, 12, 3)))


@pytest.mark.parametrize(('encoding', 'order'), [('yuv422', [1, 0]), ('yuv422_yuy2', [0, 1]), ('yuyv', [0, 1])])
def test_yuv422_grey(encoding, order):
    luma = np.full((4, 6), 126, dtype=np.uint8)  # ITU-R BT.601: 16 is black, 235 white
    pixels = np.stack([luma, np.full_like(luma, 128)], axis=2)[:, :, order]
    assert set(image_to_bgr(make_image(pixels, encoding), 'image').ravel()) == {128}


def test_nv21_has_its_colour_after_the_picture():
    msg = make_image(np.vstack([np.full((4, 6), 126, np.uint8), np.full((2, 6), 128, np.uint8)]), 'nv21', padding=2)
    msg.height = 4
    image = image_to_bgr(msg, 'image')
    assert image.shape == (4, 6, 3)
    assert set(image.ravel()) == {128}


def test_plain_bgr_is_not_copied():
    msg = make_image(BGR, 'bgr8', data_type=lambda data: np.frombuffer(data, np.uint8))
    assert np.shares_memory(image_to_bgr(msg, 'image'), msg.data)


def test_last_row_may_lack_its_padding():
    msg = make_image(BGR, 'bgr8', padding=7)
    msg.data = msg.data[:-7]
    np.testing.assert_array_equal(image_to_bgr(msg, 'image'), BGR)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'encoding': 'bgr12'}, 'camera: unknown encoding "bgr12"; known are bgr8'),
        ({'step': 0}, 'step is 0, but 8 pixels of bgr8 need 24 bytes a row'),
        ({'data': BGR.tobytes()[:-1]}, '8x6 bgr8 with step 24 needs 144 bytes, got 143'),
        ({'data': b''}, 'needs 144 bytes, got 0'),
        ({'width': 0}, r'empty \(0x6\)'),
        ({'height': 2**32 - 1, 'step': 2**32 - 1}, 'needs'),
        ({'encoding': 'yuv422', 'width': 7}, 'even width, got 7'),
        ({'data': 'text'}, 'no contiguous buffer'),
    ],
)
def test_refuses_images_that_cannot_be_read(changes, message):
    msg = make_image(BGR, 'bgr8')
    vars(msg).update(changes)
    with pytest.raises(MessageError, match=message):
        image_to_bgr(msg, 'camera')


@given(st.data())
def test_round_trip_of_random_image_layouts(data):
    encoding = data.draw(st.sampled_from(['bgr8', 'rgb8', 'mono8', 'bgr16', 'rgba16', 'mono16']))
    channels = {'m': 1, 'b': 3, 'r': 3}[encoding[0]] + ('a' in encoding)
    shape = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)), channels)
    seed = data.draw(st.integers(0, 2**32 - 1))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    raw = pixels.astype(np.uint16) * 257 if '16' in encoding else pixels
    msg = make_image(raw, encoding, bigendian=data.draw(st.booleans()), padding=data.draw(st.integers(0, 9)))
    expected = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels[:, :, :3]
    if encoding.startswith('rgb'):
        expected = expected[:, :, ::-1]
    np.testing.assert_array_equal(image_to_bgr(msg, 'image'), expected)


@pytest.mark.parametrize('message_format', ['png', 'bgr8; png compressed bgr8', 'rgb8; png compressed bgr8'])
def test_png_is_exact(message_format):
    msg = make_compressed(cv2.imencode('.png', BGR)[1].tobytes(), message_format)
    np.testing.assert_array_equal(image_to_bgr(msg, 'image'), BGR)


def test_jpeg_of_either_colour_order():
    even = np.full((16, 16, 3), (30, 90, 200), dtype=np.uint8)
    data = cv2.imencode('.jpg', even, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    for message_format in ('jpeg', 'rgb8; jpeg compressed bgr8', ''):
        np.testing.assert_allclose(
            image_to_bgr(make_compressed(data, message_format), 'image')[8, 8], [30, 90, 200], atol=2
        )
    swapped = image_to_bgr(make_compressed(data, 'rgb8; jpeg compressed rgb8'), 'image')
    np.testing.assert_allclose(swapped[8, 8], [200, 90, 30], atol=2)


@pytest.mark.parametrize(
    ('extension', 'options'),
    [('.png', []), ('.jpg', []), ('.jpg', [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), ('.webp', [])],
)
def test_the_size_of_a_picture_is_known_before_it_is_decoded(extension, options):
    data = cv2.imencode(extension, np.zeros((300, 500, 3), np.uint8), options)[1].tobytes()
    assert announced_size(make_compressed(data, 'x')) == (None if extension == '.webp' else (500, 300))
    for length in range(40):
        assert announced_size(make_compressed(data[:length], 'x')) in (None, (500, 300))


def test_the_size_of_a_jpeg_is_found_behind_any_tables_and_fill_bytes():
    data = cv2.imencode('.jpg', np.zeros((30, 50, 3), np.uint8))[1].tobytes()
    tables = (b'\xff\xed\xff\xff' + bytes(65533)) * 4  # profiles and previews that some cameras put before the header
    filled = make_compressed(data[:2] + tables + b'\xff\xff' + data[2:], 'jpeg')
    assert announced_size(filled) == (50, 30)
    assert image_to_bgr(filled, 'image').shape == (30, 50, 3)
    endless = make_compressed(data[:2] + b'\xff\xed\x00\x02' * 10**6 + data[2:], 'jpeg')
    assert announced_size(endless) is None


@pytest.mark.parametrize(
    ('extension', 'damage', 'message'),
    [
        ('.png', {33: 0xF0}, 'ends early'),  # the length of the first IDAT: 4 GB are set aside for it
        ('.png', {38: 0xE0, -12: 0x4C}, 'ends early'),  # no IDAT, and 1 GB for an IEND
        ('.jpg', {3: 0xFF}, 'does not say its size'),  # the type of the first segment
    ],
)
def test_a_damaged_header_costs_no_more_than_its_message(extension, damage, message):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = bytearray(cv2.imencode(extension, picture)[1].tobytes())
    for at, value in damage.items():
        data[at] = value
    started_s = time.thread_time()
    with pytest.raises(MessageError, match=message):
        image_to_bgr(make_compressed(bytes(data), extension[1:]), 'image')
    assert time.thread_time() - started_s < 0.1


def test_compressed_bayer_mono16_depth_and_alpha():
    raw = np.tile(np.array([[200, 120], [120, 40]], dtype=np.uint8), (4, 4))
    msg = make_compressed(cv2.imencode('.png', raw)[1].tobytes(), 'bayer_rggb8; png compressed bayer_rggb8')
    assert image_to_bgr(msg, 'image')[4, 4].tolist() == [40, 120, 200]
    deep = np.array([[0, 32896, 65535]], dtype=np.uint16)
    msg = make_compressed(cv2.imencode('.png', deep)[1].tobytes(), 'mono16; png compressed mono16')
    assert image_to_bgr(msg, 'image')[0, :, 1].tolist() == [0, 128, 255]
    msg = make_compressed(cv2.imencode('.png', deep // 4)[1].tobytes(), '16UC1; png compressed 16UC1')
    assert image_to_bgr(msg, 'image')[0, :, 1].tolist() == [0, 128, 255]
    transparent = np.dstack([BGR, BGR[:, :, 0]])
    msg = make_compressed(cv2.imencode('.png', transparent)[1].tobytes(), 'bgra8; png compressed bgra8')
    np.testing.assert_array_equal(image_to_bgr(msg, 'image'), BGR)


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_a_cut_or_damaged_payload_is_refused(extension):
    data = cv2.imencode(extension, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[1].tobytes()
    for part in (0.0, 0.01, 0.3, 0.9, 0.995):
        refusals = r'ends early|cannot be decoded|does not say its size|neither a JPEG nor a PNG'
        with pytest.raises(MessageError, match=refusals):
            image_to_bgr(make_compressed(data[: int(part * len(data))], extension[1:]), 'image')
    with pytest.raises(MessageError, match='image: 100 bytes of format "jpeg" are neither a JPEG nor a PNG'):
        image_to_bgr(make_compressed(b'\x00' * 100, 'jpeg'), 'image')
    with pytest.raises(MessageError, match='is a depth image'):
        image_to_bgr(make_compressed(data, '16UC1; compressedDepth png'), 'image')


# Clouds

XYZ = {'x': (7, [1.0, -2.0, 0.5]), 'y': (7, [0.0, -0.0, 4.0]), 'z': (7, [3.0, 1.0, -1.5])}
POINTS = np.array([[1.0, 0.0, 3.0], [-2.0, 0.0, 1.0], [0.5, 4.0, -1.5]])


@pytest.mark.parametrize('data_type', BUFFERS)
@pytest.mark.parametrize('bigendian', [False, True])
def test_cloud_with_padding_between_points_and_rows(bigendian, data_type):
    msg = make_cloud(
        {**XYZ, 'ring': (4, [1, 2, 3]), 'intensity': (7, [10.0, 20.0, 30.0])},
        offsets={'x': 4, 'y': 12, 'z': 20, 'ring': 9, 'intensity': 29},
        point_step=37,
        height=3,
        row_padding=11,
        bigendian=bigendian,
        data_type=data_type,
    )
    cloud = cloud_from_message(msg, 'points')
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_array_equal(cloud.intensity, [10.0, 20.0, 30.0])


@pytest.mark.parametrize('datatype', TYPES)
def test_every_datatype(datatype):
    unsigned = TYPES[datatype][0] == 'u'
    values = [1, 2, 3] if unsigned else [-1, 2, -3]
    msg = make_cloud(
        {'x': (datatype, values), 'y': (8, [0.0, 0.1, 0.2]), 'z': (7, [1, 1, 1]), 'i': (datatype, [0, 5, 9])}
    )
    cloud = cloud_from_message(msg, 'points')
    assert cloud.points[:, 0].tolist() == values
    assert cloud.points[:, 1].tolist() == [0.0, 0.1, 0.2]
    assert cloud.intensity.tolist() == [0.0, 5.0, 9.0]


def test_drops_what_is_no_return():
    nan, inf = np.nan, np.inf
    columns = {
        'x': (7, [1.0, nan, 0.0, inf, -0.0, 0.0]),
        'y': (7, [1.0, 1.0, -0.0, 1.0, 2.0, 0.0]),
        'z': (7, [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
        'reflectivity': (8, [1.0, 2.0, 3.0, 4.0, 1e300, nan]),
    }
    cloud = cloud_from_message(make_cloud(columns, height=2), 'points')
    assert cloud.points.tolist() == [[1.0, 1.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_array_equal(cloud.intensity, [1.0, nan, nan])


@pytest.mark.parametrize(
    ('change', 'viewed'),
    [
        ({}, True),
        ({'height': 4}, True),
        ({'offsets': {'x': 4, 'y': 8, 'z': 12, 'intensity': 0}}, True),
        ({'height': 4, 'row_padding': 4}, False),
        ({'offsets': {'x': 0, 'y': 8, 'z': 4, 'intensity': 12}}, False),
        ({'offsets': {'x': 1, 'y': 5, 'z': 9, 'intensity': 13}}, False),
        ({'point_step': 48}, True),
        ({'data_type': lambda data: memoryview(b'.' + data)[1:]}, False),
        ({'point_step': 17}, False),
        ({'bigendian': True}, False),
        ({'bad': np.nan}, False),
        ({'bad': 0.0}, False),
        ({'bad': [0.0, -0.0, 1.0]}, False),
        ({'bad': [1.0, 0.0, 0.0]}, True),
        ({'bad': [1.0, 2.0, -np.inf]}, False),
    ],
)
def test_a_plain_cloud_is_not_copied_and_others_read_the_same(change, viewed):
    points = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    points[2, :3] = change.pop('bad', points[2, :3])
    msg = make_cloud({name: (7, points[:, axis]) for axis, name in enumerate(('x', 'y', 'z', 'intensity'))}, **change)
    cloud = cloud_from_message(msg, 'points')
    for array_ in (cloud.points, cloud.intensity):
        assert np.shares_memory(array_, np.frombuffer(msg.data, np.uint8)) == viewed
    good = np.isfinite(points).all(axis=1) & points[:, :3].any(axis=1)
    np.testing.assert_array_equal(cloud.points, points[good, :3])
    np.testing.assert_array_equal(cloud.intensity, points[good, 3])


@pytest.mark.parametrize('good', [True, False])
@pytest.mark.parametrize(
    'data_type', [bytes, lambda data: array.array('B', data), lambda data: memoryview(b'.' + data)[1:]]
)
def test_no_cloud_waits_for_a_compiler(data_type, good):
    returns.prepare()
    loops = returns.are_all_sound, returns.select_returns
    ready = [len(loop.signatures) for loop in loops]
    msg = make_cloud({**XYZ, 'z': (7, [1.0, 2.0, 3.0 if good else np.nan])}, data_type=data_type)
    assert len(cloud_from_message(msg, 'points')) == (3 if good else 2)
    assert [len(loop.signatures) for loop in loops] == ready


def test_empty_cloud_and_cloud_without_intensity():
    empty = cloud_from_message(make_cloud({name: (7, []) for name in 'xyz'}), 'points')
    assert empty.points.shape == (0, 3)
    assert cloud_from_message(make_cloud(XYZ), 'points').intensity is None
    histogram = make_cloud({**XYZ, 'intensity': (7, [1.0, 2.0, 3.0])}, point_step=40)
    histogram.fields[3].count = 5
    assert cloud_from_message(histogram, 'points').intensity is None


def test_single_row_without_row_step_and_count_zero():
    msg = make_cloud(XYZ)
    msg.row_step = 0
    msg.fields[0].count = 0
    np.testing.assert_array_equal(cloud_from_message(msg, 'points').points, POINTS)


def change_field(index, **changes):
    return lambda msg: vars(msg.fields[index]).update(changes)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (change_field(0, name='X'), r'lidar: no field "x" among \[\'X\', \'y\', \'z\'\]; set points_topic'),
        (change_field(1, name='x'), 'field "x" is there twice'),
        (change_field(2, datatype=9), 'field "z" has the unknown datatype 9'),
        (change_field(2, count=3), 'field "z" has 3 values a point'),
        (change_field(2, offset=9), 'field "z" at offset 9 lies outside the point_step of 12'),
        (change_field(2, offset=2**32 - 1), 'lies outside'),
        (lambda msg: setattr(msg, 'point_step', 4), 'lies outside the point_step of 4'),
        (lambda msg: setattr(msg, 'data', msg.data[:-1]), '1 rows of 3 points of 12 bytes need 36 bytes, got 35'),
        (lambda msg: vars(msg).update(height=3, width=1, row_step=8), 'row_step is 8, but 1 points of 12 bytes'),
        (lambda msg: vars(msg).update(height=2**32 - 1, row_step=36), 'got 36'),
        (lambda msg: setattr(msg, 'fields', []), 'no field "x"'),
    ],
)
def test_refuses_clouds_that_cannot_be_read(change, message):
    msg = make_cloud(XYZ)
    change(msg)
    for convert in (cloud_from_message, check_cloud):
        with pytest.raises(MessageError, match=message):
            convert(msg, 'lidar')


@given(st.data())
def test_round_trip_of_random_cloud_layouts(data):
    names = data.draw(st.permutations(['x', 'y', 'z', 'intensity', 'time']))
    types = {name: data.draw(st.sampled_from([7, 8])) for name in names}
    offsets, end = {}, 0
    for name in names:
        offsets[name] = end + data.draw(st.integers(0, 5))
        end = offsets[name] + np.dtype(TYPES[types[name]]).itemsize
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 5))
    seed = data.draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).normal(size=(5, height * width)).astype(np.float32)
    msg = make_cloud(
        {name: (types[name], column) for name, column in zip(names, values, strict=True)},
        offsets=offsets,
        point_step=end + data.draw(st.integers(0, 5)),
        height=height,
        row_padding=data.draw(st.integers(0, 7)),
        bigendian=data.draw(st.booleans()),
    )
    cloud = cloud_from_message(msg, 'points')
    by_name = dict(zip(names, values, strict=True))
    np.testing.assert_array_equal(cloud.points, np.stack([by_name[name] for name in 'xyz'], axis=1))
    np.testing.assert_array_equal(cloud.intensity, by_name['intensity'])


# Cameras


def test_camera_from_k_and_d():
    camera = camera_from_info(make_camera_info(), 'camera_info')
    assert (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy) == (640, 480, 500, 510, 320, 240)
    assert camera.model == 'plumb_bob'
    assert camera.distortion == (-0.1, 0.01, 0.001, -0.002, 0.0)


@pytest.mark.parametrize(
    ('model', 'd', 'expected'),
    [
        ('', [], ()),
        ('plumb_bob', [], ()),
        ('plumb_bob', [0.0] * 14, ()),
        ('plumb_bob', [0.1, 0.2, 0.3, 0.4], (0.1, 0.2, 0.3, 0.4)),
        ('rational_polynomial', [0.1] * 8 + [0.0] * 6, (0.1,) * 8),
        ('equidistant', [0.1] * 4, (0.1,) * 4),
        ('fisheye', [0.1] * 4 + [0.0], (0.1,) * 4),
    ],
)
def test_coefficients_of_every_model(model, d, expected):
    assert camera_from_info(make_camera_info(distortion_model=model, d=d), 'camera_info').distortion == expected


@pytest.mark.parametrize(
    ('topic', 'rectified'),
    [
        ('/camera/image_rect', True),
        ('/camera/image_rect_color/compressed', True),
        ('left/image_rectified', True),
        ('/zed/rgb/rect/image', True),
        ('image', False),
        ('/camera_rect/image_raw', False),
        ('/direct/image', False),
        ('/camera/image_rectangle', False),
    ],
)
def test_rectified_pictures_are_known_by_their_topic(topic, rectified):
    assert is_rectified(topic) is rectified


def test_a_rectified_picture_is_described_by_p():
    p = np.array([450.0, 0, 310, -45.0, 0, 455, 235, 0, 0, 0, 1, 0])
    camera = camera_from_info(make_camera_info(p=p, distortion_model='mei'), 'info', rectified=True)
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.distortion) == (450, 455, 310, 235, ())
    # The driver's K is that of the picture when D is zero.
    assert camera_from_info(make_camera_info(p=p, d=[0.0] * 5), 'info', rectified=True).fx == 500
    with pytest.raises(MessageError, match='info: P is empty, but D is not zero and the picture is rectified'):
        camera_from_info(make_camera_info(p=np.zeros(12)), 'info', rectified=True)


def test_region_of_interest_and_binning_keep_the_rays():
    full = camera_from_info(make_camera_info(), 'camera_info')
    roi = SimpleNamespace(x_offset=100, y_offset=60, width=320, height=240, do_rectify=False)
    part = camera_from_info(make_camera_info(roi=roi, binning_x=2, binning_y=4), 'camera_info')
    assert (part.width, part.height) == (160, 60)
    # The centre of a binned pixel is the centre of the 2 x 4 pixels that it sums.
    np.testing.assert_allclose(
        part.rays([[0.0, 0.0], [10.0, 5.0]]), full.rays([[100.5, 61.5], [120.5, 81.5]]), atol=1e-12
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'k': np.zeros(9)}, 'info: K is empty: the camera is not calibrated'),
        ({'k': []}, 'K is empty'),
        ({'k': np.array([-5.0, 0, 320, 0, 510, 240, 0, 0, 1])}, 'info: focal lengths must be positive'),
        ({'k': np.array([5.0, 0, np.nan, 0, 510, 240, 0, 0, 1])}, 'must be finite'),
        ({'width': 0}, 'positive image size, got 0x480'),
        ({'distortion_model': 'mei'}, 'unknown distortion_model "mei"; known are plumb_bob'),
        ({'d': [0.1, 0.2]}, 'distortion_model "plumb_bob" does not go with 2 coefficients'),
        ({'distortion_model': ''}, 'distortion_model "" does not go with 5 coefficients'),
        ({'d': [0.1] * 14}, 'does not go with 14'),
        ({'d': [np.nan] * 5}, 'must be finite'),
        ({'roi': SimpleNamespace(x_offset=600, y_offset=0, width=100, height=10)}, 'roi reaches beyond'),
        ({'binning_x': 1000}, 'positive image size, got 0x480'),
    ],
)
def test_refuses_cameras_that_cannot_be(changes, message):
    with pytest.raises(MessageError, match=message):
        camera_from_info(make_camera_info(**changes), 'info')


# Transforms


def test_transforms():
    half = np.sqrt(0.5)
    (transform,) = transforms_from_message(
        make_transforms(('/base', 'camera', (1.0, 2.0, 3.0), (0.0, 0.0, half, half))), '/tf'
    )
    assert (transform.parent, transform.child, transform.stamp_ns) == ('base', 'camera', 2_500_000_000)
    assert transform.T_parent_child.apply([1.0, 0.0, 0.0]) == pytest.approx([1.0, 3.0, 3.0])


@pytest.mark.parametrize(
    ('edge', 'message'),
    [
        (('base', 'camera', (0, 0, 0), (0, 0, 0, 0)), '/tf: base -> camera: a quaternion must be finite and not zero'),
        (('base', 'camera', (0, np.nan, 0), (0, 0, 0, 1)), 'base -> camera: SE3 must be finite'),
        (('base', 'camera', (0, 0, 0), (0, np.inf, 0, 1)), 'quaternion'),
        (('base', '/base', (0, 0, 0), (0, 0, 0, 1)), 'from "base" to "base" needs two frames'),
        (('', 'camera', (0, 0, 0), (0, 0, 0, 1)), 'needs two frames'),
    ],
)
def test_refuses_transforms_that_cannot_be(edge, message):
    with pytest.raises(MessageError, match=message):
        transforms_from_message(make_transforms(edge), '/tf')


# Anything at all


@contextmanager
def only_our_errors(topic):
    """An error of ours that names the topic may come out of the block; anything else fails the test."""
    message = topic
    try:
        yield
    except CmmlError as error:
        message = str(error)
    assert topic in message


UINT32 = st.one_of(st.integers(0, 40), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1]))
REAL = st.floats(width=64)


def mutate(data, msg):
    """Change a few attributes of the message, each within its ROS type."""
    encodings = [
        'bgr8',
        'rgb16',
        'mono16',
        '32FC1',
        '64FC1',
        '16SC1',
        'nv21',
        'yuv422',
        'bayer_rggb8',
        'bayer_gbrg16',
        'x',
    ]
    strategies = {
        'height': UINT32,
        'width': UINT32,
        'step': UINT32,
        'point_step': UINT32,
        'row_step': UINT32,
        'is_bigendian': st.integers(0, 255),
        'encoding': st.sampled_from(encodings),
        'format': st.sampled_from(['', 'png', ';', 'bayer_rggb8; png', '16UC1; jpeg compressed rgb8', '32FC1;']),
        'data': st.binary(max_size=300),
        'k': st.lists(REAL, min_size=9, max_size=9),
        'd': st.lists(REAL, max_size=15),
        'distortion_model': st.sampled_from(['', 'plumb_bob', 'rational_polynomial', 'equidistant', 'x']),
        'binning_x': UINT32,
        'binning_y': UINT32,
    }
    msg = copy.deepcopy(msg)
    names = [name for name in strategies if hasattr(msg, name)]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4)):
        setattr(msg, name, data.draw(strategies[name]))
    for field in getattr(msg, 'fields', []):
        if data.draw(st.booleans()):
            field.name = data.draw(st.sampled_from(['x', 'y', 'z', 'intensity', 'i', '']))
            field.offset, field.count = data.draw(UINT32), data.draw(UINT32)
            field.datatype = data.draw(st.integers(0, 255))
    if hasattr(msg, 'roi') and data.draw(st.booleans()):
        msg.roi = SimpleNamespace(**{name: data.draw(UINT32) for name in ('x_offset', 'y_offset', 'width', 'height')})
    return msg


@pytest.mark.filterwarnings('ignore:overflow encountered')
@pytest.mark.parametrize(
    ('convert', 'msg'),
    [
        (image_to_bgr, make_image(BGR, 'bgr8')),
        (image_to_bgr, make_compressed(cv2.imencode('.png', BGR)[1].tobytes(), 'png')),
        (cloud_from_message, make_cloud({**XYZ, 'intensity': (7, [1.0, 2.0, 3.0])}, height=3)),
        (camera_from_info, make_camera_info()),
    ],
    ids=['image', 'compressed', 'cloud', 'camera_info'],
)
@given(data=st.data())
def test_a_mutated_message_raises_nothing_but_our_own_errors(convert, msg, data):
    mutated = mutate(data, msg)
    with only_our_errors('topic'):
        convert(mutated, 'topic')


@given(
    st.lists(REAL, min_size=7, max_size=7), st.sampled_from(['', '/', 'base']), st.sampled_from(['', 'base', 'camera'])
)
def test_mutated_transforms_raise_nothing_but_our_own_errors(numbers, parent, child):
    with only_our_errors('/tf'):
        (taken,) = transforms_from_message(make_transforms((parent, child, numbers[:3], numbers[3:])), '/tf')
        assert np.isfinite(taken.T_parent_child.translation).all()
        assert np.isfinite(taken.T_parent_child.rotation).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(['.jpg', '.png']), st.integers(1, 20))
def test_flipped_bytes_of_a_payload_raise_nothing_but_our_own_errors(seed, extension, flips):
    rng = np.random.default_rng(seed)
    payload = cv2.imencode(extension, BGR)[1].ravel()
    payload[rng.integers(0, len(payload), flips)] = rng.integers(0, 256, flips)
    with only_our_errors('topic'):
        assert image_to_bgr(make_compressed(payload.tobytes(), 'jpeg'), 'topic').dtype == np.uint8


# The real message classes


def test_rosbags_messages_convert():
    typesys = pytest.importorskip('rosbags.typesys')
    types = typesys.get_typestore(typesys.Stores.ROS2_JAZZY).types
    header = types['std_msgs/msg/Header'](types['builtin_interfaces/msg/Time'](1, 5), 'camera')
    image = types['sensor_msgs/msg/Image'](header, 6, 8, 'bgr8', 0, 24, BGR.ravel())
    np.testing.assert_array_equal(image_to_bgr(image, 'image'), BGR)
    ours = make_cloud(XYZ)
    fields = [types['sensor_msgs/msg/PointField'](**vars(field)) for field in ours.fields]
    data = np.frombuffer(ours.data, np.uint8)
    cloud = types['sensor_msgs/msg/PointCloud2'](header, 1, 3, fields, False, 12, 36, data, True)
    np.testing.assert_array_equal(cloud_from_message(cloud, 'points').points, POINTS)


def test_rclpy_and_rosbags_messages_give_the_same_arrays():
    serialization = pytest.importorskip('rclpy.serialization')
    ros = pytest.importorskip('sensor_msgs.msg')
    typesys = pytest.importorskip('rosbags.typesys')
    store = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
    image = ros.Image(height=6, width=8, encoding='rgb8', step=24)
    image.data = array.array('B', BGR.tobytes())
    ours = make_cloud({**XYZ, 'intensity': (7, [1.0, 2.0, 3.0])})
    cloud = ros.PointCloud2(height=1, width=3, point_step=ours.point_step, row_step=ours.row_step)
    cloud.fields = [ros.PointField(**vars(field)) for field in ours.fields]
    cloud.data = array.array('B', ours.data)
    info = ros.CameraInfo(width=640, height=480, distortion_model='plumb_bob', d=[-0.1, 0.01, 0.001, -0.002, 0.0])
    info.k = make_camera_info().k
    for msg in (image, cloud, info):
        msg.header.stamp.sec, msg.header.frame_id = 7, 'camera'

    def reread(msg):
        return store.deserialize_cdr(serialization.serialize_message(msg), f'sensor_msgs/msg/{type(msg).__name__}')

    assert stamp_to_ns(image.header.stamp) == stamp_to_ns(reread(image).header.stamp) == 7_000_000_000
    np.testing.assert_array_equal(image_to_bgr(image, 'image'), BGR[:, :, ::-1])
    np.testing.assert_array_equal(image_to_bgr(reread(image), 'image'), BGR[:, :, ::-1])
    for msg in (cloud, reread(cloud)):
        np.testing.assert_array_equal(cloud_from_message(msg, 'points').points, POINTS)
        np.testing.assert_array_equal(cloud_from_message(msg, 'points').intensity, [1.0, 2.0, 3.0])
    assert camera_from_info(info, 'info') == camera_from_info(reread(info), 'info')


@pytest.mark.parametrize('encoding', ['rgb8', 'bgra8', 'mono8', 'mono16', 'bayer_grbg8'])
def test_agrees_with_cv_bridge(encoding):
    bridge = pytest.importorskip('cv_bridge').CvBridge()
    ros = pytest.importorskip('sensor_msgs.msg')
    channels = {'rgb8': 3, 'bgra8': 4}.get(encoding, 1)
    dtype = np.uint16 if encoding == 'mono16' else np.uint8
    pixels = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (8, 8, channels), dtype=dtype)
    ours = make_image(pixels, encoding)
    msg = ros.Image(height=8, width=8, encoding=encoding, step=ours.step, data=array.array('B', ours.data))
    np.testing.assert_array_equal(image_to_bgr(msg, 'image'), bridge.imgmsg_to_cv2(msg, 'bgr8'))


def test_agrees_with_sensor_msgs_py():
    point_cloud2 = pytest.importorskip('sensor_msgs_py.point_cloud2')
    ros = pytest.importorskip('std_msgs.msg')
    points = np.random.default_rng(4).normal(size=(50, 3)).astype(np.float32)
    msg = point_cloud2.create_cloud_xyz32(ros.Header(frame_id='lidar'), points)
    np.testing.assert_array_equal(cloud_from_message(msg, 'points').points, points)


# In a process of its own: the limit holds where this package is imported before OpenCV, as in the nodes and `cmml`.
GIGAPIXEL = """
import time, zlib
from types import SimpleNamespace
from cmml_ros.errors import MessageError
from cmml_ros.stream.conversions import image_to_bgr
import cv2, numpy
data = bytearray(cv2.imencode('.png', numpy.zeros((8, 8, 3), numpy.uint8))[1].tobytes())
data[16:24] = (32000).to_bytes(4, 'big') * 2
data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
started_s = time.thread_time()
try:
    image_to_bgr(SimpleNamespace(format='png', data=bytes(data)), 'image')
except MessageError:
    print(time.thread_time() - started_s)
"""


def test_a_header_that_announces_a_gigapixel_is_refused_at_once():
    done = subprocess.run([sys.executable, '-c', GIGAPIXEL], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2
