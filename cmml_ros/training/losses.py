"""What the network is asked to minimise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cmml_ros.model.interface import COARSE_STRIDE, FINE_STRIDE
from cmml_ros.model.matching_head import Descriptors, MatchingHead, dual_log_softmax
from cmml_ros.model.range_features import RANGE_CHANNELS, RANGE_STRIDE
from cmml_ros.model.segmentation_head import MASK, RIM

# Fine matching looks so many cells to either side of where a point is believed to be, and is taught as far off as this.
WINDOW_CELLS = 4
_OFFSET_CELLS = 3
_FINE_SAMPLES = 384
_FOCUS = 2.0


def segmentation_loss(logits: Tensor, coverage: Tensor, rim: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy and Dice of the mask, and cross-entropy of the rim; a scalar.

    logits: (B, 2, H, W). coverage: (B, H, W), share of each pixel inside a rim: a soft target, so that the predicted
    probability is that share, and its sum the area. rim: (B, H, W) in {0, 1}. weight: (B, H, W), zero where no answer
    is asked for.
    """
    normaliser = weight.sum().clamp(min=1.0)
    mask_entropy = functional.binary_cross_entropy_with_logits(logits[:, MASK], coverage, reduction='none')
    rim_entropy = functional.binary_cross_entropy_with_logits(logits[:, RIM], rim, reduction='none')
    # Airholes cover a few percent of a wall: Dice keeps them from drowning in background (Milletari et al., 3DV 2016).
    probability = logits[:, MASK].sigmoid() * weight
    target = coverage * weight
    overlap = (probability * target).sum(dim=(1, 2))
    total = (probability.square() + target.square()).sum(dim=(1, 2))
    dice = 1.0 - (2.0 * overlap + 20.0) / (total + 20.0)
    entropy = ((mask_entropy + 0.5 * rim_entropy) * weight).sum() / normaliser
    return torch.as_tensor(5.0 * entropy + 0.5 * dice.mean())


def matching_loss(
    head: MatchingHead, descriptors: Descriptors, point_maps: Tensor, T_image_maps: Tensor
) -> tuple[Tensor, Tensor]:
    """Coarse and fine loss, two scalars.

    point_maps: (B, 5, H / 2, W / 2). T_image_maps: (B, 3, 3), from pixels of the view that the points are laid on to
    pixels of the picture. Coarse: focal loss on dual softmax (Sun et al., LoFTR, CVPR 2021). Fine: cross-entropy over
    the window, its target split between the four cells around the true place.
    """
    support = point_maps[:, RANGE_CHANNELS - 1 : RANGE_CHANNELS]
    return (
        _coarse_loss(head, descriptors, support, T_image_maps),
        _fine_loss(head, descriptors, support, T_image_maps),
    )


def _coarse_loss(head: MatchingHead, descriptors: Descriptors, support: Tensor, T_image_maps: Tensor) -> Tensor:
    rows, columns = descriptors.image.shape[2:]
    held = functional.max_pool2d(support, FINE_STRIDE // RANGE_STRIDE) >= 0.5
    # One point drawn in each coarse cell stands for it.
    drawn = (torch.rand_like(held, dtype=support.dtype) + 1e-3) * held
    key, index = functional.max_pool2d(drawn, COARSE_STRIDE // FINE_STRIDE, return_indices=True)
    index = index.flatten(1)  # (B, N)
    places = _true_cells(T_image_maps, rows, columns).gather(1, index[..., None].expand(-1, -1, 2)).round().long()
    limit = places.new_tensor([columns - 1, rows - 1])
    valid = (key.flatten(1) > 0.0) & (places >= 0).all(dim=2) & (places <= limit).all(dim=2)
    channels = descriptors.points.shape[1]
    superpoints = descriptors.points.flatten(2).gather(2, index[:, None].expand(-1, channels, -1)).transpose(1, 2)
    scores = head.superpoint_scores(superpoints, descriptors.image.flatten(2).transpose(1, 2))
    # What is not in the picture, or empty, competes for no cell.
    scores = dual_log_softmax(scores.masked_fill(~valid[..., None], -1e4))
    column, row = places.clamp_min(0).minimum(limit).unbind(dim=2)
    logarithm = scores.gather(2, (row * columns + column)[..., None])[..., 0][valid]
    return -((1.0 - logarithm.exp()) ** _FOCUS * logarithm).mean() if len(logarithm) else scores.sum() * 0.0


def _fine_loss(head: MatchingHead, descriptors: Descriptors, support: Tensor, T_image_maps: Tensor) -> Tensor:
    rows, columns = descriptors.image.shape[2:]
    places = _true_cells(T_image_maps, rows, columns)
    held = functional.max_pool2d(support, FINE_STRIDE // RANGE_STRIDE).flatten(1) >= 0.5
    limit = places.new_tensor([columns - 1, rows - 1])
    valid = held & (places >= 0.0).all(dim=2) & (places <= limit).all(dim=2)
    batch, index = valid.nonzero(as_tuple=True)
    if len(batch) == 0:
        return descriptors.image.sum() * 0.0
    chosen = torch.randperm(len(batch), device=batch.device)[: _FINE_SAMPLES * len(places)]
    batch, index = batch[chosen], index[chosen]
    place = places[batch, index]  # (K, 2)
    base = place.floor() + torch.randint(-_OFFSET_CELLS, _OFFSET_CELLS, place.shape, device=place.device)
    steps = torch.arange(-WINDOW_CELLS, WINDOW_CELLS + 1, device=place.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing='xy'), dim=-1).reshape(-1, 2)
    cells = (base[:, None] + window).long()  # (K, 81, 2), column and row
    outside = (cells < 0).any(dim=2) | (cells > limit.long()).any(dim=2)
    column, row = cells.clamp_min(0).minimum(limit.long()).unbind(dim=2)
    points = descriptors.points.flatten(2)[batch, :, index]
    image = descriptors.image[batch[:, None], :, row, column]
    scores = head.point_scores(points, image).masked_fill(outside, -1e4)
    # Bilinear shares of the cells around the true place.
    share = (1.0 - (cells - place[:, None]).abs()).clamp_min(0.0).prod(dim=2)
    return -(share * functional.log_softmax(scores, dim=1)).sum(dim=1).mean()


def _true_cells(T_image_maps: Tensor, rows: int, columns: int) -> Tensor:
    """Where in the picture the middles of the cells of the points' view are, (B, rows * columns, 2), in cells."""
    v, u = torch.meshgrid(
        torch.arange(rows, device=T_image_maps.device), torch.arange(columns, device=T_image_maps.device), indexing='ij'
    )
    middles = (torch.stack([u.flatten(), v.flatten()], dim=1) + 0.5) * FINE_STRIDE - 0.5
    homogeneous = torch.cat([middles, torch.ones_like(middles[:, :1])], dim=1)
    moved = torch.einsum('bij,nj->bni', T_image_maps, homogeneous)
    return (moved[..., :2] / moved[..., 2:] + 0.5) / FINE_STRIDE - 0.5
