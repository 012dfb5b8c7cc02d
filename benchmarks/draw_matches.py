"""The picture of docs/network.md: points laid on a picture by a wrong extrinsic, their matches, and after registration.

python benchmarks/draw_matches.py [--out docs/images/matches.jpg] [--sensor depth_camera] [--seed 5]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from cmml_ros.config import InspectorConfig
from cmml_ros.geometry.transforms import SE3
from cmml_ros.model.registration import Registrar
from cmml_ros.model.runtime import Segmenter
from cmml_ros.simulation.scenario import Scenario

_WRONG = SE3.from_rotation_vector((0.02, -0.035, 0.04), (0.015, 0.02, -0.01))
_DRAWN = 60


def _lay(image: np.ndarray, pixels: np.ndarray, seen: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    """The picture with the intensity of the points over every other strip of it."""
    column, row = np.rint(pixels[seen]).astype(int).T
    low, high = np.quantile(intensity, [0.02, 0.98])
    grey = (255.0 * np.clip((intensity[seen] - low) / (high - low), 0.0, 1.0)).astype(np.uint8)
    colours = cv2.applyColorMap(grey[:, None], cv2.COLORMAP_VIRIDIS)[:, 0]
    drawn = image.copy()
    for u, v, colour in zip(column, row, colours.tolist(), strict=True):
        if (u // 160) % 2:
            cv2.circle(drawn, (int(u), int(v)), 3, colour, -1)
    return drawn


def _title(picture: np.ndarray, text: str) -> np.ndarray:
    bar = np.full((44, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (12, 31), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (30, 30, 30), 2, cv2.LINE_AA)
    return np.vstack([bar, picture])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('docs/images/matches.jpg'))
    parser.add_argument('--sensor', default='depth_camera')
    parser.add_argument('--seed', type=int, default=5)
    options = parser.parse_args()
    config = InspectorConfig()
    registrar = Registrar(Segmenter(config.detection).matcher, config.registration)
    scenario = Scenario(sensor_name=options.sensor, seed=options.seed)
    frame = scenario.frame(20)
    image, cloud, camera = frame.rendering.image, frame.cloud, scenario.camera
    T_wrong = _WRONG @ frame.T_map_camera.inverse() @ scenario.camera_pose(frame.cloud_stamp_ns) @ scenario.extrinsic
    found = registrar.refine(image, camera, cloud, T_wrong)

    panels = []
    for T_camera_lidar, text in (
        (T_wrong, 'strips: intensity of the points through a wrong extrinsic (2.9 degrees, 27 mm)'),
        (found.T_camera_lidar, 'the same points after registration'),
    ):
        pixels, seen = camera.project(T_camera_lidar.apply(cloud.points))
        panels.append(_title(_lay(image, pixels, seen, cloud.intensity), text))
    before, _ = camera.project(T_wrong.apply(cloud.points[found.matched_points]))
    drawn = image.copy()
    for index in np.linspace(0, len(before) - 1, _DRAWN).astype(int):
        start, end = (tuple(int(x) for x in np.rint(pixels[index])) for pixels in (before, found.matched_pixels))
        cv2.arrowedLine(drawn, start, end, (40, 160, 255), 2, cv2.LINE_AA, tipLength=0.15)
    panels.insert(1, _title(drawn, f'{_DRAWN} of {found.match_count} matches: from where a point was believed to be'))
    cv2.imwrite(str(options.out), cv2.resize(np.vstack(panels), None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA))


if __name__ == '__main__':
    main()
