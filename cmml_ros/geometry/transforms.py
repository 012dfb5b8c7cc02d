"""Rigid transforms, named `T_target_source`: `points_target = T_target_source.apply(points_source)`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation, Slerp

from cmml_ros.errors import ShapeError

Array = NDArray[np.float64]

_IDENTITY = np.eye(3)
_TOLERANCE = 1e-6 + 1e-5 * _IDENTITY


@dataclass(frozen=True, eq=False)
class SE3:
    """A rotation (3, 3) followed by a translation (3,), metres."""

    rotation: Array
    translation: Array

    def __post_init__(self) -> None:
        # Copies: what scipy returns holds on to ten times as much, and a buffer keeps many thousands of these.
        rotation = np.array(self.rotation, dtype=np.float64)
        translation = np.array(self.translation, dtype=np.float64)
        if rotation.shape != (3, 3) or translation.shape != (3,):
            raise ShapeError(f'SE3 needs (3, 3) and (3,), got {rotation.shape} and {translation.shape}')
        if not (np.isfinite(rotation).all() and np.isfinite(translation).all()):
            raise ShapeError('SE3 must be finite')
        # np.allclose and np.linalg.det would take most of the time that a transform on /tf costs.
        if (np.abs(rotation @ rotation.T - _IDENTITY) > _TOLERANCE).any() or _determinant(rotation) < 0:
            raise ShapeError('SE3 needs a proper rotation matrix (orthonormal, determinant 1)')
        object.__setattr__(self, 'rotation', rotation)
        object.__setattr__(self, 'translation', translation)

    @classmethod
    def identity(cls) -> SE3:
        """The transform that changes nothing."""
        return cls(np.eye(3), np.zeros(3))

    @classmethod
    def from_quaternion(cls, quaternion_xyzw: ArrayLike, translation: ArrayLike) -> SE3:
        """From a quaternion in ROS order (x, y, z, w), of any length but zero."""
        quaternion = np.asarray(quaternion_xyzw, dtype=np.float64)
        if quaternion.shape != (4,):
            raise ShapeError(f'a quaternion has 4 numbers, got {quaternion.shape}')
        with np.errstate(over='ignore'):
            length = float(np.linalg.norm(quaternion))
        if not 1e-9 < length < np.inf:
            raise ShapeError(f'a quaternion must be finite and not zero, got {quaternion.tolist()}')
        rotation = Rotation.from_quat(quaternion / length).as_matrix()
        return cls(rotation, np.asarray(translation, dtype=np.float64))

    @classmethod
    def from_matrix(cls, matrix: ArrayLike) -> SE3:
        """From a homogeneous (4, 4) matrix."""
        homogeneous = np.asarray(matrix, dtype=np.float64)
        if homogeneous.shape != (4, 4):
            raise ShapeError(f'a homogeneous matrix is (4, 4), got {homogeneous.shape}')
        return cls(homogeneous[:3, :3], homogeneous[:3, 3])

    @classmethod
    def from_rotation_vector(cls, rotation_vector: ArrayLike, translation: ArrayLike) -> SE3:
        """From axis times angle, radians."""
        rotation = Rotation.from_rotvec(np.asarray(rotation_vector, dtype=np.float64)).as_matrix()
        return cls(rotation, np.asarray(translation, dtype=np.float64))

    @property
    def matrix(self) -> Array:
        """Homogeneous (4, 4) matrix."""
        homogeneous = np.eye(4)
        homogeneous[:3, :3] = self.rotation
        homogeneous[:3, 3] = self.translation
        return homogeneous

    @property
    def quaternion_xyzw(self) -> Array:
        """Unit quaternion in ROS order (x, y, z, w), w not negative."""
        quaternion = np.asarray(Rotation.from_matrix(self.rotation).as_quat())
        return -quaternion if quaternion[3] < 0 else quaternion

    @property
    def rotation_vector(self) -> Array:
        """Axis times angle, radians, (3,)."""
        return np.asarray(Rotation.from_matrix(self.rotation).as_rotvec())

    def inverse(self) -> SE3:
        """T_source_target."""
        return SE3(self.rotation.T, -self.rotation.T @ self.translation)

    def __matmul__(self, other: SE3) -> SE3:
        """T_a_c = T_a_b @ T_b_c."""
        return SE3(self.rotation @ other.rotation, self.rotation @ other.translation + self.translation)

    def apply(self, points: ArrayLike) -> Array:
        """`points`, (3,) or (N, 3), in the target frame."""
        source = np.asarray(points, dtype=np.float64)
        if source.ndim not in (1, 2) or source.shape[-1] != 3:
            raise ShapeError(f'points must be (3,) or (N, 3), got {source.shape}')
        target: Array = source @ self.rotation.T + self.translation
        return target

    def interpolate(self, other: SE3, fraction: float) -> SE3:
        """Between self (0) and other (1): slerp of the rotation, linear in the translation."""
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f'fraction must be in [0, 1], got {fraction}')
        ends = Rotation.from_matrix(np.stack([self.rotation, other.rotation]))
        rotation = Slerp([0.0, 1.0], ends)(fraction).as_matrix()
        return SE3(rotation, (1.0 - fraction) * self.translation + fraction * other.translation)


def _determinant(matrix: Array) -> float:
    """Of a (3, 3) matrix."""
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    return float(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
