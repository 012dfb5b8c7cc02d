"""Registration far from home: one camera image and one LiDAR sweep of a street, from 2 degrees off the given extrinsic.

    python benchmarks/street_pair.py DIR [--model small] [--trials 10]

DIR: 0.png, 0.pcd, center_camera-intrinsic.json and top_center_lidar-to-center_camera-extrinsic.json, as in
PJLab-ADG/SensorsCalibration, lidar2camera/manual_calib (Apache-2.0). Prints how far each trial ends from the given
extrinsic.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import cv2
import numpy as np

from cmml_ros.config import DetectionConfig, RegistrationConfig
from cmml_ros.errors import PoseError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.model.registration import Registrar
from cmml_ros.model.runtime import Segmenter

_TURN_DEG = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--model', default='small')
    parser.add_argument('--trials', type=int, default=10)
    options = parser.parse_args()
    intrinsic = json.loads((options.folder / 'center_camera-intrinsic.json').read_text())
    about = intrinsic['center_camera-intrinsic']['param']
    K = np.array(about['cam_K']['data'])
    distortion = (*about['cam_dist']['data'][0], 0.0)
    camera = Camera(
        about['img_dist_w'], about['img_dist_h'], K[0, 0], K[1, 1], K[0, 2], K[1, 2], 'plumb_bob', distortion
    )
    name = 'top_center_lidar-to-center_camera-extrinsic'
    calibration = json.loads((options.folder / f'{name}.json').read_text())[name]['param']['sensor_calib']
    T_given = SE3.from_matrix(np.array(calibration['data']))
    image = cv2.imread(str(options.folder / '0.png'))
    rows = np.loadtxt(options.folder / '0.pcd', skiprows=11)
    rows = rows[np.isfinite(rows).all(axis=1)]
    _, seen = camera.project(T_given.apply(rows[:, :3]))
    cloud = Cloud(rows[:, :3], rows[:, 3].astype(np.float32))

    registrar = Registrar(Segmenter(DetectionConfig(model=options.model)).matcher, RegistrationConfig())
    rng = np.random.default_rng(1)
    closer = 0
    print(f'{int(seen.sum())} of {len(rows)} points in the picture')
    for trial in range(options.trials):
        axis = rng.standard_normal(3)
        wrong = SE3.from_rotation_vector(axis / np.linalg.norm(axis) * math.radians(_TURN_DEG), np.zeros(3)) @ T_given
        try:
            found = registrar.refine(image, camera, cloud, wrong)
        except PoseError as error:
            print(f'{trial}: refused: {error}')
            continue
        left = found.T_camera_lidar @ T_given.inverse()
        turned = math.degrees(float(np.linalg.norm(left.rotation_vector)))
        closer += turned < _TURN_DEG
        print(f'{trial}: {turned:.2f} degrees and {np.linalg.norm(left.translation):.3f} m from the given extrinsic')
    print(f'closer than at the start: {closer} of {options.trials}')


if __name__ == '__main__':
    main()
