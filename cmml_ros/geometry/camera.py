"""Cameras: pinhole with plumb_bob or rational_polynomial distortion, and equidistant fisheye.

Pixel (0, 0) is the centre of the top-left pixel; the image spans [-0.5, width - 0.5) x [-0.5, height - 0.5).
Camera frame: x right, y down, z forward (REP 103, optical).
Models and the order of their coefficients are those of OpenCV and sensor_msgs/CameraInfo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmml_ros.errors import ShapeError

if TYPE_CHECKING:  # it brings scipy, which who only describes a camera need not wait for
    from cmml_ros.geometry.transforms import SE3

Array = NDArray[np.float64]

COEFFICIENT_COUNTS = {'plumb_bob': (0, 4, 5, 8), 'rational_polynomial': (0, 4, 5, 8), 'equidistant': (0, 4)}

# Half the field of view up to which a model is tabulated; rays have z == 1, so 90 degrees is out of reach.
_MAX_ANGLE_RAD = math.radians(89.9)
_TABLE_SIZE = 4096


class _Radial(NamedTuple):
    """Where the lens model is one-to-one, tabulated: a distortion polynomial folds back further out."""

    limit: float  # largest undistorted radius of the valid domain
    undistorted: Array  # (_TABLE_SIZE,) those (equidistant: angles) at even steps of the distorted one's arc tangent
    widest_rad: float  # from 0 to this


@dataclass(frozen=True)
class Camera:
    """Image size, focal lengths, principal point (pixels) and lens model of one camera.

    distortion: (k1, k2, p1, p2[, k3[, k4, k5, k6]]) for plumb_bob and rational_polynomial, (k1, k2, k3, k4) for
    equidistant, () for none. Raises ShapeError for values that no camera has.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = 'plumb_bob'
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in COEFFICIENT_COUNTS:
            raise ShapeError(f'unknown camera model "{self.model}"; known are {", ".join(COEFFICIENT_COUNTS)}')
        if self.width < 1 or self.height < 1:
            raise ShapeError(f'a camera needs a positive image size, got {self.width}x{self.height}')
        if not all(math.isfinite(value) for value in (self.fx, self.fy, self.cx, self.cy, *self.distortion)):
            raise ShapeError(f'camera intrinsics must be finite, got {self}')
        if self.fx <= 0 or self.fy <= 0:
            raise ShapeError(f'focal lengths must be positive, got fx={self.fx}, fy={self.fy}')
        counts = COEFFICIENT_COUNTS[self.model]
        if len(self.distortion) not in counts:
            expected = ', '.join(map(str, counts))
            raise ShapeError(f'{self.model} has {expected} coefficients, got {len(self.distortion)}')

    @property
    def matrix(self) -> Array:
        """K, (3, 3)."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def is_distorted(self) -> bool:
        """Whether the lens bends any ray."""
        return self.model == 'equidistant' or any(self.distortion)

    def project(self, points_camera: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels of `points_camera`, and which of them the camera sees.

        points_camera: (N, 3), metres. Returns pixels (N, 2), NaN where a point is behind the camera or outside the
        valid domain of the lens model, and visible (N,): the pixel is known and inside the image.
        """
        from cmml_ros.geometry.compiled import as_compiled  # numba: half a second that not all need wait
        from cmml_ros.geometry.lens import project

        points = as_compiled(_check_columns(points_camera, 3, 'points_camera'))
        pixels = project(points, self._pinhole, *self._lens)
        return pixels, self.contains(pixels)

    def see(self, points_source: ArrayLike, T_camera_source: SE3) -> tuple[Array, Array, NDArray[np.int64]]:
        """Those of `points_source`, (N, 3), metres, that lie in the image: in the camera frame, (K, 3).

        And their pixels (K, 2) and indices (K,), in the order of the points, as `project` says.
        """
        from cmml_ros.geometry.compiled import as_compiled  # numba, as in `project`
        from cmml_ros.geometry.lens import project_seen

        return project_seen(
            as_compiled(_check_columns(points_source, 3, 'points_source')),
            as_compiled(T_camera_source.rotation),
            T_camera_source.translation,
            self._pinhole,
            (self.width, self.height),
            *self._lens,
        )

    def contains(self, pixels: ArrayLike) -> NDArray[np.bool_]:
        """Which `pixels`, (N, 2), lie inside the image, (N,)."""
        u, v = _check_columns(pixels, 2, 'pixels').T
        inside: NDArray[np.bool_] = (u >= -0.5) & (u < self.width - 0.5) & (v >= -0.5) & (v < self.height - 0.5)
        return inside

    def rays(self, pixels: ArrayLike) -> Array:
        """Directions seen at `pixels`, lens distortion removed.

        pixels: (N, 2) u right, v down. Returns (N, 3) with z == 1, NaN where the lens model has no such pixel.
        """
        u, v = _check_columns(pixels, 2, 'pixels').T
        x, y = (u - self.cx) / self.fx, (v - self.cy) / self.fy
        rays = np.ones((len(x), 3))
        rays[:, 0], rays[:, 1] = self.undistort(x, y) if self.is_distorted else (x, y)
        return rays

    def cropped(self, left: int, top: int, width: int, height: int) -> Camera:
        """The camera of the image part that starts at column `left` and row `top`."""
        return replace(self, width=width, height=height, cx=self.cx - left, cy=self.cy - top)

    def scaled(self, factor: float) -> Camera:
        """The camera of the image resized by `factor`; sizes are rounded to whole pixels."""
        return replace(
            self,
            width=round(self.width * factor),
            height=round(self.height * factor),
            fx=self.fx * factor,
            fy=self.fy * factor,
            cx=(self.cx + 0.5) * factor - 0.5,
            cy=(self.cy + 0.5) * factor - 0.5,
        )

    @property
    def _pinhole(self) -> Array:
        return np.array([self.fx, self.fy, self.cx, self.cy], np.float64)

    @property
    def _coefficients(self) -> Array:
        """(8,), zero for those that the model lacks."""
        return np.array(self.distortion + (0.0,) * (8 - len(self.distortion)), np.float64)

    @cached_property
    def _lens(self) -> tuple[Array, bool, float]:
        """Coefficients, whether equidistant, and the largest undistorted radius."""
        limit = self._radial.limit if self.is_distorted else math.inf
        return self._coefficients, self.model == 'equidistant', limit

    @cached_property
    def _radial(self) -> _Radial:
        """Domain on which distortion is one-to-one.

        The Jacobian of the pinhole models is symmetric, f I + 2 f' x x^T + T, and the tangential part T has no
        eigenvalue below -6 |p| r. While min(f, f + 2 r^2 f') > 6 |p| r the map is the gradient of a strictly convex
        function, hence one-to-one.
        """
        from cmml_ros.geometry.lens import tabulate_gain

        angles = np.linspace(0.0, _MAX_ANGLE_RAD, _TABLE_SIZE)
        radius = angles if self.model == 'equidistant' else np.tan(angles)
        tangential = 0.0 if self.model == 'equidistant' else math.hypot(*self._coefficients[2:4])
        with np.errstate(all='ignore'):
            gain, slope = tabulate_gain(self._coefficients, self.model == 'equidistant', radius)
            stretch = np.minimum(gain, gain + 2.0 * radius**2 * slope)
            folded = ~(stretch > 6.0 * tangential * radius)
        count = int(np.argmax(folded)) if folded.any() else _TABLE_SIZE
        # A model that folds at once has an empty domain, and every pixel is then unknown.
        count = max(count, 1)
        distorted = (radius * gain)[:count]
        widest_rad = math.atan(distorted[-1])
        even = np.tan(np.linspace(0.0, widest_rad, _TABLE_SIZE))
        return _Radial(math.tan(angles[count - 1]), np.interp(even, distorted, radius[:count]), widest_rad)

    def undistort(self, x_distorted: Array, y_distorted: Array) -> tuple[Array, Array]:
        """x and y, over z, of the rays to where a camera without distortion sees those, each (N,)."""
        from cmml_ros.geometry.lens import undistort

        x, y = undistort(
            np.stack([x_distorted, y_distorted], axis=1),
            *self._lens,
            self._radial.undistorted,
            self._radial.widest_rad,
            1e-6 / max(self.fx, self.fy),
        ).T
        return x, y


def _check_columns(values: ArrayLike, columns: int, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != columns:
        raise ShapeError(f'{name} must be (N, {columns}), got {array.shape}')
    return array
