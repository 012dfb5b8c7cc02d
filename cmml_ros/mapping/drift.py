"""Where the camera really was, as told by the airholes that the map knows already."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cmml_ros.config import MapConfig
from cmml_ros.geometry.transforms import SE3

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

_HYPOTHESES = 48
_ITERATIONS = 3


class DriftFilter:
    """The camera's pose in the map, followed from frame to frame: an error-state Kalman filter on SE3.

    The robot's motion since the previous frame predicts the pose, with a deviation of `step_std_m` and `step_std_deg`.
    The airholes seen again correct it. A weak pull of `drift_m` towards the pose that /tf tells keeps the map from
    wandering where /tf does not drift. The state is an offset at the camera's centre and a rotation about it, in the
    axes of the map; `covariance` is (6, 6), offset first.
    """

    def __init__(self, config: MapConfig) -> None:
        step_std_rad = math.radians(config.step_std_deg)
        self._gate = config.gate_factor
        self._step_variances = np.repeat([config.step_std_m**2, step_std_rad**2], 3)
        drift_rad = config.drift_m * step_std_rad / config.step_std_m
        self._pull = np.repeat([config.drift_m**-2, drift_rad**-2], 3)
        self._told: SE3 | None = None
        self.pose = SE3.identity()
        self.covariance = np.zeros((6, 6))

    def predict(self, T_map_camera: SE3) -> None:
        """Move on to a frame whose pose is told as `T_map_camera`."""
        if self._told is None:
            self._told = self.pose = T_map_camera
            return
        previous, told = self.pose, self._told
        self.pose = previous @ (told.inverse() @ T_map_camera)
        self._told = T_map_camera
        transition = np.eye(6)
        transition[:3, 3:] = -cross_matrix((self.pose.translation - previous.translation)[None])[0]
        self.covariance = transition @ self.covariance @ transition.T + np.diag(self._step_variances)

    def position_covariances(self, points: Array) -> Array:
        """What the deviation of the pose does to `points`, (N, 3) in the map: (N, 3, 3), m2."""
        jacobians = self._jacobians(points)
        return np.asarray(jacobians @ self.covariance @ jacobians.transpose(0, 2, 1))

    def correct(self, points: Array, known: Array, covariances: Array, views: Integers) -> None:
        """Draw the pose to where most views lie on airholes that are known.

        points, known: (K, 3) pairs that may be the same airhole, in the map under the predicted pose. covariances:
        (K, 3, 3) of their difference, without the pose's. views: (K,) which view each pair is of,
        ascending.
        """
        if len(points):
            offset = self._find_offset(known - points, covariances, points, views)
            residuals = known - points - offset
            # Rotation is not in the offset yet, so pairs may lie further off than their own deviation.
            precisions = np.linalg.inv(covariances * self._rotation_slack(points, covariances)[:, None, None])
            distances = np.einsum('ki,kij,kj->k', residuals, precisions, residuals)
            chosen = _best_pairs(distances, views, self._gate**2)
            points, known, covariances = points[chosen], known[chosen], covariances[chosen]
        self._update(points, known, covariances)

    def _find_offset(self, differences: Array, covariances: Array, points: Array, views: Integers) -> Array:
        """The offset, (3,), under which the most views find a partner: the likeliest one, given the prior.

        A view without partner costs as much as one at the gate.
        """
        prior = np.linalg.inv(self.covariance[:3, :3])
        # Pairs of views with few candidates first: they mislead least.
        counts = np.bincount(views)[views]
        order = np.lexsort((np.arange(len(views)), np.einsum('ki,ij,kj->k', differences, prior, differences), counts))
        offsets = np.vstack([np.zeros(3), differences[order[:_HYPOTHESES]]])  # (H, 3)
        precisions = np.linalg.inv(covariances * self._rotation_slack(points, covariances)[:, None, None])
        residuals = differences[None] - offsets[:, None]  # (H, K, 3)
        distances = np.einsum('hki,kij,hkj->hk', residuals, precisions, residuals)
        gains = np.maximum(self._gate**2 - distances, 0.0)
        starts = np.flatnonzero(np.diff(views, prepend=-1))  # pairs come view by view
        scores = np.maximum.reduceat(gains, starts, axis=1).sum(axis=1) - np.einsum(
            'hi,ij,hj->h', offsets, prior, offsets
        )
        return np.asarray(offsets[int(scores.argmax())])

    def _rotation_slack(self, points: Array, covariances: Array) -> Array:
        """By how much the unknown rotation widens each pair's variance, (K,), 1 for not at all."""
        jacobians = self._jacobians(points)[:, :, 3:]
        added = np.einsum('kij,jl,kil->k', jacobians, self.covariance[3:, 3:], jacobians)
        return np.asarray(1.0 + added / np.einsum('kii->k', covariances))

    def _update(self, points: Array, known: Array, covariances: Array) -> None:
        """Gauss-Newton on the pose with the prediction as prior, robust against wrong pairs (Huber)."""
        assert self._told is not None
        prior_pose = self.pose
        moved = points
        prior = np.linalg.inv(self.covariance + 1e-18 * np.eye(6))
        pull = np.diag(self._pull)
        precisions = np.linalg.inv(covariances)
        for iteration in range(_ITERATIONS if len(points) else 1):
            if iteration:
                moved = (self.pose @ prior_pose.inverse()).apply(points)
            residuals = known - moved
            distances = np.sqrt(np.einsum('ki,kij,kj->k', residuals, precisions, residuals))
            weights = np.minimum(1.0, 0.5 * self._gate / np.maximum(distances, 1e-12))
            jacobians = self._jacobians(moved)
            weighted = jacobians.transpose(0, 2, 1) @ (precisions * weights[:, None, None])  # (K, 6, 3)
            information = prior + pull + (weighted @ jacobians).sum(axis=0)
            gradient = (
                (weighted @ residuals[:, :, None]).sum(axis=0)[:, 0]
                - prior @ self._difference(prior_pose)
                - pull @ self._difference(self._told)
            )
            step = np.linalg.solve(information, gradient)
            rotation = Rotation.from_rotvec(step[3:]) * Rotation.from_matrix(self.pose.rotation)
            self.pose = SE3(rotation.as_matrix(), self.pose.translation + step[:3])
        covariance = np.linalg.inv(information)
        self.covariance = 0.5 * (covariance + covariance.T)

    def _difference(self, other: SE3) -> Array:
        """The state that leads from `other` to the pose, (6,)."""
        turn = Rotation.from_matrix(self.pose.rotation @ other.rotation.T).as_rotvec()
        return np.concatenate([self.pose.translation - other.translation, turn])

    def _jacobians(self, points: Array) -> Array:
        """Of points in the map by the state, (N, 3, 6)."""
        jacobians = np.zeros((len(points), 3, 6))
        jacobians[:, :, :3] = np.eye(3)
        jacobians[:, :, 3:] = -cross_matrix(points - self.pose.translation)
        return jacobians


def cross_matrix(vectors: Array) -> Array:
    """[v]x with [v]x w = v x w, (N, 3, 3) of (N, 3)."""
    matrices = np.zeros((len(vectors), 3, 3))
    x, y, z = vectors.T
    matrices[:, 0, 1], matrices[:, 0, 2], matrices[:, 1, 2] = -z, y, -x
    matrices[:, 1, 0], matrices[:, 2, 0], matrices[:, 2, 1] = z, -y, x
    return matrices


def _best_pairs(distances: Array, views: Integers, limit: float) -> Integers:
    """Of each view the nearest pair, where it lies within `limit`."""
    order = np.lexsort((distances, views))
    first = order[np.flatnonzero(np.diff(views[order], prepend=-1))]
    return np.asarray(np.sort(first[distances[first] <= limit]))
