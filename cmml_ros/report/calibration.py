"""How camera and range sensor were calibrated, and whether the data agree, in words and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cmml_ros.calibration import CalibrationCheck, CalibrationStatus
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3

Array = NDArray[np.float64]

STATUS_WORDS = {
    CalibrationStatus.NOT_CHECKED: 'not checked against the data',
    CalibrationStatus.CONSISTENT: 'the data agree with it',
    CalibrationStatus.DRIFTED: 'the data contradict it',
    CalibrationStatus.DEGENERATE: 'the data could not tell',
    CalibrationStatus.NO_TRANSFORM: 'nothing to check it against',
}
_SOURCES = {
    'tf': 'as told by /tf',
    'refine': 'as told by /tf, corrected from the data',
    'match': 'found from the data',
}
# Of several findings the one that people must know of.
_RANKS = {
    CalibrationStatus.NOT_CHECKED: 0,
    CalibrationStatus.NO_TRANSFORM: 1,
    CalibrationStatus.DEGENERATE: 2,
    CalibrationStatus.CONSISTENT: 4,
    CalibrationStatus.DRIFTED: 5,
}
_RANK_OF_DOUBT = 3
_COEFFICIENTS = ('k1', 'k2', 'p1', 'p2', 'k3', 'k4', 'k5', 'k6')
_FISHEYE_COEFFICIENTS = ('k1', 'k2', 'k3', 'k4')


@dataclass(frozen=True, eq=False)
class Calibration:
    """The calibration that an analysis used. T_camera_lidar: of its last frame with points, None when there is none."""

    camera: Camera
    T_camera_lidar: SE3 | None
    check: CalibrationCheck

    @classmethod
    def after(
        cls, earlier: Calibration | None, camera: Camera, T_camera_lidar: SE3 | None, check: CalibrationCheck
    ) -> Calibration:
        """`earlier`, None for nothing, and what the next frame tells: its camera and extrinsic, the graver finding."""
        if earlier is None:
            return cls(camera, T_camera_lidar, check)
        graver = _rank(check) >= _rank(earlier.check)
        return cls(
            camera,
            earlier.T_camera_lidar if T_camera_lidar is None else T_camera_lidar,
            check if graver else earlier.check,
        )

    def headline(self, mode: str) -> str:
        """Lens, source of the extrinsic, and whether the data agree with it; mode: the setting registration.mode."""
        extrinsic = 'no extrinsic' if self.T_camera_lidar is None else f'extrinsic {_SOURCES[mode]}'
        return f'{self.camera.model} lens; {extrinsic}; {_describe(self.check)}'

    def lines(self, mode: str) -> list[tuple[str, str]]:
        """What and how much, for people; mode: as in `headline`."""
        camera, check = self.camera, self.check
        names = _FISHEYE_COEFFICIENTS if camera.model == 'equidistant' else _COEFFICIENTS
        distortion = [f'{name} {value:g}' for name, value in zip(names, camera.distortion, strict=False)]
        lines = [
            ('camera model', f'{camera.model}, {camera.width} × {camera.height} px'),
            ('focal lengths', f'{camera.fx:.2f}, {camera.fy:.2f} px'),
            ('principal point', f'{camera.cx:.2f}, {camera.cy:.2f} px'),
            ('distortion', ', '.join(distortion).replace('-', '−') or 'none'),
        ]
        if self.T_camera_lidar is not None:
            turn_deg = np.degrees(Rotation.from_matrix(self.T_camera_lidar.rotation).as_rotvec())
            lines += [
                ('range sensor in the camera frame', f'{_SOURCES[mode]}: T_camera_lidar'),
                ('its place', f'{_vector(1e3 * self.T_camera_lidar.translation, 1)} mm'),
                ('its turn (rotation vector)', f'{_vector(turn_deg, 2)}°'),
            ]
        lines.append(('check against the data', ': '.join(filter(None, (_describe(check), check.reason)))))
        if np.isfinite(check.correction).all():
            turn, move = np.split(check.correction, 2)
            turn_std, move_std = np.split(check.std, 2)
            lines += [
                ('found turn', f'{_vector(np.degrees(turn), 3, np.degrees(turn_std))}°'),
                ('found shift', f'{_vector(1e3 * move, 2, 1e3 * move_std)} mm'),
            ]
        if check.match_count:
            lines.append(('matches', f'{check.match_count}, {100 * check.inlier_ratio:.0f} % of them agree'))
        return lines

    def document(self) -> dict[str, Any]:
        """For `summary.json`."""
        camera, check, extrinsic = self.camera, self.check, self.T_camera_lidar
        return {
            'camera': {
                'model': camera.model,
                'size_px': [camera.width, camera.height],
                'k': camera.matrix.ravel().tolist(),
                'd': list(camera.distortion),
            },
            'T_camera_lidar': None
            if extrinsic is None
            else {
                'translation_m': extrinsic.translation.tolist(),
                'rotation_xyzw': Rotation.from_matrix(extrinsic.rotation).as_quat().tolist(),
            },
            'check': {
                'status': check.status.name,
                'reason': check.reason,
                'correction_rad_m': _known(check.correction),
                'std_rad_m': _known(check.std),
                'matches': check.match_count,
                'inlier_ratio': None if math.isnan(check.inlier_ratio) else check.inlier_ratio,
            },
        }


def _rank(check: CalibrationCheck) -> int:
    return _RANK_OF_DOUBT if check.in_doubt else _RANKS[check.status]


def _describe(check: CalibrationCheck) -> str:
    return 'the data doubt it' if check.in_doubt else STATUS_WORDS[check.status]


def _vector(values: Array, digits: int, stds: Array | None = None) -> str:
    texts = [f'{value:.{digits}f}' for value in (values.round(digits) + 0.0).tolist()]
    if stds is not None:
        texts = [f'{text} ± {std:.{digits}f}' for text, std in zip(texts, stds.tolist(), strict=True)]
    return '(' + ', '.join(texts).replace('-', '−') + ')'


def _known(values: Array) -> list[float] | None:
    return values.tolist() if np.isfinite(values).all() else None
