"""Dense matching of pixels to points: superpoints by attention and dual softmax, then points within a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmml_ros.model.image_encoder import ConvBlock

_CONTEXT_CHANNELS = 96
_CHANNELS = 48
_HEADS = 4
_ROUNDS = 2


@dataclass(frozen=True, eq=False)
class Descriptors:
    """What pixels and points are recognised by: unit vectors, one per cell of 4x4 pixels.

    image, points: (B, 48, H / 4, W / 4).
    """

    image: Tensor
    points: Tensor


class _TopDown(nn.Module):
    """Descriptors of one modality from its pyramid (Lin et al., Feature Pyramid Networks, CVPR 2017)."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.cells = nn.Conv2d(channels[3], _CONTEXT_CHANNELS, 1)
        self.context = nn.Conv2d(_CONTEXT_CHANNELS, _CHANNELS, 1)
        self.laterals = nn.ModuleList([nn.Conv2d(count, _CHANNELS, 1) for count in channels[1:]])
        self.blocks = nn.ModuleList([ConvBlock(_CHANNELS, _CHANNELS) for _ in range(2)])
        self.fine = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        # At first each modality speaks for itself; what the other one has to say is learnt on top.
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]

    def forward(self, pyramid: list[Tensor], context: Tensor) -> Tensor:
        """(B, 48, H / 4, W / 4) unit vectors. context: (B, 96, H / 16, W / 16), the coarsest map after attention."""
        features = self.laterals[2](pyramid[-1]) + self.context(context)
        for level in (1, 0):
            coarse = functional.interpolate(features, scale_factor=2.0, mode='bilinear', align_corners=False)
            features = self.blocks[level](coarse + self.laterals[level](pyramid[level - 3]))
        return functional.normalize(self.fine(features), dim=1)


class _Attention(nn.Module):
    """Attention that costs the number of cells, not its square (Katharopoulos et al., ICML 2020), and a small MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.merge = nn.Linear(channels, channels, bias=False)
        self.before = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels)
        )
        self.after = nn.LayerNorm(channels)

    def forward(self, cells: Tensor, source: Tensor, weight: Tensor) -> Tensor:
        """`cells` (B, M, C), told about `source` (B, N, C) as far as `weight` (B, N) lets it."""
        batch, _, channels = cells.shape
        query, key, value = (
            layer(tokens).view(batch, -1, _HEADS, channels // _HEADS)
            for layer, tokens in ((self.query, cells), (self.key, source), (self.value, source))
        )
        query, key = functional.elu(query) + 1.0, (functional.elu(key) + 1.0) * weight[..., None, None]
        summary = torch.einsum('bnhd,bnhe->bhde', key, value)
        total = torch.einsum('bmhd,bhd->bmh', query, key.sum(dim=1)) + 1e-6
        message = torch.einsum('bmhd,bhde->bmhe', query, summary) / total[..., None]
        message = self.before(self.merge(message.reshape(batch, -1, channels)))
        return cast(Tensor, cells + self.after(self.mlp(torch.cat([cells, message], dim=2))))


class MatchingHead(nn.Module):
    """Descriptors of both modalities; similarity is their scalar product over a learned temperature."""

    def __init__(self, image_channels: tuple[int, int, int, int], point_channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.image = _TopDown(image_channels)
        self.points = _TopDown(point_channels)
        self.own = nn.ModuleList([_Attention(_CONTEXT_CHANNELS) for _ in range(_ROUNDS)])
        self.other = nn.ModuleList([_Attention(_CONTEXT_CHANNELS) for _ in range(_ROUNDS)])
        # Logarithms of what scalar products are multiplied by, for superpoints and for points.
        self.sharpness = nn.Parameter(torch.tensor([2.5, 2.5]))

    def forward(self, image_pyramid: list[Tensor], point_pyramid: list[Tensor], support: Tensor) -> Descriptors:
        """Descriptors of a picture and of the points laid on a view of the same size.

        image_pyramid, point_pyramid: maps that end with those of 1/4, 1/8 and 1/16. support: (B, H / 16, W / 16), 1
        where a cell holds points, else 0: empty cells have nothing to say in the attention.
        """
        cells = self.image.cells(image_pyramid[-1]), self.points.cells(point_pyramid[-1])
        shape = cells[0].shape
        image, points = (tokens.flatten(2).transpose(1, 2) for tokens in cells)
        everywhere, held = torch.ones_like(image[..., 0]), support.flatten(1)
        for own, other in zip(self.own, self.other, strict=True):
            image, points = own(image, image, everywhere), own(points, points, held)
            image, points = other(image, points, held), other(points, image, everywhere)
        image_context, point_context = (tokens.transpose(1, 2).reshape(shape) for tokens in (image, points))
        return Descriptors(self.image(image_pyramid, image_context), self.points(point_pyramid, point_context))

    def superpoint_scores(self, superpoints: Tensor, image: Tensor) -> Tensor:
        """Similarity of superpoints (..., N, C) to cells of the picture (..., M, C), logits (..., N, M)."""
        return superpoints @ image.transpose(-1, -2) * self.sharpness[0].exp()

    def point_scores(self, points: Tensor, windows: Tensor) -> Tensor:
        """Similarity of points (N, C) to the cells of their windows (N, K, C), logits (N, K)."""
        return torch.einsum('nc,nkc->nk', points, windows) * self.sharpness[1].exp()


def dual_log_softmax(scores: Tensor) -> Tensor:
    """Logarithm of the probability that row and column are each other's match (Sun et al., LoFTR, CVPR 2021)."""
    rows, columns = scores.logsumexp(dim=-1, keepdim=True), scores.logsumexp(dim=-2, keepdim=True)
    return 2.0 * scores - rows - columns
