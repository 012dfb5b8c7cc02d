import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmml_ros.errors import ConfigError, ModelError
from cmml_ros.model.checkpoint import find_weights, identify
from cmml_ros.model.network import MultitaskNetwork
from cmml_ros.training.dataset import CropDataset, DataConfig, load_pictures, rim_of
from cmml_ros.training.losses import segmentation_loss
from cmml_ros.training.train import _Run, train
from cmml_ros.training.views import ViewConfig, load_view, prepare_views

VIEWS = ViewConfig(count=2, width=160, height=128, samples=4)


@pytest.fixture(scope='module')
def views(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return prepare_views(VIEWS, tmp_path_factory.mktemp('views'), seed=3)


def make_dataset(views: list[Path], length: int = 8, **settings: float) -> CropDataset:
    return CropDataset(DataConfig(crop_px=96, context_px=16, **settings), views, [], seed=5, length=length)


def test_views_hold_holes_that_are_darker_and_deeper_than_the_wall(views: list[Path]):
    for path in views:
        view = load_view(path)
        inside = view.coverage == 1.0
        assert inside.sum() > 20
        assert np.median(view.shading[inside]) < 0.8 * np.median(view.shading[view.ids == 0])
        assert set(np.unique(view.ids[inside])) - {0}
        assert 0.1 < view.depth_m.min() < view.depth_m.max() < 3.0


def test_views_that_are_there_are_kept(views: list[Path]):
    before = [path.stat().st_mtime_ns for path in views]
    assert prepare_views(VIEWS, views[0].parent, seed=3) == views
    assert [path.stat().st_mtime_ns for path in views] == before


def test_a_crop_depends_on_seed_and_number_alone(views: list[Path]):
    first, second = make_dataset(views), make_dataset(views)
    for _ in range(2):
        for mine, theirs in zip(first[6], second[6], strict=True):
            assert torch.equal(mine, theirs)
    assert not torch.equal(first[6][0], first[7][0])


def test_crops_have_the_shapes_and_ranges_the_network_asks_for(views: list[Path]):
    dataset = make_dataset(views, range_drop_share=0.0)
    image, range_maps, coverage, rim, weight = dataset[0]
    assert image.shape == (3, 96, 96)
    assert range_maps.shape == (3, 48, 48)
    assert coverage.shape == rim.shape == weight.shape == (96, 96)
    assert 0.0 <= float(image.min()) < float(image.max()) <= 1.0
    assert float(range_maps[2].max()) > 0.0
    assert 0.0 <= float(coverage.min()) <= float(coverage.max()) <= 1.0
    assert {*rim.unique().tolist()} <= {0.0, 1.0}


def test_dropped_range_and_empty_walls(views: list[Path]):
    for index in range(6):
        _, range_maps, coverage, rim, _ = make_dataset(views, range_drop_share=1.0, empty_share=1.0)[index]
        assert not range_maps.any()
        assert not coverage.any()
        assert not rim.any()


def test_what_range_shows_to_be_flat_is_no_airhole(views: list[Path]):
    depth_only = {'range_drop_share': 0.0, 'lidar_share': 0.0, 'empty_share': 0.0, 'enlarge_share': 1.0}
    as_they_are = make_dataset(views, length=24, painted_share=0.0, **depth_only)
    painted = make_dataset(views, length=24, painted_share=1.0, **depth_only)
    behind_holes, behind_paint = [], []
    for index in range(24):
        image, range_maps, coverage, _, weight = (tensor.numpy() for tensor in painted[index])
        same_image, same_maps, all_holes, _, _ = (tensor.numpy() for tensor in as_they_are[index])
        np.testing.assert_array_equal(image, same_image)
        flat = (all_holes == 1.0) & (coverage == 0.0) & (weight == 1.0)
        half = flat[::2, ::2] & flat[1::2, 1::2]
        behind_paint += range_maps[0][half].tolist()
        behind_holes += same_maps[0][half].tolist()
        assert not (coverage > all_holes).any()
    assert len(behind_paint) > 100
    assert abs(np.median(behind_paint)) < 0.2 * np.median(behind_holes)


def test_a_rim_parts_two_airholes_that_touch():
    ids = np.zeros((20, 20), np.int32)
    ids[5:15, 4:10], ids[5:15, 10:16] = 1, 2
    rim = rim_of(ids)
    assert (rim[6:14, 9:11] == 1.0).all()
    assert (rim[7:13, 6:8] == 0.0).all()


def test_the_loss_is_small_for_the_truth_and_blind_where_nothing_is_asked():
    coverage = torch.zeros(1, 32, 32)
    coverage[:, 8:20, 8:20] = 1.0
    rim = torch.zeros(1, 32, 32)
    right = torch.stack([coverage * 40 - 20, torch.full((1, 32, 32), -20.0)], dim=1)
    weight = torch.ones(1, 32, 32)
    assert float(segmentation_loss(right, coverage, rim, weight)) < 0.01
    assert float(segmentation_loss(-right, coverage, rim, weight)) > 10.0
    hidden = right.clone()
    hidden[:, :, 25:] = 20.0
    weight[:, 25:] = 0.0
    assert float(segmentation_loss(hidden, coverage, rim, weight)) < 0.01


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match='no such folder'):
        load_pictures(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match='no pictures'):
        load_pictures(tmp_path)
    (tmp_path / 'broken.jpg').write_bytes(b'no picture')
    with pytest.raises(ConfigError, match=r'broken\.jpg: cannot be read'):
        load_pictures(tmp_path)


CONFIG = """
steps: 4
batch_size: 2
workers: 0
checkpoint_every_s: 0.0
views: {count: 2, width: 160, height: 128, samples: 4}
data: {crop_px: 64, context_px: 16}
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tmp_path / 'train.yaml'
    config.write_text(CONFIG)
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    cv2.imwrite(str(pictures / 'wall.png'), np.full((200, 200, 3), 120, np.uint8))
    whole = load_file(train(config, tmp_path / 'whole', [pictures]))

    advance = _Run.advance

    def die_at_three(run: _Run, batch: list[torch.Tensor]) -> float:
        if run.step == 2:
            raise KeyboardInterrupt
        return advance(run, batch)

    monkeypatch.setattr(_Run, 'advance', die_at_three)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / 'killed', [pictures])
    monkeypatch.setattr(_Run, 'advance', advance)
    resumed = load_file(train(config, tmp_path / 'killed', [pictures]))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name

    config.write_text(CONFIG + 'learning_rate: 0.001\n')
    with pytest.raises(ModelError, match='learning_rate'):
        train(config, tmp_path / 'killed', [pictures])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('learn', 'kept_parts', 'learnt'),
    [
        ('matching', ('image_encoder', 'segmentation_head'), 'matching_head.sharpness'),
        ('segmentation', ('point_encoder', 'matching_head'), 'segmentation_head.logits.bias'),
    ],
)
def test_what_is_not_learnt_stays_as_it_was(tmp_path: Path, learn: str, kept_parts: tuple[str, ...], learnt: str):
    config = tmp_path / 'train.yaml'
    config.write_text(CONFIG + f'start_from: small\nlearn: {learn}\nmatch: {{batch_size: 2, context_px: 16}}\n')
    before = load_file(find_weights('small'))
    weights = train(config, tmp_path / 'out')
    with safe_open(weights, framework='pt') as archive:
        about = json.loads(archive.metadata()['cmml_ros.about'])
    assert about['start_from'] == identify(find_weights('small'))
    after = load_file(weights)
    kept = [name for name in before if name.startswith(kept_parts)]
    assert len(kept) > 10
    for name in kept:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before[learnt], after[learnt])


@pytest.mark.slow
def test_losses_are_logged_for_tensorboard(tmp_path: Path):
    config = tmp_path / 'train.yaml'
    config.write_text(CONFIG.replace('steps: 4', 'steps: 50') + 'learn: segmentation\n')
    train(config, tmp_path / 'out')
    events = EventAccumulator(str(tmp_path / 'out' / 'log')).Reload()
    assert events.Tags()['scalars'] == ['loss/segmentation']
    (scalar,) = events.Scalars('loss/segmentation')
    assert scalar.step == 50
    assert 0.0 < scalar.value < 5.0


@pytest.mark.slow
def test_two_processes_share_each_batch(tmp_path: Path):
    config = tmp_path / 'train.yaml'
    config.write_text(CONFIG + 'match: {batch_size: 2, context_px: 16}\n')
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command = ['-m', 'cmml_ros.cli', 'train', '--config', str(config), '--out']
    done = subprocess.run(
        [*torchrun, *command, str(tmp_path / 'two')], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    two, one = load_file(tmp_path / 'two' / 'weights.safetensors'), load_file(train(config, tmp_path / 'one'))
    # Normalised over its own crops, each process sees slightly other features: alike, not equal.
    learnt = [name for name, _ in MultitaskNetwork().named_parameters()]
    moved = torch.cat([(two[name] - one[name]).abs().flatten() for name in learnt])
    assert 0.0 < float(moved.max()) < 4 * 4 * 2e-3

    config.write_text(CONFIG + 'match: {batch_size: 3}\n')
    done = subprocess.run(
        [*torchrun, *command, str(tmp_path / 'odd')], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode != 0
    assert 'match.batch_size 3 have to be multiples of the 2 processes' in done.stderr + done.stdout


def test_what_is_refused_is_refused_before_views_are_made(tmp_path: Path):
    config = tmp_path / 'train.yaml'
    config.write_text(CONFIG)
    with pytest.raises(ConfigError, match='no such folder of background pictures'):
        train(config, tmp_path / 'out', backgrounds=[tmp_path / 'nowhere'])
    with pytest.raises(ConfigError, match='no pictures'):
        train(config, tmp_path / 'out', data=[tmp_path / 'nowhere'])
    config.write_text(CONFIG + 'start_from: nowhere\n')
    with pytest.raises(ModelError, match='no shipped weights called "nowhere"'):
        train(config, tmp_path / 'out')
    config.write_text(CONFIG + 'views.pixel_min_m: 0.01\n')
    with pytest.raises(ConfigError, match=r'views\.pixel_min_m 0\.01 must not be larger than'):
        train(config, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'views').exists()


def test_weights_of_another_size_are_no_start(tmp_path: Path):
    config = tmp_path / 'train.yaml'
    config.write_text(CONFIG + 'start_from: small\nsize: base\n')
    with pytest.raises(ModelError, match='weights of size "small", but size is "base"'):
        train(config, tmp_path / 'out')
