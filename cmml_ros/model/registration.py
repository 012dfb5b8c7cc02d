"""Where a cloud lies before the camera: matches of pixels to points, from coarse to fine, then the pose."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.config import RegistrationConfig
from cmml_ros.errors import PoseError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.model.interface import COARSE_STRIDE, FINE_STRIDE, INPUT_MULTIPLE
from cmml_ros.model.matcher import Likeness, Matcher
from cmml_ros.model.point_features import point_features
from cmml_ros.model.pose import PoseEstimate, estimate_pose, fuse_with_prior
from cmml_ros.model.range_features import residuals_behind_surface

Array = NDArray[np.float64]

# Pictures are matched at this width: points are farther apart than the pixels of larger ones.
_WIDTH_PX = 640
_MIN_POINTS = 200
# Deviations of the given extrinsic to which the coarse stage searches.
_SEARCH_FACTOR = 3.0
_MIN_SUPERPOINT_PROBABILITY = 0.02
_FINE_RADIUS = 4
_MAX_FINE = 2500
_MIN_FINE_PROBABILITY = 0.25
_COARSE_TOLERANCE_PX = 8.0
_FINE_TOLERANCES_PX = (5.0, 2.5)
# A pose is refused when it leaves the points more uncertain than this share of their distance.
_MAX_POINT_STD = 0.02
# Range noise between these is averaged over the surface; what is above is no noise but shape.
_SMOOTHED_NOISE_M = (0.002, 0.05)
_DOUBLING_NOISE_M = 0.01
_VIRTUAL_FOCAL_PX = 500.0
# Cosine of the angle to its line of sight up to which a flat view holds points: tangents beyond have no end.
_LEAST_AHEAD = 0.3
# Length of the mean of their directions below which points have no middle.
_LEAST_MEAN = 1e-6
_ROLLS_RAD = (0.0, 0.5 * math.pi, math.pi, 1.5 * math.pi)


@dataclass(frozen=True, eq=False)
class Registration:
    """What the data say about one frame.

    matched_points, matched_pixels: numbers of points of the cloud (K,) and the pixels (K, 2) that show them, of the
    last stage, right and wrong ones; inlier_ratio: the share that agrees. correction, covariance: (6,) and (6, 6)
    rotation vector (rad) and translation (m) of T_camera_lidar after the given extrinsic, in the camera frame, from the
    data alone; None without a given extrinsic.
    """

    T_camera_lidar: SE3
    matched_points: NDArray[np.intp]
    matched_pixels: Array
    inlier_ratio: float
    point_std_m: float
    correction: Array | None = None
    covariance: Array | None = None
    systematic: Array | None = None

    @property
    def match_count(self) -> int:
        """How many pixels were matched with points."""
        return len(self.matched_points)


@dataclass(frozen=True, eq=False)
class _Matches:
    """Numbers of points (K,), and the pixels (K, 2) of the reduced picture that show them."""

    points: NDArray[np.intp]
    pixels: Array


class Registrar:
    """Finds or corrects the pose of a cloud before a camera."""

    def __init__(self, matcher: Matcher, config: RegistrationConfig) -> None:
        self._matcher = matcher
        self._config = config

    def refine(self, image: NDArray[np.uint8], camera: Camera, cloud: Cloud, T_camera_lidar: SE3) -> Registration:
        """The pose from a given one that is off by a few `registration.*_std`.

        image: (H, W, 3) uint8 BGR. Raises PoseError when the data do not determine a pose.
        """
        view = _View(self._matcher, self._config, image, camera, cloud)
        depth_m = float(np.median(np.linalg.norm(T_camera_lidar.apply(view.points), axis=1)))
        angle = math.radians(self._config.rotation_std_deg) + self._config.translation_std_m / max(depth_m, 1e-3)
        window_px = _SEARCH_FACTOR * view.camera.fx * angle
        start = view.match_superpoints(T_camera_lidar, window_px)
        estimate = view.polish(view.solve(start, _COARSE_TOLERANCE_PX))
        correction = _difference(estimate.T_camera_points, T_camera_lidar)
        prior_std = np.repeat([math.radians(self._config.rotation_std_deg), self._config.translation_std_m], 3)
        fused, _ = fuse_with_prior(correction, estimate.covariance + view.systematic(estimate), prior_std)
        T_fused = SE3.from_rotation_vector(fused[:3], fused[3:]) @ T_camera_lidar
        return _conclude(view, estimate, T_fused, correction)

    def match(self, image: NDArray[np.uint8], camera: Camera, cloud: Cloud, T_given: SE3 | None = None) -> Registration:
        """The pose from nothing but the data; the view of the range sensor tells about where the camera looks.

        image: (H, W, 3) uint8 BGR. T_given: an extrinsic to be compared with afterwards.
        Raises PoseError when the data do not determine a pose.
        """
        view = _View(self._matcher, self._config, image, camera, cloud)
        best: PoseEstimate | None = None
        refusal = 'no match'
        for T_view_lidar in _look_from_sensor(view.points):
            try:
                estimate = view.solve(view.match_superpoints(T_view_lidar, None), _COARSE_TOLERANCE_PX)
            except PoseError as error:
                refusal = str(error)  # the error itself holds its frames, and all that they worked on
                continue
            if best is None or estimate.inliers.sum() > best.inliers.sum():
                best = estimate
        if best is None:
            raise PoseError(refusal)
        estimate = view.polish(best)
        correction = None if T_given is None else _difference(estimate.T_camera_points, T_given)
        return _conclude(view, estimate, estimate.T_camera_points, correction)


class _View:
    """One picture and one cloud while they are matched."""

    def __init__(
        self,
        matcher: Matcher,
        config: RegistrationConfig,
        image: NDArray[np.uint8],
        camera: Camera,
        cloud: Cloud,
    ) -> None:
        if len(cloud) < _MIN_POINTS:
            raise PoseError(f'{len(cloud)} points are too few to be matched with a picture')
        self.factor = min(1.0, _WIDTH_PX / camera.width)
        self.camera = camera.scaled(self.factor)
        self.matches = _Matches(np.empty(0, np.intp), np.empty((0, 2)))
        size = (self.camera.width, self.camera.height)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        bottom, right = -size[1] % INPUT_MULTIPLE, -size[0] % INPUT_MULTIPLE
        padded = np.pad(small, ((0, bottom), (0, right), (0, 0)), mode='edge')
        self._height, self._width = padded.shape[:2]
        self.points, range_noise_m = _smooth_range(np.asarray(cloud.points, np.float64))
        # Noise that had to be averaged away comes with a bias that cannot be: it moves the points across the picture.
        self._systematic_px = config.systematic_px * (1.0 + range_noise_m / _DOUBLING_NOISE_M)
        self._intensity = cloud.intensity
        self._compare = matcher.look(np.asarray(padded, np.uint8))

    def match_superpoints(self, T_view_lidar: SE3, window_px: float | None) -> _Matches:
        """Coarse matches of the points as `T_view_lidar` puts them; window_px: how far off they may be, or anywhere."""
        pixels, seen = self._project(T_view_lidar, pinhole=window_px is None)
        likeness = self._lay(T_view_lidar, pixels, seen)
        columns = self._width // FINE_STRIDE
        chosen, cell = _representatives(pixels, seen, COARSE_STRIDE, columns)
        reach_cells = None if window_px is None else max(1, int(window_px / FINE_STRIDE))
        match, probability = likeness.match_superpoints(cell, reach_cells)
        sure = probability >= _MIN_SUPERPOINT_PROBABILITY
        target, cell, chosen = match[sure], cell[sure], chosen[sure]
        step = np.column_stack([target % columns - cell % columns, target // columns - cell // columns])
        return _Matches(chosen, pixels[chosen] + FINE_STRIDE * step)

    def systematic(self, estimate: PoseEstimate) -> Array:
        """Covariance (6, 6) of the pose from errors that are smooth over the picture."""
        return self._systematic_px**2 * estimate.systematic

    def polish(self, estimate: PoseEstimate) -> PoseEstimate:
        """The pose from fine matches, each round about the pose of the round before."""
        for tolerance_px in _FINE_TOLERANCES_PX:
            self.matches = self._match_points(estimate.T_camera_points)
            estimate = self.solve(self.matches, tolerance_px)
        return estimate

    def solve(self, matches: _Matches, tolerance_px: float) -> PoseEstimate:
        """The pose of the points; raises PoseError when the matches do not determine one."""
        return estimate_pose(self.points[matches.points], matches.pixels, self.camera, tolerance_px)

    def _match_points(self, T_view_lidar: SE3) -> _Matches:
        """Fine matches of single points that lie within some cells of where `T_view_lidar` puts them."""
        pixels, seen = self._project(T_view_lidar, pinhole=False)
        likeness = self._lay(T_view_lidar, pixels, seen)
        rows, columns = self._height // FINE_STRIDE, self._width // FINE_STRIDE
        chosen, cell = _representatives(pixels, seen, FINE_STRIDE, columns)
        step = max(1, math.ceil(len(chosen) / _MAX_FINE))
        chosen, cell = chosen[::step], cell[::step]
        reach = np.arange(-_FINE_RADIUS, _FINE_RADIUS + 1)
        window = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)  # (81, 2) column and row
        column = (cell % columns)[:, None] + window[:, 0]
        row = (cell // columns)[:, None] + window[:, 1]
        outside = (column < 0) | (column >= columns) | (row < 0) | (row >= rows)
        cells = np.where(outside, -1, row * columns + column)
        probability = likeness.match_points(cell, cells).astype(np.float64)
        peak = probability.argmax(axis=1)
        # The truth was split over four cells: the mean over the peak's neighbourhood puts it together again.
        near = (np.abs(window[None] - window[peak][:, None]) <= 1).all(axis=2)
        weight = probability * near
        total = weight.sum(axis=1)
        shift = weight @ window / total[:, None]
        sure = (total >= _MIN_FINE_PROBABILITY) & (np.abs(window[peak]) < _FINE_RADIUS).all(axis=1)
        return _Matches(chosen[sure], pixels[chosen[sure]] + FINE_STRIDE * shift[sure])

    def _project(self, T_view_lidar: SE3, *, pinhole: bool) -> tuple[Array, NDArray[np.bool_]]:
        camera = self.camera
        if pinhole:  # a view of our own making
            camera = Camera(camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
        return camera.project(T_view_lidar.apply(self.points))

    def _lay(self, T_view_lidar: SE3, pixels: Array, seen: NDArray[np.bool_]) -> Likeness:
        if seen.sum() < _MIN_POINTS:
            raise PoseError('the points lie outside the picture: the extrinsic, given or found, is too far off')
        depths_m = T_view_lidar.apply(self.points)[seen, 2]
        intensity = None if self._intensity is None else self._intensity[seen]
        return self._compare(point_features(pixels[seen], depths_m, intensity, self._height, self._width))


def _representatives(
    pixels: Array, seen: NDArray[np.bool_], stride: int, columns: int
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Of each square of `stride` pixels that holds points the number of the one nearest to its middle.

    And the flat index of the fine cell, of `columns` in a row, that this point lies in.
    """
    numbers = np.flatnonzero(seen)
    scaled = (pixels[numbers] + 0.5) / stride
    square = np.maximum(np.floor(scaled).astype(np.int64), 0)
    distance = np.abs(scaled - square - 0.5).max(axis=1)
    flat = square[:, 1] * columns + square[:, 0]
    order = np.lexsort((distance, flat))
    _, first = np.unique(flat[order], return_index=True)
    chosen = numbers[order[first]]
    cell = np.maximum(np.floor((pixels[chosen] + 0.5) / FINE_STRIDE).astype(np.int64), 0)
    return chosen, cell[:, 1] * columns + cell[:, 0]


def _smooth_range(points: Array) -> tuple[Array, float]:
    """Points (N, 3) in the sensor's frame, noise of a time-of-flight sensor averaged away, and that noise in metres.

    Along rays that are not the camera's it would move the points across the picture. Zero where nothing was averaged.
    """
    T_view_lidar = _look_from_sensor(points)[0]
    inside = T_view_lidar.apply(points)
    ahead = inside[:, 2] > _LEAST_AHEAD * np.linalg.norm(inside, axis=1)
    depths_m = inside[ahead, 2]
    if len(depths_m) < _MIN_POINTS:
        return points, 0.0
    tangents = inside[ahead, :2] / depths_m[:, None]
    low, high = np.quantile(tangents, [0.01, 0.99], axis=0)
    core = ((tangents >= low) & (tangents <= high)).all(axis=1)
    size = np.ceil((high - low) * _VIRTUAL_FOCAL_PX).astype(int) + 1
    pixels = (tangents[core] - low) * _VIRTUAL_FOCAL_PX
    residuals_m = residuals_behind_surface(pixels, depths_m[core], int(size[1]), int(size[0]))
    noise_m = 1.4826 * float(np.median(np.abs(residuals_m)))
    if not _SMOOTHED_NOISE_M[0] <= noise_m <= _SMOOTHED_NOISE_M[1]:
        return points, 0.0
    numbers = np.flatnonzero(ahead)[core]
    smooth = points.copy()
    smooth[numbers] *= (1.0 - residuals_m / depths_m[core])[:, None]
    return smooth, noise_m


def _look_from_sensor(points: Array) -> list[SE3]:
    """T_view_lidar of views from the range sensor at the middle of its points, turned by quarters.

    Raises PoseError where they have none.
    """
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    forward = (points / np.maximum(lengths, 1e-9)).mean(axis=0)
    length = float(np.linalg.norm(forward))
    if length < _LEAST_MEAN:
        raise PoseError('the points lie evenly all around the range sensor: there is no view to be had from it')
    forward /= length
    # Down in the picture: minus z of a frame that looks along x, plus y of an optical one.
    down = np.array([0.0, 0.0, -1.0]) if abs(forward[2]) < 0.7 else np.array([0.0, 1.0, 0.0])
    right = np.cross(down, forward)
    right /= np.linalg.norm(right)
    upright = np.stack([right, np.cross(forward, right), forward])
    turns = [SE3.from_rotation_vector((0.0, 0.0, roll), np.zeros(3)) for roll in _ROLLS_RAD]
    return [turn @ SE3(upright, np.zeros(3)) for turn in turns]


def _difference(T_found: SE3, T_given: SE3) -> Array:
    correction = T_found @ T_given.inverse()
    return np.concatenate([correction.rotation_vector, correction.translation])


def _conclude(view: _View, estimate: PoseEstimate, T_camera_lidar: SE3, correction: Array | None) -> Registration:
    point_std_m = estimate.point_std_m(view.points)
    distance_m = float(np.median(np.linalg.norm(T_camera_lidar.apply(view.points), axis=1)))
    if not point_std_m <= _MAX_POINT_STD * distance_m:
        raise PoseError(
            f'the matches leave the points uncertain by {1e3 * point_std_m:.0f} mm: too little to hold on to'
        )
    systematic = view.systematic(estimate)
    return Registration(
        T_camera_lidar,
        view.matches.points,
        (view.matches.pixels + 0.5) / view.factor - 0.5,
        estimate.inlier_ratio,
        point_std_m,
        correction,
        None if correction is None else estimate.covariance + systematic,
        None if correction is None else systematic,
    )
