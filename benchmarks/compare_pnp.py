"""PoseLib against OpenCV on the matches of the network: which pose is nearer to the truth, and which comes sooner.

python benchmarks/compare_pnp.py [--frames 8] [--seed 5100]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np

from cmml_ros.config import InspectorConfig
from cmml_ros.evaluation.network import TestFrame, make_frames
from cmml_ros.geometry.transforms import SE3
from cmml_ros.model.pose import estimate_pose
from cmml_ros.model.registration import Registrar
from cmml_ros.model.runtime import Segmenter

_TOLERANCE_PX = 5.0
_WRONG = SE3.from_rotation_vector((0.02, -0.035, 0.04), (0.015, 0.02, -0.01))


def _opencv(points: np.ndarray, pixels: np.ndarray, frame: TestFrame) -> SE3:
    camera = frame.camera
    distortion = np.array(camera.distortion)
    _, turn, shift, inliers = cv2.solvePnPRansac(
        points,
        pixels,
        camera.matrix,
        distortion,
        reprojectionError=_TOLERANCE_PX,
        iterationsCount=1000,
        confidence=0.9999,
    )
    inside = inliers[:, 0]
    turn, shift = cv2.solvePnPRefineLM(points[inside], pixels[inside], camera.matrix, distortion, turn, shift)
    return SE3.from_rotation_vector(turn[:, 0], shift[:, 0])


def _poselib(points: np.ndarray, pixels: np.ndarray, frame: TestFrame) -> SE3:
    return estimate_pose(points, pixels, frame.camera, _TOLERANCE_PX).T_camera_points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--frames', type=int, default=8)
    parser.add_argument('--seed', type=int, default=5100)
    options = parser.parse_args()
    config = InspectorConfig()
    registrar = Registrar(Segmenter(config.detection).matcher, config.registration)
    print('| matches of | wrong ones added | solver | median point error | largest | median CPU time |')
    print('|---' * 6 + '|')
    for sensor in ('depth_camera', 'tof_lidar'):
        views = make_frames(sensor, options.frames, options.seed, 'fast')
        found = [registrar.refine(v.image, v.camera, v.cloud, _WRONG @ v.T_camera_lidar) for v in views]
        for wrong in (0.0, 0.6):
            for name, solve in (('PoseLib', _poselib), ('OpenCV', _opencv)):
                print(f'| {sensor} | {wrong:.0%} | {name} | {_score(solve, views, found, wrong)} |')


def _score(solve: Callable[..., SE3], views: list[TestFrame], found: list, wrong: float) -> str:
    errors_mm, times_s = [], []
    for number, (view, registration) in enumerate(zip(views, found, strict=True)):
        rng = np.random.default_rng(number)
        points, pixels = view.cloud.points[registration.matched_points], registration.matched_pixels.copy()
        spoilt = rng.random(len(pixels)) < wrong
        pixels[spoilt] = rng.uniform((0, 0), (view.camera.width - 1, view.camera.height - 1), (int(spoilt.sum()), 2))
        started = time.process_time()
        T_camera_lidar = solve(points, pixels, view)
        times_s.append(time.process_time() - started)
        off = T_camera_lidar.apply(view.cloud.points) - view.T_camera_lidar.apply(view.cloud.points)
        errors_mm.append(1e3 * float(np.sqrt((off**2).sum(axis=1).mean())))
    return (
        f'{statistics.median(errors_mm):.2f} mm | {max(errors_mm):.2f} mm | {1e3 * statistics.median(times_s):.0f} ms'
    )


if __name__ == '__main__':
    main()
