"""What the network is asked to minimise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cmml_ros.model.segmentation_head import MASK, RIM


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
