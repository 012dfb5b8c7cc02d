"""Correspondences of pixels and points to a pose, its covariance, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import poselib
from numpy.typing import NDArray

from cmml_ros.errors import PoseError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3

Array = NDArray[np.float64]

_MIN_INLIERS = 30
_MIN_INLIER_RATIO = 0.15
# Matches beside each other err together: they are judged by patches of so many to a side of the picture.
_PATCHES = 6
_ITERATIONS = (200, 3000)


@dataclass(frozen=True, eq=False)
class PoseEstimate:
    """T_camera_points and how well it is known.

    covariance: (6, 6) of a rotation vector (rad) and a translation (m) applied after it, in the camera frame, from
    errors that differ from match to match. systematic: (6, 6), the same of what a smooth error of one pixel does, which
    no number of matches averages out. inliers: (N,) which correspondences agree.
    """

    T_camera_points: SE3
    covariance: Array
    systematic: Array
    inliers: NDArray[np.bool_]

    @property
    def inlier_ratio(self) -> float:
        """Share of the correspondences that agree."""
        return float(self.inliers.mean())

    def point_std_m(self, points: Array) -> float:
        """Deviation (root mean square) of where the pose puts `points`, (N, 3)."""
        moved = self.T_camera_points.apply(points)
        jacobian = _motion_jacobian(moved)  # (N, 3, 6)
        variances = np.einsum('nij,jk,nik->n', jacobian, self.covariance, jacobian)
        return float(np.sqrt(variances.mean()))


def estimate_pose(points: Array, pixels: Array, camera: Camera, tolerance_px: float) -> PoseEstimate:
    """The pose under which `points` project to `pixels`, by locally optimised RANSAC (PoseLib).

    points: (N, 3), metres. pixels: (N, 2), of the distorted picture; both finite. tolerance_px: reprojection error of
    an inlier. The same input gives the same pose. Raises PoseError when too few agree or when they do not determine a
    pose.
    """
    rays = camera.rays(pixels)
    usable = np.isfinite(rays).all(axis=1)
    if usable.sum() < _MIN_INLIERS:
        raise PoseError(f'{int(usable.sum())} matches are too few for a pose')
    ideal = rays[:, :2] * [camera.fx, camera.fy]
    pinhole = {'model': 'PINHOLE', 'width': 0, 'height': 0, 'params': [camera.fx, camera.fy, 0.0, 0.0]}
    ransac = {'max_reproj_error': tolerance_px, 'min_iterations': _ITERATIONS[0], 'max_iterations': _ITERATIONS[1]}
    pose, _ = poselib.estimate_absolute_pose(
        ideal[usable], points[usable], pinhole, ransac, {'loss_type': 'TRUNCATED', 'loss_scale': tolerance_px}
    )
    if not (np.isfinite(pose.R).all() and np.isfinite(pose.t).all()):
        raise PoseError('the matches do not determine a pose')
    T_camera_points = SE3(pose.R, np.asarray(pose.t).reshape(3))
    moved = T_camera_points.apply(points)
    with np.errstate(divide='ignore', invalid='ignore'):
        errors = moved[:, :2] / moved[:, 2:] * [camera.fx, camera.fy] - ideal
        inliers = usable & (moved[:, 2] > 0.0) & (np.hypot(*errors.T) < tolerance_px)
    count = int(inliers.sum())
    if count < _MIN_INLIERS or count < _MIN_INLIER_RATIO * len(points):
        raise PoseError(f'{count} of {len(points)} matches agree on a pose: picture and points do not fit together')
    covariance, systematic = _covariances(moved[inliers], errors[inliers], pixels[inliers], camera)
    return PoseEstimate(T_camera_points, covariance, systematic, inliers)


def fuse_with_prior(correction: Array, covariance: Array, prior_std: Array) -> tuple[Array, Array]:
    """Correction (6,) and covariance (6, 6) with what was known before: zero with deviations `prior_std` (6,).

    Product of two normal distributions; what the data leave open stays near the prior.
    """
    gain = np.diag(prior_std**2) @ np.linalg.inv(np.diag(prior_std**2) + covariance)
    fused = gain @ covariance
    return gain @ correction, 0.5 * (fused + fused.T)


def _covariances(moved: Array, errors: Array, pixels: Array, camera: Camera) -> tuple[Array, Array]:
    """Gauss-Newton covariances of the pose: errors of neighbouring matches correlated, and smooth over the picture."""
    x, y, z = moved.T
    zeros = np.zeros_like(z)
    projection = np.stack(
        [
            np.stack([camera.fx / z, zeros, -camera.fx * x / z**2], axis=1),
            np.stack([zeros, camera.fy / z, -camera.fy * y / z**2], axis=1),
        ],
        axis=1,
    )  # (N, 2, 3)
    jacobian = projection @ _motion_jacobian(moved)  # (N, 2, 6)
    information = np.einsum('nij,nik->jk', jacobian, jacobian)
    scales = np.sqrt(np.diag(information))
    if not (scales > 0.0).all():
        raise PoseError('the matches do not determine a pose')
    normalised = information / np.outer(scales, scales)
    if np.linalg.cond(normalised) > 1e10:
        raise PoseError('the matches lie on a line or in a spot and do not determine a pose')
    inverse = np.linalg.inv(normalised) / np.outer(scales, scales)
    # Sandwich over patches (Liang and Zeger, Biometrika 73, 1986): sums of what each patch pulls at the pose.
    size = np.array([camera.width, camera.height])
    patch = np.clip((pixels / size * _PATCHES).astype(np.intp), 0, _PATCHES - 1) @ [1, _PATCHES]
    pulls = np.zeros((_PATCHES**2, 6))
    np.add.at(pulls, patch, np.einsum('nij,ni->nj', jacobian, errors))
    filled = len(np.unique(patch))
    if filled <= 6:
        raise PoseError('the matches lie in a spot and do not determine a pose')
    covariance = inverse @ (pulls.T @ pulls) @ inverse * (filled / (filled - 6))
    # Errors that are a polynomial of degree 2 over the picture, each term with a deviation of a pixel.
    u, v = (2.0 * pixels / size - 1.0).T
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)  # (N, 6)
    shifts = np.einsum('nij,nk->jik', jacobian, terms).reshape(6, -1)  # of u, then of v
    response = inverse @ shifts
    return np.asarray(covariance), np.asarray(response @ response.T)


def _motion_jacobian(points: Array) -> Array:
    """Derivative (N, 3, 6) of points moved by a small rotation vector and translation."""
    jacobian = np.zeros((len(points), 3, 6))
    x, y, z = points.T
    jacobian[:, 0, 1], jacobian[:, 0, 2] = z, -y
    jacobian[:, 1, 0], jacobian[:, 1, 2] = -z, x
    jacobian[:, 2, 0], jacobian[:, 2, 1] = y, -x
    jacobian[:, :, 3:] = np.eye(3)
    return jacobian
