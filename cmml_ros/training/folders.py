"""Own labelled pictures as training views: images/, labels/, depths/ or clouds/, and intrinsics.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmml_ros.errors import ConfigError, ShapeError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud, project_cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.training.views import TrainingView, write_view

_PICTURES = ('.png', '.jpg', '.jpeg')
_CLOUDS = ('.ply', '.pcd')
# A camera that can see airholes stands nearer than this to the wall: what is beyond has another unit.
_DEPTH_RANGE_M = (0.02, 20.0)
_INPAINT_PX = 5
_GAMMA = 2.2


def import_folder(folder: Path, out: Path) -> list[Path]:
    """Files of one training view per picture of `folder`, in `out`; those made of the same files before are kept.

    images/NAME.png or .jpg; labels/NAME.png: 0 or black for sound concrete, else the number or the colour of the
    airhole (a mask of one value is parted into its blobs); depths/NAME.png: 16 bits, along the optical axis, in units
    of `depth_unit_m` of intrinsics.json, 0 for unknown; or clouds/NAME.ply or .pcd: points in metres in the camera's
    frame, or in that of `T_camera_lidar` (4x4) of intrinsics.json. Pictures without depth teach without range. The
    concrete under an airhole is guessed from around it, so that what was labelled can be laid on other concrete.
    Raises ConfigError for a picture without label, other sizes, depths in a wrong unit, clouds beside the picture, or
    files that cannot be read.
    """
    images = sorted(path for path in (folder / 'images').glob('*') if path.suffix.lower() in _PICTURES)
    if not images:
        raise ConfigError(f'{folder / "images"}: no pictures ({", ".join(_PICTURES)}) in it')
    out.mkdir(parents=True, exist_ok=True)
    about = _read_intrinsics(folder / 'intrinsics.json')
    paths = []
    for path in images:
        target = out / f'{path.stem}_{_digest(folder, path)}.npz'
        if not target.exists():
            write_view(target, _read_view(folder, path, about))
        paths.append(target)
    return paths


def _digest(folder: Path, path: Path) -> str:
    """Of all that a view is made of: what is labelled anew, or added in between, is not taken for what was there."""
    digest = hashlib.sha256()
    sources = [path, folder / 'labels' / f'{path.stem}.png', folder / 'intrinsics.json']
    sources += [folder / 'depths' / f'{path.stem}.png', *(folder / 'clouds' / f'{path.stem}{one}' for one in _CLOUDS)]
    for source in sources:
        data = source.read_bytes() if source.is_file() else b''
        digest.update(len(data).to_bytes(8, 'big') + data)
    return digest.hexdigest()[:12]


def _read_view(folder: Path, path: Path, about: dict[str, object]) -> TrainingView:
    picture = _read(path, cv2.IMREAD_COLOR)
    label_path = folder / 'labels' / f'{path.stem}.png'
    if not label_path.exists():
        raise ConfigError(f'{path}: no label; expected {label_path} (all zero where there is no airhole)')
    ids = _read_label(label_path)
    if ids.shape != picture.shape[:2]:
        raise ConfigError(f'{label_path}: {ids.shape[1]}x{ids.shape[0]}, but its picture has {_size(picture)}')
    inside = (ids > 0).astype(np.uint8)
    around = cv2.dilate(inside, np.ones((5, 5), np.uint8))
    sound = cv2.inpaint(picture, around, _INPAINT_PX, cv2.INPAINT_TELEA)
    albedo = (sound.astype(np.float32) / 255.0) ** _GAMMA
    shading = (picture.astype(np.float32) / 255.0) ** _GAMMA / np.maximum(albedo, 1e-3)
    return TrainingView(
        shading=np.asarray(shading, np.float32),
        albedo=np.asarray(albedo, np.float32),
        coverage=inside.astype(np.float32),
        ids=ids.astype(np.int32),
        depth_m=_read_depth(folder, path, picture, about),
    )


def _read_label(path: Path) -> NDArray[Any]:
    """(H, W) number of the airhole, 0 for sound concrete."""
    label = _read(path, cv2.IMREAD_UNCHANGED)
    if label.ndim == 3:
        # Of a palette only the colours are read; how opaque a pixel is says nothing.
        colors = label[:, :, :3].reshape(-1, 3)
        weights = np.array([1, 2**16, 2**32], np.int64)  # black is 0
        _, numbers = np.unique(np.append(colors.astype(np.int64) @ weights, 0), return_inverse=True)
        label = numbers[:-1].reshape(label.shape[:2])
    if len(np.unique(label[label > 0])) == 1:
        label, _ = ndimage.label(label)
    return label


def _read_depth(folder: Path, path: Path, picture: NDArray[np.uint8], about: dict[str, object]) -> NDArray[np.float32]:
    """(H, W) metres, NaN as a whole where nothing tells."""
    depth_path = folder / 'depths' / f'{path.stem}.png'
    if depth_path.exists():
        unit_m = about.get('depth_unit_m')
        if not isinstance(unit_m, int | float):
            raise ConfigError(f'{folder / "intrinsics.json"}: no "depth_unit_m" (0.001 for millimetres) for depths/')
        raw = _read(depth_path, cv2.IMREAD_UNCHANGED)
        if raw.shape != picture.shape[:2]:
            raise ConfigError(
                f'{depth_path}: {_size(raw)}, but its picture has {_size(picture)}, and one channel is needed'
            )
        known, depth_m = raw > 0, raw.astype(np.float32) * np.float32(unit_m)
    else:
        found = [item for suffix in _CLOUDS if (item := folder / 'clouds' / f'{path.stem}{suffix}').exists()]
        if not found:
            return np.full(picture.shape[:2], np.nan, np.float32)
        depth_path = found[0]
        depth_m = _project(depth_path, picture, about, folder)
        known = depth_m > 0.0
        if not known.any():
            raise ConfigError(f'{depth_path}: no point lies in the picture; check T_camera_lidar and fx, fy, cx, cy')
    if not known.any():
        return np.full(picture.shape[:2], np.nan, np.float32)
    typical_m = float(np.median(depth_m[known]))
    if not _DEPTH_RANGE_M[0] <= typical_m <= _DEPTH_RANGE_M[1]:
        raise ConfigError(f'{depth_path}: a median depth of {typical_m:g} m; check the unit in intrinsics.json')
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(depth_m[tuple(nearest)], np.float32)


def _project(path: Path, picture: NDArray[np.uint8], about: dict[str, object], folder: Path) -> NDArray[np.float32]:
    import open3d as o3d

    points = np.asarray(o3d.io.read_point_cloud(path).points)
    if len(points) == 0:
        raise ConfigError(f'{path}: no points can be read from it')
    try:
        fx, fy, cx, cy = (float(str(about[name])) for name in ('fx', 'fy', 'cx', 'cy'))
        camera = Camera(picture.shape[1], picture.shape[0], fx, fy, cx, cy)
        T_camera_lidar = SE3.from_matrix(np.array(about.get('T_camera_lidar', np.eye(4)), np.float64))
    except KeyError as error:
        raise ConfigError(f'{folder / "intrinsics.json"}: no {error} for clouds/') from None
    except (ValueError, TypeError, ShapeError) as error:
        raise ConfigError(f'{folder / "intrinsics.json"}: {error}; numbers are needed for clouds/') from None
    seen = project_cloud(Cloud(points[np.isfinite(points).all(axis=1)]), camera, T_camera_lidar)
    depth_m = np.zeros(picture.shape[:2], np.float32)
    column, row = np.rint(seen.pixels).astype(np.intp).T
    depth_m[np.clip(row, 0, camera.height - 1), np.clip(column, 0, camera.width - 1)] = seen.points_camera[:, 2]
    return depth_m


def _read_intrinsics(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path}: cannot be read as JSON ({error})') from None
    if not isinstance(about, dict):
        raise ConfigError(f'{path}: expected an object with fx, fy, cx, cy, depth_unit_m')
    return about


def _read(path: Path, flags: int) -> NDArray[Any]:
    picture = cv2.imread(str(path), flags)
    if picture is None or (path.suffix.lower() in ('.jpg', '.jpeg') and _is_cut(path.read_bytes())):
        raise ConfigError(f'{path}: cannot be read as a picture; remove or replace it')
    return np.asarray(picture)


def _is_cut(jpeg: bytes) -> bool:
    """Whether the scan of a JPEG picture has no end, which is read as grey."""
    return jpeg.rfind(b'\xff\xd9') < jpeg.rfind(b'\xff\xda')


def _size(picture: NDArray[Any]) -> str:
    return f'{picture.shape[1]}x{picture.shape[0]}'
