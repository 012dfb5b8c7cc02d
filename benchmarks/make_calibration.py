"""The pictures that set the ranges of the 8-bit network: writes cmml_ros/model/weights/calibration.npz.

    python benchmarks/make_calibration.py

They are views of simulated walls at full and at a quarter of their resolution, with a depth camera, with a LiDAR and
alone. They do not depend on the weights: nothing is to be done when those change.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

from cmml_ros.evaluation.network import make_frames
from cmml_ros.geometry.cloud import project_cloud
from cmml_ros.model.checkpoint import CALIBRATION
from cmml_ros.model.range_features import range_features

# Neither training nor evaluation has it.
SEED = 424242
SIDE = 320


def main() -> int:
    """Write the file."""
    pictures, maps = [], []
    for sensor in ('depth_camera', 'tof_lidar'):
        for number, frame in enumerate(make_frames(sensor, 4, SEED, 'fast')):
            image = frame.image
            projected = project_cloud(frame.cloud, frame.camera, frame.T_camera_lidar)
            pixels, depths_m = projected.pixels, projected.points_camera[:, 2]
            if number == 3:
                image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
                pixels = (pixels + 0.5) / 2.0 - 0.5
            height, width = image.shape[:2]
            its_maps = range_features(pixels, depths_m, height, width) * (number != 1)
            top, left = 2 * ((height - SIDE) // 4), 2 * ((width - SIDE) // 4)
            _, picture = cv2.imencode(
                '.jpg', image[top : top + SIDE, left : left + SIDE], [cv2.IMWRITE_JPEG_QUALITY, 92]
            )
            pictures.append(picture)
            window = (slice(top // 2, (top + SIDE) // 2), slice(left // 2, (left + SIDE) // 2))
            maps.append(its_maps[(slice(None), *window)].astype(np.float16))
    named = {f'picture_{number}': picture for number, picture in enumerate(pictures)}
    np.savez_compressed(CALIBRATION, range_maps=np.stack(maps), **named)
    print(f'{CALIBRATION}: {CALIBRATION.stat().st_size / 1e6:.2f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
