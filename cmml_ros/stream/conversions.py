"""ROS messages to arrays, by attribute names only: rclpy and rosbags messages give the same.

Arrays are views of the message's own buffer wherever the layout allows; treat them as read-only.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import MessageError, ShapeError
from cmml_ros.geometry.camera import COEFFICIENT_COUNTS, Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.stream.returns import are_all_sound, select_returns
from cmml_ros.stream.transform_buffer import StampedTransform

# sensor_msgs/PointField datatype, by byte order
_POINT_FIELD_TYPES = {
    order: {
        number: np.dtype(order + name)
        for number, name in enumerate(('i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'f4', 'f8'), 1)
    }
    for order in '<>'
}
_FLOAT32 = np.dtype('<f4')
_INTENSITY_FIELDS = ('intensity', 'reflectivity', 'i')
_READ_FIELDS = ('x', 'y', 'z', *_INTENSITY_FIELDS)

_MODEL_NAMES = {
    '': 'plumb_bob',
    'plumb_bob': 'plumb_bob',
    'rational_polynomial': 'rational_polynomial',
    'equidistant': 'equidistant',
    'fisheye': 'equidistant',
}

_RECTIFIED = re.compile(r'(^|_)rect(ified)?(_|$)')

# The frame header of a JPEG comes after its tables, profiles and previews; of the markers C0 to CF these are none.
_MAX_SEGMENTS = 1000
_NO_FRAME_HEADER = (0xC4, 0xC8, 0xCC)


class _Layout(NamedTuple):
    """How one encoding lies in memory and which OpenCV conversion makes BGR of it."""

    dtype: str
    channels: int
    to_bgr: int | None
    stretched: bool = False  # values have no defined white: the smallest becomes black, the largest white


class _CloudLayout(NamedTuple):
    """Where the fields of a cloud that is as long as it says lie: their dtype and their offset in a point.

    intensity: the field that is read as such.
    """

    data: NDArray[np.uint8]
    height: int
    width: int
    row_step: int
    point_step: int
    fields: dict[str, tuple[np.dtype[Any], int]]
    intensity: str | None


# OpenCV names a Bayer pattern by its second row's second and third pixel, ROS by its first two rows.
_BAYER = {
    'rggb': cv2.COLOR_BayerBG2BGR,
    'bggr': cv2.COLOR_BayerRG2BGR,
    'gbrg': cv2.COLOR_BayerGR2BGR,
    'grbg': cv2.COLOR_BayerGB2BGR,
}
_LAYOUTS = {
    'bgr8': _Layout('u1', 3, None),
    '8UC3': _Layout('u1', 3, None),
    'rgb8': _Layout('u1', 3, cv2.COLOR_RGB2BGR),
    'bgra8': _Layout('u1', 4, cv2.COLOR_BGRA2BGR),
    '8UC4': _Layout('u1', 4, cv2.COLOR_BGRA2BGR),
    'rgba8': _Layout('u1', 4, cv2.COLOR_RGBA2BGR),
    'mono8': _Layout('u1', 1, cv2.COLOR_GRAY2BGR),
    '8UC1': _Layout('u1', 1, cv2.COLOR_GRAY2BGR),
    'bgr16': _Layout('u2', 3, None),
    'rgb16': _Layout('u2', 3, cv2.COLOR_RGB2BGR),
    'bgra16': _Layout('u2', 4, cv2.COLOR_BGRA2BGR),
    'rgba16': _Layout('u2', 4, cv2.COLOR_RGBA2BGR),
    'mono16': _Layout('u2', 1, cv2.COLOR_GRAY2BGR),
    '16UC1': _Layout('u2', 1, cv2.COLOR_GRAY2BGR, stretched=True),
    '16SC1': _Layout('i2', 1, cv2.COLOR_GRAY2BGR, stretched=True),
    '32FC1': _Layout('f4', 1, cv2.COLOR_GRAY2BGR, stretched=True),
    '64FC1': _Layout('f8', 1, cv2.COLOR_GRAY2BGR, stretched=True),
    'yuv422': _Layout('u1', 2, cv2.COLOR_YUV2BGR_UYVY),
    'uyvy': _Layout('u1', 2, cv2.COLOR_YUV2BGR_UYVY),
    'yuv422_yuy2': _Layout('u1', 2, cv2.COLOR_YUV2BGR_YUY2),
    'yuyv': _Layout('u1', 2, cv2.COLOR_YUV2BGR_YUY2),
    'nv21': _Layout('u1', 1, cv2.COLOR_YUV2BGR_NV21),
    **{f'bayer_{pattern}8': _Layout('u1', 1, code) for pattern, code in _BAYER.items()},
    **{f'bayer_{pattern}16': _Layout('u2', 1, code) for pattern, code in _BAYER.items()},
}


def stamp_to_ns(stamp: Any, topic: str = 'header') -> int:
    """Nanoseconds of a builtin_interfaces/Time. Raises MessageError for a zero or negative stamp."""
    stamp_ns = _time_to_ns(stamp)
    if stamp_ns == 0:
        raise MessageError(f'{topic}: stamp is zero: the driver does not fill header.stamp')
    if stamp_ns < 0:
        raise MessageError(f'{topic}: stamp is negative ({stamp_ns * 1e-9:.3f} s); check the clock of the driver')
    return stamp_ns


def frame_id(header: Any) -> str:
    """header.frame_id without the leading slash of older drivers."""
    return str(header.frame_id).lstrip('/')


def image_to_bgr(msg: Any, topic: str) -> NDArray[np.uint8]:
    """The picture of an Image or CompressedImage, (height, width, 3) uint8, BGR.

    16-bit colour, mono and Bayer: 65535 becomes 255 (as cv_bridge does), and where no value needs more than 10, 12 or
    14 bits the largest that fits in these. 16UC1, 16SC1, 32FC1 and 64FC1 do not say
    what white is: the smallest finite value becomes 0, the largest 255, and what is not finite 0.
    Raises MessageError that names the topic for an unknown encoding, for data that are too short and for a payload
    that cannot be decoded.
    """
    try:
        if not hasattr(msg, 'encoding'):
            return _decode(msg, topic)
        layout = _layout_of(msg, topic)
        return _convert(_image_pixels(msg, layout, topic), layout)
    except cv2.error as error:
        raise MessageError(f'{topic}: OpenCV cannot convert the image: {error.err}') from None


def announced_size(msg: Any) -> tuple[int, int] | None:
    """Width and height of an Image or CompressedImage as its header says, None where no header of PNG or JPEG is found.

    A damaged header may announce a picture that takes seconds and gigabytes to decode.
    """
    if hasattr(msg, 'encoding'):
        return int(msg.width), int(msg.height)
    data = memoryview(msg.data)
    if bytes(data[:4]) == b'\x89PNG' and len(data) >= 24:
        return int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big')
    if bytes(data[:2]) != b'\xff\xd8':
        return None
    at = 2  # segments: marker, length without the marker, content
    for _ in range(_MAX_SEGMENTS):
        if at + 9 > len(data) or data[at] != 0xFF:
            return None
        if data[at + 1] == 0xFF:
            at += 1  # a fill byte
            continue
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in _NO_FRAME_HEADER:
            return int.from_bytes(data[at + 7 : at + 9], 'big'), int.from_bytes(data[at + 5 : at + 7], 'big')
        at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return None


def check_image(msg: Any, topic: str) -> None:
    """Raises MessageError, without touching the pixels, for an Image whose layout `image_to_bgr` refuses."""
    if hasattr(msg, 'encoding'):
        _image_pixels(msg, _layout_of(msg, topic), topic)


def is_rectified(image_topic: str) -> bool:
    """Whether a topic is named as those of pictures without lens distortion are: image_rect_color, rect/image."""
    names = image_topic.removesuffix('/compressed').split('/')
    name = names[-2] if names[-1] == 'image' and len(names) > 1 else names[-1]
    return _RECTIFIED.search(name) is not None


def camera_from_info(msg: Any, topic: str, rectified: bool = False) -> Camera:
    """The camera of a CameraInfo with the region of interest and binning applied: K and D, those of the raw image.

    The pipeline removes the lens distortion itself. rectified: the picture has none any more; then, by the convention
    of image_proc, P describes it where D is not zero, and K where it is.
    Raises MessageError for an uncalibrated camera, an unknown model or coefficients that do not fit it.
    """
    coefficients = tuple(float(value) for value in msg.d)
    distortion: tuple[float, ...] = ()
    if rectified and any(coefficients):
        projection = np.asarray(msg.p, dtype=np.float64)
        if projection.size != 12 or not projection.any():
            raise MessageError(
                f'{topic}: P is empty, but D is not zero and the picture is rectified; inspect the raw picture, or '
                'publish its camera_info with P'
            )
        intrinsics = projection.reshape(3, 4)[:, :3]
        model = 'plumb_bob'
    else:
        intrinsics = np.asarray(msg.k, dtype=np.float64)
        if intrinsics.size != 9 or not intrinsics.any():
            raise MessageError(f'{topic}: K is empty: the camera is not calibrated; run camera_calibration')
        model, distortion = _lens_of(msg, coefficients, topic)
    fx, _, cx, _, fy, cy = (float(value) for value in intrinsics.reshape(-1)[:6])
    try:
        camera = Camera(int(msg.width), int(msg.height), fx, fy, cx, cy, model, distortion)
        roi = msg.roi
        if roi.width and roi.height:
            if roi.x_offset + roi.width > camera.width or roi.y_offset + roi.height > camera.height:
                raise MessageError(f'{topic}: roi reaches beyond the image of {camera.width}x{camera.height}')
            camera = camera.cropped(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height))
        return _binned(camera, max(int(msg.binning_x), 1), max(int(msg.binning_y), 1))
    except ShapeError as error:
        raise MessageError(f'{topic}: {error}') from None


def check_cloud(msg: Any, topic: str) -> None:
    """Raises MessageError, without touching the points, when `cloud_from_message` would."""
    _cloud_layout(msg, topic)


def cloud_from_message(msg: Any, topic: str) -> Cloud:
    """The points of a PointCloud2 that are finite and not exactly at the sensor (many drivers' "no return").

    Fields are found by name and read by offset, datatype and byte order, rows by row_step. Intensity is the first
    scalar field of "intensity", "reflectivity" and "i"; what is not finite in it becomes NaN.
    Raises MessageError that names the topic and the field.
    """
    layout = _cloud_layout(msg, topic)
    cloud = _read_rows(layout)
    return _read_fields(layout) if cloud is None else cloud


def transforms_from_message(msg: Any, topic: str) -> list[StampedTransform]:
    """The transforms of a TFMessage; stamps may be zero, as static ones often are.

    Raises MessageError that names the edge for numbers that are not finite, a zero quaternion, a frame without a name
    or a frame that is its own parent.
    """
    transforms = []
    for entry in msg.transforms:
        parent, child = frame_id(entry.header), str(entry.child_frame_id).lstrip('/')
        if not parent or not child or parent == child:
            raise MessageError(f'{topic}: transform from "{parent}" to "{child}" needs two frames')
        rotation, translation = entry.transform.rotation, entry.transform.translation
        try:
            T_parent_child = SE3.from_quaternion(
                [rotation.x, rotation.y, rotation.z, rotation.w], [translation.x, translation.y, translation.z]
            )
        except ShapeError as error:
            raise MessageError(f'{topic}: {parent} -> {child}: {error}') from None
        transforms.append(StampedTransform(parent, child, _time_to_ns(entry.header.stamp), T_parent_child))
    return transforms


def _time_to_ns(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _bytes(data: Any, topic: str) -> NDArray[np.uint8]:
    """The message's buffer as it lies in memory: array.array (rclpy), numpy (rosbags) or bytes."""
    try:
        return np.frombuffer(data, dtype=np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise MessageError(f'{topic}: data is no contiguous buffer of bytes: {error}') from None


def _layout_of(msg: Any, topic: str) -> _Layout:
    layout = _LAYOUTS.get(msg.encoding)
    if layout is None:
        raise MessageError(f'{topic}: unknown encoding "{msg.encoding}"; known are {", ".join(_LAYOUTS)}')
    return layout


def _image_pixels(msg: Any, layout: _Layout, topic: str) -> NDArray[Any]:
    """A view of the pixels, (rows, width, channels), in the message's byte order."""
    width, height, step = int(msg.width), int(msg.height), int(msg.step)
    if width == 0 or height == 0:
        raise MessageError(f'{topic}: the image is empty ({width}x{height})')
    rows = height
    if layout.to_bgr == cv2.COLOR_YUV2BGR_NV21:
        rows = height + height // 2  # the colour plane of half the height follows
    elif layout.to_bgr in (cv2.COLOR_YUV2BGR_UYVY, cv2.COLOR_YUV2BGR_YUY2) and width % 2:
        raise MessageError(f'{topic}: {msg.encoding} needs an even width, got {width}')
    dtype = np.dtype(('>' if msg.is_bigendian else '<') + layout.dtype)
    pixel_bytes = dtype.itemsize * layout.channels
    if step < width * pixel_bytes:
        raise MessageError(
            f'{topic}: step is {step}, but {width} pixels of {msg.encoding} need {width * pixel_bytes} bytes a row'
        )
    data = _bytes(msg.data, topic)
    needed = step * (rows - 1) + width * pixel_bytes
    if len(data) < needed:
        raise MessageError(
            f'{topic}: {width}x{height} {msg.encoding} with step {step} needs {needed} bytes, got {len(data)}'
        )
    strides = (step, pixel_bytes, dtype.itemsize)
    return np.ndarray((rows, width, layout.channels), dtype, buffer=data, strides=strides)


def _convert(pixels: NDArray[Any], layout: _Layout) -> NDArray[np.uint8]:
    native = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder('='))
    if layout.stretched:
        native = _stretch(native)
    if layout.to_bgr is not None:
        # OpenCV takes one channel as (rows, width) for some conversions and as (rows, width, 1) for none.
        native = np.asarray(cv2.cvtColor(native[:, :, 0] if layout.channels == 1 else native, layout.to_bgr))
    if native.dtype == np.uint16:
        native = cv2.convertScaleAbs(native, alpha=255.0 / _white_of(int(native.max())))
    bgr: NDArray[np.uint8] = np.asarray(native, dtype=np.uint8)
    return bgr


def _white_of(brightest: int) -> int:
    """White of a 16-bit picture: that of the fewest bits its brightest value fits in.

    Many drivers leave the 10, 12 or 14 bits of a sensor in the low bits, where 65535 as white makes the picture black.
    """
    return next(2**bits - 1 for bits in (10, 12, 14, 16) if brightest < 2**bits)


def _stretch(values: NDArray[Any]) -> NDArray[np.uint8]:
    finite = np.isfinite(values)
    grey = np.zeros(values.shape, dtype=np.uint8)
    if finite.any():
        known = values[finite].astype(np.float64)
        # Halved, so that the span of the largest doubles does not overflow.
        low, span = known.min() / 2.0, known.max() / 2.0 - known.min() / 2.0
        if span > 0:
            grey[finite] = np.rint((known / 2.0 - low) * (1.0 / span) * 255.0).clip(0, 255).astype(np.uint8)
    return grey


def _decode(msg: Any, topic: str) -> NDArray[np.uint8]:
    """Picture of a CompressedImage; `format` is "jpeg", "png" or "ENCODING; jpeg compressed bgr8" (image_transport)."""
    raw_encoding, _, compression = msg.format.partition(';')
    if 'compressedDepth' in msg.format:
        raise MessageError(f'{topic}: format "{msg.format}" is a depth image; the pipeline needs the picture')
    data = _bytes(msg.data, topic)
    # What cameras send. Of other formats the size is not known before they are decoded, and damage may announce any.
    if not data[:4].tobytes().startswith((b'\xff\xd8', b'\x89PNG')):
        raise MessageError(f'{topic}: {len(data)} bytes of format "{msg.format}" are neither a JPEG nor a PNG')
    if _is_cut_short(data):
        raise MessageError(f'{topic}: the compressed image ends early after {len(data)} bytes')
    if announced_size(msg) is None:
        raise MessageError(f'{topic}: the header of {len(data)} bytes of format "{msg.format}" does not say its size')
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise MessageError(f'{topic}: {len(data)} bytes of format "{msg.format}" cannot be decoded as an image')
    if decoded.dtype not in (np.uint8, np.uint16):
        decoded = _stretch(decoded)
    pixels = decoded[:, :, None] if decoded.ndim == 2 else decoded
    layout = _LAYOUTS.get(raw_encoding.strip())
    if pixels.shape[2] == 1:
        if layout is None or layout.channels != 1:
            layout = _LAYOUTS['mono8']
    else:
        swapped = 'compressed rgb' in compression
        layout = _LAYOUTS[('rgb' if swapped else 'bgr') + ('a8' if pixels.shape[2] == 4 else '8')]
    return _convert(pixels, layout)


def _is_cut_short(data: NDArray[np.uint8]) -> bool:
    """Whether a JPEG or PNG lacks its end: decoders fill the rest with grey, which must not be inspected.

    Of a PNG each chunk is looked at, for decoders set aside as much memory as its length says.
    """
    view = data.data
    if bytes(view[:2]) == b'\xff\xd8':
        # A thumbnail's end marker lies in the first half.
        return b'\xff\xd9' not in view[len(view) // 2 :].tobytes()
    at = 8  # chunks: length of the content, type, content, checksum
    while at + 12 <= len(view):
        kind = bytes(view[at + 4 : at + 8])
        at += 12 + int.from_bytes(view[at : at + 4], 'big')
        if kind == b'IEND':
            return at > len(view)
    return True


def _lens_of(msg: Any, coefficients: tuple[float, ...], topic: str) -> tuple[str, tuple[float, ...]]:
    """Model and coefficients of the lens distortion."""
    model = _MODEL_NAMES.get(msg.distortion_model)
    if model is None:
        known = ', '.join(name for name in _MODEL_NAMES if name)
        raise MessageError(f'{topic}: unknown distortion_model "{msg.distortion_model}"; known are {known}')
    distortion = _fit_coefficients(coefficients, model)
    if distortion is None or (distortion and not msg.distortion_model):
        raise MessageError(
            f'{topic}: distortion_model "{msg.distortion_model}" does not go with {len(coefficients)} coefficients in D'
        )
    return model, distortion


def _fit_coefficients(coefficients: tuple[float, ...], model: str) -> tuple[float, ...] | None:
    """The coefficients without zeros at the end that the model does not have, or None when they do not fit."""
    if not any(coefficients):
        return ()
    counts = COEFFICIENT_COUNTS[model]
    if len(coefficients) > counts[-1] and not any(coefficients[counts[-1] :]):
        return coefficients[: counts[-1]]
    return coefficients if len(coefficients) in counts else None


def _binned(camera: Camera, x: int, y: int) -> Camera:
    return replace(
        camera,
        width=camera.width // x,
        height=camera.height // y,
        fx=camera.fx / x,
        fy=camera.fy / y,
        cx=(camera.cx + 0.5) / x - 0.5,
        cy=(camera.cy + 0.5) / y - 0.5,
    )


def _cloud_layout(msg: Any, topic: str) -> _CloudLayout:
    width, height = int(msg.width), int(msg.height)
    point_step, row_step = int(msg.point_step), int(msg.row_step)
    if height == 1:
        row_step = max(row_step, width * point_step)  # of a single row some drivers leave it zero
    if row_step < width * point_step:
        raise MessageError(f'{topic}: row_step is {row_step}, but {width} points of {point_step} bytes are longer')
    data = _bytes(msg.data, topic)
    needed = row_step * (height - 1) + width * point_step if width and height else 0
    if len(data) < needed:
        raise MessageError(
            f'{topic}: {height} rows of {width} points of {point_step} bytes need {needed} bytes, got {len(data)}'
        )
    types = _POINT_FIELD_TYPES['>' if msg.is_bigendian else '<']
    fields: dict[str, tuple[np.dtype[Any], int]] = {}
    for field in msg.fields:
        name, offset = field.name, int(field.offset)
        if name not in _READ_FIELDS or (field.count > 1 and name in _INTENSITY_FIELDS):
            continue
        if name in fields:
            raise MessageError(f'{topic}: field "{name}" is there twice; check the driver')
        if field.count > 1:
            raise MessageError(f'{topic}: field "{name}" has {field.count} values a point, expected one')
        dtype = types.get(field.datatype)
        if dtype is None:
            raise MessageError(f'{topic}: field "{name}" has the unknown datatype {field.datatype}')
        if offset + dtype.itemsize > point_step:
            raise MessageError(
                f'{topic}: field "{name}" at offset {offset} lies outside the point_step of {point_step}'
            )
        fields[name] = dtype, offset
    for name in 'xyz':
        if name not in fields:
            names = [field.name for field in msg.fields]
            raise MessageError(f'{topic}: no field "{name}" among {names}; set points_topic or check the driver')
    intensity = next((name for name in _INTENSITY_FIELDS if name in fields), None)
    return _CloudLayout(data, height, width, row_step, point_step, fields, intensity)


def _read_rows(layout: _CloudLayout) -> Cloud | None:
    """The cloud when its points are rows of float32 with x, y, z in turn, else None; not copied when all are sound."""
    data, height, width, row_step, point_step, fields, name = layout
    count, columns = height * width, point_step // 4
    x, y, z = fields['x'], fields['y'], fields['z']
    value = x if name is None else fields[name]  # without an intensity any column does for it
    if not count or point_step % 4 or (height > 1 and row_step != width * point_step):
        return None
    if not x[0] == y[0] == z[0] == value[0] == _FLOAT32 or x[1] % 4 or value[1] % 4:
        return None
    if y[1] != x[1] + 4 or z[1] != x[1] + 8:
        return None
    words = np.frombuffer(data, np.uint32, count * columns)
    if not words.flags.aligned:
        words = words.copy()
    rows = words.view(np.float32).reshape(count, columns)
    first, last = x[1] // 4, value[1] // 4
    if are_all_sound(words, columns, first):
        points, values = rows[:, first : first + 3], rows[:, last]
    else:
        points, values = select_returns(rows, first, last)
    return Cloud(points, None if name is None else values)


def _read_fields(layout: _CloudLayout) -> Cloud:
    """The cloud of any layout, field by field."""

    def column(name: str) -> NDArray[Any]:
        dtype, offset = layout.fields[name]
        shape, strides = (layout.height, layout.width), (layout.row_step, layout.point_step)
        if layout.height * layout.width == 0:
            return np.empty(0, dtype)
        return np.ndarray(shape, dtype, layout.data, offset, strides).reshape(-1)

    points = np.empty((layout.height * layout.width, 3))
    finite, at_sensor = np.ones(len(points), bool), np.ones(len(points), bool)
    for axis, name in enumerate('xyz'):
        # Field by field: reductions over the three columns of `points` would take ten times as long.
        values = column(name)
        with np.errstate(invalid='ignore'):  # signalling NaNs
            points[:, axis] = values
        finite &= np.isfinite(values)
        at_sensor &= values == 0
    kept = finite & ~at_sensor
    intensity = None
    if layout.intensity is not None:
        with np.errstate(over='ignore', invalid='ignore'):
            intensity = column(layout.intensity)[kept].astype(np.float32)
        intensity[~np.isfinite(intensity)] = np.nan
    return Cloud(points[kept], intensity)
