import numpy as np
import pytest
import torch

from cmml_ros.model.matching_head import Descriptors, dual_log_softmax
from cmml_ros.model.network import MultitaskNetwork
from cmml_ros.model.point_features import POINT_CHANNELS, point_features
from cmml_ros.training.losses import matching_loss


def make_points(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pixels = rng.uniform(0.0, 127.0, (4000, 2))
    return pixels, np.full(4000, 0.5), rng.uniform(20.0, 60.0, 4000).astype(np.float32)


def test_intensity_counts_against_its_surroundings_in_any_unit():
    pixels, depths_m, intensity = make_points(np.random.default_rng(1))
    maps = point_features(pixels, depths_m, intensity, 128, 128)
    assert maps.shape == (POINT_CHANNELS, 64, 64)
    assert np.allclose(maps, point_features(pixels, depths_m, intensity * 40.0, 128, 128), atol=1e-4)
    bright = np.linalg.norm(pixels - 64.0, axis=1) < 10.0
    spotted = point_features(pixels, depths_m, np.where(bright, 4.0 * intensity, intensity), 128, 128)
    assert spotted[3, 30:34, 30:34].mean() > maps[3, 30:34, 30:34].mean() + 0.5


@pytest.mark.parametrize('intensity', [None, np.zeros(4000, np.float32), np.full(4000, np.nan, np.float32)])
def test_without_intensity_its_channels_are_zero(intensity: np.ndarray | None):
    pixels, depths_m, _ = make_points(np.random.default_rng(2))
    maps = point_features(pixels, depths_m, intensity, 128, 128)
    assert not maps[3:].any()
    assert maps[2].any()
    assert np.isfinite(maps).all()


def test_no_points_no_maps():
    assert not point_features(np.empty((0, 2)), np.empty(0), np.empty(0, np.float32), 64, 64).any()


def test_descriptors_are_unit_vectors_and_empty_cells_are_silent():
    torch.manual_seed(3)
    network = MultitaskNetwork().eval()
    with torch.no_grad():  # let the attention speak: it starts out silent
        torch.nn.init.normal_(network.matching_head.image.context.weight)
    maps = torch.rand(1, POINT_CHANNELS, 64, 64)
    maps[:, 2, :, 32:] = 0.0
    image = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        pyramid = network.encode(image, None)
        first = network.describe(pyramid, maps)
        cells = network.matching_head.points.cells(network.point_encoder(maps)[3])
        assert first.image.shape == first.points.shape == (1, 48, 32, 32)
        assert torch.allclose(first.image.norm(dim=1), torch.ones(1, 32, 32), atol=1e-5)
        # What the point encoder makes of empty cells must not reach the picture's descriptors.
        support = torch.zeros(1, *cells.shape[2:])
        support[:, :, :2] = 1.0
        point_pyramid = network.point_encoder(maps)
        quiet = network.matching_head(pyramid, point_pyramid, support)
        point_pyramid[3] = point_pyramid[3].clone()
        point_pyramid[3][..., 2:] += 5.0
        loud = network.matching_head(pyramid, point_pyramid, support)
    assert torch.allclose(quiet.image, loud.image, atol=1e-5)
    assert not torch.allclose(quiet.points, loud.points, atol=1e-3)


def test_dual_softmax_wants_both_sides_to_agree():
    scores = torch.tensor([[9.0, 9.0], [0.0, 9.0]])
    probability = dual_log_softmax(scores).exp()
    assert probability[0, 0] == pytest.approx(0.5, abs=0.01)  # the row doubts, the column does not
    assert probability[0, 1] == pytest.approx(0.25, abs=0.01)


def test_the_loss_is_small_where_places_are_told_apart_and_large_when_they_are_shifted():
    torch.manual_seed(4)
    head = MultitaskNetwork().matching_head
    with torch.no_grad():
        head.sharpness.fill_(4.0)
    own = torch.nn.functional.normalize(torch.randn(1, 48, 24, 24), dim=1)
    maps = torch.ones(1, POINT_CHANNELS, 48, 48)
    same, shifted = torch.eye(3)[None], torch.eye(3)[None].clone()
    shifted[:, 0, 2] = 8.0
    right = [loss.item() for loss in matching_loss(head, Descriptors(own, own), maps, same)]
    wrong = [loss.item() for loss in matching_loss(head, Descriptors(own, own), maps, shifted)]
    moved = Descriptors(torch.roll(own, 2, dims=3), own)
    again = [loss.item() for loss in matching_loss(head, moved, maps, shifted)]
    assert max(right) < 0.1
    assert min(wrong) > 5.0
    assert max(again) < 0.5


def test_nothing_to_match_is_no_loss():
    head = MultitaskNetwork().matching_head
    descriptors = Descriptors(torch.randn(1, 48, 16, 16), torch.randn(1, 48, 16, 16))
    losses = matching_loss(head, descriptors, torch.zeros(1, POINT_CHANNELS, 32, 32), torch.eye(3)[None])
    assert [loss.item() for loss in losses] == [0.0, 0.0]
