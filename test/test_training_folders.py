import json
from pathlib import Path

import cv2
import numpy as np
import open3d as o3d
import pytest
from numpy.typing import NDArray

from cmml_ros.errors import ConfigError
from cmml_ros.training.dataset import CropDataset, DataConfig, MatchConfig, PairDataset
from cmml_ros.training.folders import import_folder
from cmml_ros.training.views import load_view


def make_folder(root: Path, *, depth_unit_m: float | None = 0.0001, depth: bool = True) -> Path:
    """A grey wall of 160x120 with two dark airholes, half a metre away and 5 mm deep."""
    for name in ('images', 'labels', 'depths'):
        (root / name).mkdir(parents=True)
    picture = np.full((120, 160, 3), 150, np.uint8)
    label, depth_m = np.zeros((120, 160), np.uint16), np.full((120, 160), 0.5)
    for number, (u, v) in enumerate(((50, 60), (110, 50)), start=1):
        hole = np.hypot(*np.mgrid[-v : 120 - v, -u : 160 - u]) < 9.0
        picture[hole], label[hole], depth_m[hole] = 30, number, 0.505
    cv2.imwrite(str(root / 'images' / 'a.png'), picture)
    cv2.imwrite(str(root / 'labels' / 'a.png'), label)
    if depth:
        cv2.imwrite(str(root / 'depths' / 'a.png'), np.rint(depth_m / 0.0001).astype(np.uint16))
    about = {'fx': 200.0, 'fy': 200.0, 'cx': 79.5, 'cy': 59.5}
    if depth_unit_m is not None:
        about['depth_unit_m'] = depth_unit_m
    (root / 'intrinsics.json').write_text(json.dumps(about))
    return root


def test_a_labelled_picture_becomes_a_view(tmp_path: Path):
    (path,) = import_folder(make_folder(tmp_path / 'own'), tmp_path / 'views')
    view = load_view(path)
    inside = view.ids == 1
    assert int(inside.sum()) == 249  # pixels within 9 of a centre
    assert set(np.unique(view.ids)) == {0, 1, 2}
    assert view.depth_m[60, 50] == pytest.approx(0.505)
    assert view.depth_m[5, 5] == pytest.approx(0.5)
    # Dark inside, the concrete under it like that around it: grey 150 of 255 in linear light.
    assert float(view.shading[60, 50].mean()) < 0.1
    assert float(view.albedo[60, 50].mean()) == pytest.approx((150 / 255) ** 2.2, rel=0.03)


def test_a_mask_is_parted_into_its_blobs(tmp_path: Path):
    folder = make_folder(tmp_path / 'own')
    label = cv2.imread(str(folder / 'labels' / 'a.png'), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(folder / 'labels' / 'a.png'), np.where(label > 0, 255, 0).astype(np.uint8))
    (path,) = import_folder(folder, tmp_path / 'views')
    assert set(np.unique(load_view(path).ids)) == {0, 1, 2}


def make_two(root: Path) -> tuple[Path, NDArray[np.uint8]]:
    """A folder, and which pixels are in its first and second airhole: (H, W) 1 and 2."""
    folder = make_folder(root)
    return folder, cv2.imread(str(folder / 'labels' / 'a.png'), cv2.IMREAD_UNCHANGED).astype(np.uint8)


@pytest.mark.parametrize('kind', ['ones', 'opaque', 'transparent wall', 'two colours', 'one colour'])
def test_labels_of_any_kind_are_read_alike(tmp_path: Path, kind: str):
    folder, numbers = make_two(tmp_path / 'own')
    inside = numbers > 0
    grey = np.where(inside, 255, 0).astype(np.uint8)
    label = {
        'ones': inside.astype(np.uint8),
        'opaque': np.dstack([grey, grey, grey, np.full_like(grey, 255)]),
        'transparent wall': np.dstack([grey, grey, grey, grey]),
        'two colours': np.array([[0, 0, 0], [0, 0, 128], [0, 128, 0]], np.uint8)[numbers],  # as bright as each other
        'one colour': np.array([[0, 0, 0], [0, 0, 128], [0, 0, 128]], np.uint8)[numbers],
    }[kind]
    cv2.imwrite(str(folder / 'labels' / 'a.png'), label)
    (path,) = import_folder(folder, tmp_path / 'views')
    ids = load_view(path).ids
    assert np.array_equal(ids > 0, inside)
    assert len(np.unique(ids[numbers == 1])) == len(np.unique(ids[numbers == 2])) == 1
    assert len(np.unique(ids)) == 3


def test_views_are_made_anew_of_what_has_changed(tmp_path: Path):
    folder, numbers = make_two(tmp_path / 'own')
    (before,) = import_folder(folder, tmp_path / 'views')
    cv2.imwrite(str(folder / 'labels' / 'a.png'), np.where(numbers == 1, 1, 0).astype(np.uint8))
    (after,) = import_folder(folder, tmp_path / 'views')
    assert int((load_view(before).ids > 0).sum()) == 498
    assert int((load_view(after).ids > 0).sum()) == 249


def test_folders_of_the_same_name_do_not_stand_for_each_other(tmp_path: Path):
    one, numbers = make_two(tmp_path / 'north' / 'own')
    other = make_folder(tmp_path / 'south' / 'own')
    cv2.imwrite(str(other / 'labels' / 'a.png'), np.where(numbers == 1, 1, 0).astype(np.uint8))
    paths = [*import_folder(one, tmp_path / 'views'), *import_folder(other, tmp_path / 'views')]
    assert [int((load_view(path).ids > 0).sum()) for path in paths] == [498, 249]


def test_a_picture_that_is_cut_short_is_named(tmp_path: Path):
    folder = make_folder(tmp_path / 'own')
    picture = cv2.imread(str(folder / 'images' / 'a.png'))
    (folder / 'images' / 'a.png').unlink()
    whole = cv2.imencode('.jpg', picture + np.random.default_rng(1).integers(0, 40, picture.shape, np.uint8))[1]
    (folder / 'images' / 'a.jpg').write_bytes(whole.tobytes())
    assert len(import_folder(folder, tmp_path / 'views')) == 1
    (folder / 'images' / 'a.jpg').write_bytes(whole.tobytes()[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r'a\.jpg: cannot be read as a picture'):
        import_folder(folder, tmp_path / 'views')


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'fx': 'wide'}, 'intrinsics.json: could not convert'),
        ({'fx': 0.0}, 'intrinsics.json: focal lengths must be positive'),
        ({'T_camera_lidar': [[1.0], [2.0, 3.0]]}, 'intrinsics.json: setting an array'),
        ({'T_camera_lidar': np.eye(4)[:3].tolist()}, r'intrinsics.json: a homogeneous matrix is \(4, 4\)'),
        ({'T_camera_lidar': np.diag([-1.0, 1.0, -1.0, 1.0]).tolist()}, 'a.ply: no point lies in the picture'),
    ],
)
def test_what_is_wrong_with_a_cloud_is_named(tmp_path: Path, changes: dict[str, object], reason: str):
    folder = make_folder(tmp_path / 'own', depth=False)
    (folder / 'clouds').mkdir()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector([[0.0, 0.0, 0.4], [0.01, 0.0, 0.4]]))
    o3d.io.write_point_cloud(str(folder / 'clouds' / 'a.ply'), cloud)
    about = json.loads((folder / 'intrinsics.json').read_text())
    (folder / 'intrinsics.json').write_text(json.dumps(about | changes))
    with pytest.raises(ConfigError, match=reason):
        import_folder(folder, tmp_path / 'views')


def test_a_cloud_stands_in_for_the_depth(tmp_path: Path):
    folder = make_folder(tmp_path / 'own', depth=False)
    (folder / 'clouds').mkdir()
    v, u = np.mgrid[0:120:2, 0:160:2].reshape(2, -1)
    rays = np.column_stack([(u - 79.5) / 200.0, (v - 59.5) / 200.0, np.ones(len(u))])
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(0.4 * rays))
    o3d.io.write_point_cloud(str(folder / 'clouds' / 'a.ply'), cloud)
    (path,) = import_folder(folder, tmp_path / 'views')
    assert np.allclose(load_view(path).depth_m, 0.4, atol=1e-4)


def test_without_depth_it_teaches_without_range(tmp_path: Path):
    paths = import_folder(make_folder(tmp_path / 'own', depth=False), tmp_path / 'views')
    crops = CropDataset(DataConfig(crop_px=64, context_px=16, range_drop_share=0.0), paths, [], seed=1, length=4)
    for index in range(4):
        image, range_maps, coverage, _, _ = crops[index]
        assert not range_maps.any()
        assert float(coverage.max()) <= 1.0
        assert np.isfinite(image.numpy()).all()
    _, point_maps, _ = PairDataset(MatchConfig(context_px=16), crops, 1)[0]
    assert not point_maps.any()


def test_what_is_wrong_is_named(tmp_path: Path):
    folder = make_folder(tmp_path / 'millimetres', depth_unit_m=1.0)
    with pytest.raises(ConfigError, match=r'a\.png: a median depth of 5000 m; check the unit'):
        import_folder(folder, tmp_path / 'one')
    folder = make_folder(tmp_path / 'unitless', depth_unit_m=None)
    with pytest.raises(ConfigError, match='no "depth_unit_m"'):
        import_folder(folder, tmp_path / 'two')
    folder = make_folder(tmp_path / 'sizes')
    cv2.imwrite(str(folder / 'labels' / 'a.png'), np.zeros((10, 20), np.uint8))
    with pytest.raises(ConfigError, match=r'labels/a\.png: 20x10, but its picture has 160x120'):
        import_folder(folder, tmp_path / 'three')
    (folder / 'labels' / 'a.png').unlink()
    with pytest.raises(ConfigError, match=r'images/a\.png: no label; expected .*labels/a\.png'):
        import_folder(folder, tmp_path / 'four')
    with pytest.raises(ConfigError, match='no pictures'):
        import_folder(tmp_path, tmp_path / 'five')
