"""What one would use instead of a network: the yardsticks of `cmml evaluate`."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize

from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.transforms import SE3

_SCALES_PX = (2.0, 4.0, 8.0)
_BINS = 16
_NID_POINTS = 8000
_NID_STEPS = 400


def find_dark_blobs(image: NDArray[np.uint8], min_diameter_px: float = 3.0) -> list[InstanceMask]:
    """Dark blobs of a picture (H, W, 3), by the Laplacian of Gaussians and Otsu's threshold."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    response = np.max([scale**2 * ndimage.gaussian_laplace(grey, scale) for scale in _SCALES_PX], axis=0)
    scaled = np.clip(255.0 * response / max(float(response.max()), 1e-6), 0.0, 255.0).astype(np.uint8)
    _, blobs = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    labels, _ = ndimage.label(blobs)
    masks = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        coverage = (labels[box] == index).astype(np.float32)
        strength = float(scaled[box][coverage > 0].mean()) / 255.0
        mask = InstanceMask(coverage, box[1].start, box[0].start, strength)
        if mask.equivalent_diameter_px >= min_diameter_px:
            masks.append(mask)
    return masks


def register_by_information(
    image: NDArray[np.uint8], camera: Camera, cloud: Cloud, T_camera_lidar: SE3, rng: np.random.Generator
) -> SE3:
    """T_camera_lidar, from a given one, that minimises the normalised information distance of grey value and intensity.

    Pandey, McBride, Savarese and Eustice, AAAI 2012; Koide et al., ICRA 2023; Nelder and Mead's method. The cloud needs
    intensity.
    """
    assert cloud.intensity is not None
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (0, 0), 2.0)
    chosen = rng.choice(len(cloud), min(_NID_POINTS, len(cloud)), replace=False)
    points = cloud.points[chosen]
    signal = _to_bins(cloud.intensity[chosen].astype(np.float64))
    brightness = _to_bins(grey.ravel().astype(np.float64)).reshape(grey.shape)
    scale = np.array([0.02, 0.02, 0.02, 0.01, 0.01, 0.01])

    def distance(step: NDArray[np.float64]) -> float:
        moved = SE3.from_rotation_vector(step[:3] * scale[:3], step[3:] * scale[3:]) @ T_camera_lidar
        pixels, seen = camera.project(moved.apply(points))
        if seen.sum() < 0.2 * len(points):
            return 1.0
        column, row = np.rint(pixels[seen]).astype(np.intp).T
        row, column = np.clip(row, 0, camera.height - 1), np.clip(column, 0, camera.width - 1)
        joint = np.bincount(signal[seen] * _BINS + brightness[row, column], minlength=_BINS**2) / seen.sum()
        both = _entropy(joint)
        first, second = (_entropy(joint.reshape(_BINS, _BINS).sum(axis=axis)) for axis in (0, 1))
        return 2.0 - (first + second) / max(both, 1e-9)

    simplex = np.vstack([np.zeros(6), np.eye(6)])
    found = minimize(
        distance, np.zeros(6), method='Nelder-Mead', options={'maxfev': _NID_STEPS, 'initial_simplex': simplex}
    )
    return SE3.from_rotation_vector(found.x[:3] * scale[:3], found.x[3:] * scale[3:]) @ T_camera_lidar


def _to_bins(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Ranks in equally filled bins: neither exposure nor the unit of the intensity matters."""
    edges = np.quantile(values, np.linspace(0.0, 1.0, _BINS + 1)[1:-1])
    return np.asarray(np.searchsorted(edges, values), np.intp)


def _entropy(probabilities: NDArray[np.float64]) -> float:
    positive = probabilities[probabilities > 0.0]
    return -float((positive * np.log(positive)).sum()) if len(positive) else math.nan
