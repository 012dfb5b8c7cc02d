"""Training crops: path-traced light on simulated holes, over simulated or real concrete, with or without range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from cmml_ros.config import setting
from cmml_ros.errors import ConfigError
from cmml_ros.model.point_features import point_features
from cmml_ros.model.range_features import RANGE_CHANNELS, RANGE_STRIDE, range_features
from cmml_ros.simulation.response import compose, draw_response
from cmml_ros.training.views import VIEW_FOCAL_PX, TrainingView, load_view

Floats = NDArray[np.float32]

PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')
# Blobs below this are neither airhole nor background: nobody could tell.
_IGNORE_BELOW_PX = 5.0
_TARGETED_SHARE = 0.5
_LENS_REACH_PX = 16
# Depths about an airhole that differ by more than this ratio are those of a wall and of what is behind it.
_ONE_SURFACE = 1.04
# A depth of so many deviations is plain to see, and so is its absence.
_PLAIN = 4.0


@dataclass(frozen=True)
class DataConfig:
    """How crops are made from views."""

    crop_px: int = setting(256, 'side of a crop', unit='px', low=64, high=2048)
    context_px: int = setting(
        64, 'margin around the crop from which the range features are made', unit='px', low=0, high=512
    )
    range_drop_share: float = setting(0.4, 'crops without any range', low=0.0, high=1.0)
    lidar_share: float = setting(0.2, 'crops with range of a time-of-flight LiDAR', low=0.0, high=1.0)
    real_share: float = setting(0.35, 'crops over a real picture, when there are any', low=0.0, high=1.0)
    foreign_share: float = setting(0.3, 'crops over the concrete of another view', low=0.0, high=1.0)
    enlarge_share: float = setting(0.35, 'crops whose range is that of a larger wall, farther away', low=0.0, high=1.0)
    rough_share: float = setting(
        0.3, 'crops over concrete of raised contrast, as rough surfaces have', low=0.0, high=1.0
    )
    empty_share: float = setting(0.12, 'crops of concrete without any airhole', low=0.0, high=1.0)
    edge_share: float = setting(0.2, 'crops in which the wall ends before something else', low=0.0, high=1.0)
    painted_share: float = setting(
        0.4, 'crops with range of a depth camera in which it shows that some dark spots are flat', low=0.0, high=1.0
    )


@dataclass(frozen=True)
class _Patch:
    """One augmented cut of a view, all (h, w[, 3])."""

    shading: Floats
    albedo: Floats
    coverage: Floats
    ids: NDArray[np.int32]
    depth_m: Floats


class CropDataset(Dataset[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]):
    """Crop number i of a run: image, range maps, coverage, rim and weight, a function of (seed, i) alone.

    backgrounds: pictures, as of `load_pictures`.
    """

    def __init__(
        self,
        config: DataConfig,
        views: Sequence[Path],
        backgrounds: Sequence[NDArray[np.uint8]],
        seed: int,
        length: int,
    ) -> None:
        self._config = config
        self._views = list(views)
        self._pictures = list(backgrounds)
        self.seed = seed
        self.crop_px = config.crop_px
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """image (3, S, S), range maps (3, S / 2, S / 2), coverage, rim and weight (S, S), all float32."""
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self.seed, index))
        config = self._config
        side = config.crop_px + 2 * config.context_px
        patch = self.draw(side, rng)
        coverage, ids, depth_m = patch.coverage, patch.ids, patch.depth_m
        if rng.random() < config.enlarge_share:
            # The same picture from farther away of a larger wall: no depth is too large for an airhole.
            depth_m = depth_m * np.float32(np.exp(rng.uniform(0.0, np.log(6.0))))
        image = _photograph(patch, config.context_px, rng)
        range_maps, flat = self._range_maps(depth_m, coverage, ids, patch.albedo, rng)
        coverage, ids = np.where(flat, np.float32(0.0), coverage), np.where(flat, 0, ids)
        inner = slice(config.context_px, side - config.context_px)
        half = slice(config.context_px // RANGE_STRIDE, (side - config.context_px) // RANGE_STRIDE)
        rim = rim_of(ids)
        weight = np.where(_small_blobs(ids), 0.0, 1.0).astype(np.float32)
        return (
            torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1) / 255.0),
            torch.from_numpy(np.ascontiguousarray(range_maps[:, half, half])),
            torch.from_numpy(np.ascontiguousarray(coverage[inner, inner])),
            torch.from_numpy(np.ascontiguousarray(rim[inner, inner])),
            torch.from_numpy(np.ascontiguousarray(weight[inner, inner])),
        )

    def draw(self, side: int, rng: np.random.Generator) -> _Patch:
        """A square of some view, its holes on this or that concrete."""
        config = self._config
        patch = _cut(self._any_view(rng), side, rng)
        albedo, shading, coverage, ids, depth_m = patch.albedo, patch.shading, patch.coverage, patch.ids, patch.depth_m
        chance = rng.random()
        if self._pictures and chance < config.real_share:
            albedo = _cut_picture(self._pictures[rng.integers(len(self._pictures))], side, rng)
        elif chance < config.real_share + config.foreign_share:
            albedo = _cut(self._any_view(rng), side, rng).albedo
        if rng.random() < config.rough_share:
            albedo = _roughen(albedo, rng)
        if rng.random() < config.empty_share:
            shading, coverage = np.ones_like(shading), np.zeros_like(coverage)
            ids = np.zeros_like(ids)
            depth_m = _flat_depth(depth_m) if np.isfinite(depth_m[0, 0]) else depth_m
        else:
            shading = _deepen(shading, coverage, rng)
        patch = _Patch(shading, albedo, coverage, ids, depth_m)
        return _end_wall(patch, self._background(side, rng), rng) if rng.random() < config.edge_share else patch

    def _background(self, side: int, rng: np.random.Generator) -> Floats:
        """What is behind a wall (side, side, 3): darkness, one colour, or a picture out of focus."""
        chance = rng.random()
        if chance < 0.5:
            level = rng.uniform(0.0, 0.05) if chance < 0.35 else rng.uniform(0.05, 0.9)
            return np.full((side, side, 3), level, np.float32)
        if self._pictures:
            picture = _cut_picture(self._pictures[rng.integers(len(self._pictures))], side, rng)
        else:
            picture = _cut(self._any_view(rng), side, rng).albedo
        blurred = cv2.GaussianBlur(picture, (0, 0), float(np.exp(rng.uniform(np.log(1.0), np.log(12.0)))))
        return np.asarray(blurred * np.float32(np.exp(rng.uniform(np.log(0.1), np.log(2.0)))), np.float32)

    def _any_view(self, rng: np.random.Generator) -> TrainingView:
        return load_view(self._views[rng.integers(len(self._views))])

    def _range_maps(
        self, depth_m: Floats, coverage: Floats, ids: NDArray[np.int32], albedo: Floats, rng: np.random.Generator
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Range maps, and where (H, W) what looks like an airhole is flat in them."""
        height, width = depth_m.shape
        flat = np.zeros((height, width), np.bool_)
        chance = rng.random()
        if chance < self._config.range_drop_share or not np.isfinite(depth_m[0, 0]):
            return np.zeros((RANGE_CHANNELS, height // RANGE_STRIDE, width // RANGE_STRIDE), np.float32), flat
        if chance < self._config.range_drop_share + self._config.lidar_share:
            returns = _lidar_returns(depth_m, albedo, rng)
        else:
            sensor = _DepthCamera.draw(rng)
            if rng.random() < self._config.painted_share:
                depth_m, flat = _paint(depth_m, ids, sensor, rng)
            returns = _depth_camera_returns(depth_m, np.where(flat, np.float32(0.0), coverage), albedo, sensor, rng)
        return range_features(returns.pixels, returns.depths_m, height, width), flat


def _photograph(patch: _Patch, context_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a camera makes of the patch without its margin, (H, W, 3)."""
    # As much around it as blur and sharpening reach.
    margin = min(context_px, _LENS_REACH_PX)
    part = slice(context_px - margin, len(patch.albedo) - context_px + margin)
    image = compose(patch.shading[part, part], patch.albedo[part, part], draw_response(rng), rng)
    inner = slice(margin, len(image) - margin)
    return image[inner, inner]


def load_pictures(folder: Path) -> list[NDArray[np.uint8]]:
    """Every picture in `folder`, BGR.

    Raises ConfigError when there is none or one cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f'{folder}: no such folder of background pictures')
    pictures = []
    for path in sorted(item for item in folder.rglob('*') if item.suffix.lower() in PICTURE_SUFFIXES):
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise ConfigError(f'{path}: cannot be read as a picture; remove or replace it')
        pictures.append(np.asarray(picture, np.uint8))
    if not pictures:
        raise ConfigError(f'{folder}: no pictures ({", ".join(PICTURE_SUFFIXES)}) in it')
    return pictures


def rim_of(ids: NDArray[np.int32]) -> Floats:
    """1 on pixels whose 3x3 neighbourhood holds two different ids, else 0: what parts airholes that touch."""
    return np.asarray(ndimage.maximum_filter(ids, 3) != ndimage.minimum_filter(ids, 3), np.float32)


def _small_blobs(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    areas = np.bincount(ids.ravel())
    small = areas < _IGNORE_BELOW_PX
    small[0] = False
    return np.asarray(ndimage.binary_dilation(small[ids], iterations=2))


def _cut(view: TrainingView, side: int, rng: np.random.Generator) -> _Patch:
    """A random square of the view, of random scale, mirrored and turned."""
    height, width = view.coverage.shape
    # Half of them as they were rendered: a rim is never as sharp again once it is resampled.
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(1.6)))) if rng.random() < 0.5 else 1.0
    source = min(round(side / scale), height, width)
    top, left = rng.integers(height - source + 1), rng.integers(width - source + 1)
    rows, columns = np.nonzero(view.ids)
    if len(rows) and rng.random() < _TARGETED_SHARE:
        # One airhole, no matter how large, somewhere in the window.
        own = view.ids == rng.choice(np.unique(view.ids[rows, columns]))
        row, column = (int(np.median(positions)) for positions in np.nonzero(own))
        top = int(np.clip(row - rng.integers(source), 0, height - source))
        left = int(np.clip(column - rng.integers(source), 0, width - source))
    window = (slice(top, top + source), slice(left, left + source))
    turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)

    def fit(array: NDArray[np.generic], interpolation: int) -> NDArray[np.generic]:
        resized = cv2.resize(np.ascontiguousarray(array[window]), (side, side), interpolation=interpolation)
        turned = np.rot90(resized, turns)
        return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)

    smooth = cv2.INTER_AREA if source > side else cv2.INTER_LINEAR
    return _Patch(
        shading=fit(view.shading.astype(np.float32), smooth).astype(np.float32),
        albedo=fit(view.albedo.astype(np.float32), smooth).astype(np.float32),
        coverage=np.clip(fit(view.coverage.astype(np.float32), smooth).astype(np.float32), 0.0, 1.0),
        ids=fit(view.ids.astype(np.float32), cv2.INTER_NEAREST).astype(np.int32),
        depth_m=fit(view.depth_m, cv2.INTER_NEAREST).astype(np.float32),
    )


def _cut_picture(picture: NDArray[np.uint8], side: int, rng: np.random.Generator) -> Floats:
    """A random square of a real picture as linear reflectance, (side, side, 3)."""
    height, width = picture.shape[:2]
    scale = float(np.exp(rng.uniform(np.log(0.7), np.log(3.0))))
    source = min(round(side / scale), height, width)
    top, left = rng.integers(height - source + 1), rng.integers(width - source + 1)
    resized = cv2.resize(picture[top : top + source, left : left + source], (side, side), interpolation=cv2.INTER_AREA)
    turned = np.rot90(resized, int(rng.integers(4)))
    if rng.random() < 0.5:
        turned = turned[:, ::-1]
    linear = (turned.astype(np.float32) / 255.0) ** 2.2
    # Pictures come under- and over-exposed: bring each to the reflectance of concrete on average.
    level = float(np.exp(rng.normal(np.log(0.35), 0.35)))
    return np.asarray(np.clip(linear * (level / max(float(np.median(linear)), 1e-3)), 0.0, 1.0), np.float32)


def _roughen(albedo: Floats, rng: np.random.Generator) -> Floats:
    """The same concrete with up to four times the contrast, as of coarse grain under low light."""
    middle = max(float(np.median(albedo)), 1e-3)
    gain = float(np.exp(rng.uniform(np.log(1.2), np.log(4.0))))
    return np.asarray(np.clip(middle * (albedo / middle) ** gain, 0.0, 1.0), np.float32)


def _deepen(shading: Floats, coverage: Floats, rng: np.random.Generator) -> Floats:
    """Holes made darker or lighter inside: dirt, moisture and exposure reach them less or more than a clean wall."""
    power = float(np.exp(rng.normal(0.15, 0.35)))
    inside = cv2.blur(coverage, (3, 3))[..., None]
    return np.asarray(shading * (1.0 - inside) + inside * np.clip(shading, 1e-3, None) ** power, np.float32)


def _end_wall(patch: _Patch, background: Floats, rng: np.random.Generator) -> _Patch:
    """The patch with the edge of its wall in it, sharp as of a slab or round as of a column, and what is behind."""
    side = len(patch.ids)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    v, u = np.mgrid[:side, :side].astype(np.float32) - np.float32(0.5 * side)
    to_edge_px = rng.uniform(-0.1, 0.45) * side - (np.cos(angle) * u + np.sin(angle) * v)
    on_wall = to_edge_px > 0.0
    shading, depth_m = patch.shading, patch.depth_m
    if rng.random() < 0.6:
        radius_px = np.exp(rng.uniform(np.log(100.0), np.log(1500.0)))
        along = np.clip(1.0 - to_edge_px / radius_px, 0.0, 1.0)  # sine of the angle that the surface is turned away
        facing = np.sqrt(1.0 - along**2)
        depth_m = depth_m * (1.0 + (1.0 - facing) * radius_px / VIEW_FOCAL_PX)
        shading = shading * (1.0 - rng.uniform(-0.3, 1.0) * (1.0 - facing))[..., None]
    behind_m = float(np.median(patch.depth_m)) * (1.0 + np.exp(rng.uniform(np.log(0.03), np.log(5.0))))
    return _Patch(
        shading=np.where(on_wall[..., None], shading, 1.0).astype(np.float32),
        albedo=np.where(on_wall[..., None], patch.albedo, background).astype(np.float32),
        coverage=np.where(on_wall, patch.coverage, 0.0).astype(np.float32),
        ids=np.where(on_wall, patch.ids, 0).astype(np.int32),
        depth_m=np.where(on_wall, depth_m, behind_m).astype(np.float32),
    )


def _flat_depth(depth_m: Floats) -> Floats:
    """The intact wall: inverse depth of a plane through the picture's corners and middle."""
    rows, columns = np.mgrid[0 : depth_m.shape[0], 0 : depth_m.shape[1]].astype(np.float32)
    step = 16
    design = np.stack([np.ones_like(rows), rows, columns], axis=-1)
    inverse = 1.0 / depth_m[::step, ::step].ravel()
    sampled = design[::step, ::step].reshape(-1, 3)
    nearest = inverse > np.quantile(inverse, 0.3)
    coefficients = np.linalg.lstsq(sampled[nearest], inverse[nearest], rcond=None)[0]
    return np.asarray(1.0 / (design @ coefficients), np.float32)


@dataclass(frozen=True)
class _Returns:
    """What a range sensor sends: pixels (N, 2) to which it thinks its points project, depths and intensities (N,)."""

    pixels: NDArray[np.float64]
    depths_m: NDArray[np.float64]
    intensity: Floats


@dataclass(frozen=True)
class _DepthCamera:
    """Spacing of the points in pixels, white noise, and deviation of the bumps that texture and matching make."""

    spacing_px: float
    noise_m: float
    bumps_m: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _DepthCamera:
        spacing_px = float(np.exp(rng.uniform(np.log(1.2), np.log(6.0))))
        noise_m = float(np.exp(rng.uniform(np.log(4e-5), np.log(1.5e-3))))
        bumps_m = float(np.exp(rng.uniform(np.log(1e-4), np.log(1.2e-3)))) if rng.random() < 0.4 else 0.0
        return cls(spacing_px, noise_m, bumps_m)


def _paint(
    depth_m: Floats, ids: NDArray[np.int32], sensor: _DepthCamera, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """Depths without some of the holes, and where (H, W) these were.

    They go on looking like airholes, so that only range tells them from true ones. Left alone is what this sensor
    could not tell: the answer would have to be guessed.
    """
    depth_m = depth_m.copy()
    flat = np.zeros(depth_m.shape, np.bool_)
    for number, box in enumerate(ndimage.find_objects(ids), start=1):
        if box is None or rng.random() < 0.5:
            continue
        window = tuple(slice(max(side.start - 4, 0), side.stop + 4) for side in box)
        inside = ids[window] == number
        around = ndimage.binary_dilation(ids[window] > 0, iterations=3)
        hole = ndimage.binary_dilation(inside, iterations=3) & (inside | (ids[window] == 0))
        points = inside.sum() / sensor.spacing_px**2
        if (~around).sum() < 12 or points < 1.0:
            continue
        sound = depth_m[window][~around]
        if sound.max() > _ONE_SURFACE * sound.min():
            continue
        v, u = np.indices(inside.shape, np.float32)
        design = np.stack([np.ones_like(u), u, v], axis=-1)
        plane = np.linalg.lstsq(design[~around], 1.0 / sound, rcond=None)[0]
        sound_m = 1.0 / (design @ plane)
        mean_depth_m = float((depth_m[window] - sound_m)[inside].mean())
        if mean_depth_m > _PLAIN * (sensor.noise_m / np.sqrt(points) + sensor.bumps_m):
            depth_m[window] = np.where(hole, sound_m, depth_m[window])
            flat[window] |= hole
    return depth_m, flat


def _depth_camera_returns(
    depth_m: Floats, coverage: Floats, albedo: Floats, sensor: _DepthCamera, rng: np.random.Generator
) -> _Returns:
    """Returns as of a stereo or structured-light camera, with its faults."""
    height, width = depth_m.shape
    rows = np.arange(rng.random() * sensor.spacing_px, height - 1, sensor.spacing_px)
    columns = np.arange(rng.random() * sensor.spacing_px, width - 1, sensor.spacing_px)
    v, u = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing='ij'))
    at_row, at_column = np.rint(v).astype(np.intp), np.rint(u).astype(np.intp)
    depths = depth_m[at_row, at_column].astype(np.float64)

    depths += rng.normal(0.0, sensor.noise_m, depths.shape)
    if sensor.bumps_m > 0.0:  # texture of the surface and correlated matching errors
        # What is dark on a rough surface is often a gap between its grains.
        grain = -np.log(np.maximum(albedo.mean(axis=2), 1e-3))
        source = grain if rng.random() < 0.5 else rng.standard_normal((height, width))
        bumps = cv2.GaussianBlur(source.astype(np.float32), (0, 0), rng.uniform(1.5, 5.0))
        bumps -= bumps.mean()
        depths += sensor.bumps_m / max(float(bumps.std()), 1e-9) * bumps[at_row, at_column]
    keep = rng.random(depths.shape) > rng.uniform(0.0, 0.2)
    if rng.random() < 0.5:  # shadows of the baseline at steep walls
        step_m = np.abs(ndimage.sobel(depth_m, axis=1)) / 8.0
        keep &= step_m[at_row, at_column] < rng.uniform(0.0005, 0.003)
    if rng.random() < 0.3:  # nothing to match in the dark
        gaps = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 6.0)
        keep &= ~((gaps > 0.0) & (coverage > 0.5))[at_row, at_column]
    if rng.random() < 0.3:  # it sees no farther, or not as far aside as the camera
        keep &= depths < np.median(depths) * np.exp(rng.uniform(np.log(1.03), np.log(4.0)))
    if rng.random() < 0.15:
        angle = rng.uniform(0.0, 2.0 * np.pi)
        across = np.cos(angle) * (u - 0.5 * width) + np.sin(angle) * (v - 0.5 * height)
        keep &= across < rng.uniform(-0.2, 0.45) * width
    shift = rng.normal(0.0, 0.7, 2)  # what is left of the calibration
    pixels = np.stack([u, v], axis=1) + shift
    inside = (pixels >= 0).all(axis=1) & (pixels[:, 0] <= width - 1) & (pixels[:, 1] <= height - 1) & keep
    intensity = _intensities(depth_m, coverage, albedo, 0.0, rng)[at_row, at_column]
    return _Returns(pixels[inside], depths[inside], _receive(intensity[inside], rng))


def _intensities(
    depth_m: Floats, coverage: Floats, albedo: Floats, footprint_px: float, rng: np.random.Generator
) -> Floats:
    """What the range sensor's own light brings back, (H, W): reflectance in another colour, less of steep surfaces."""
    slope = np.hypot(cv2.Sobel(depth_m, cv2.CV_32F, 1, 0), cv2.Sobel(depth_m, cv2.CV_32F, 0, 1)) / 8.0
    cosine = 1.0 / np.sqrt(1.0 + (slope / max(rng.uniform(1e-4, 1e-3), 1e-6)) ** 2)
    colours = rng.dirichlet([0.5, 0.5, 2.0]).astype(np.float32)  # mostly red, the nearest to infrared
    signal = (albedo @ colours) ** np.float32(np.exp(rng.normal(0.0, 0.25))) * cosine.astype(np.float32)
    # Dirt and the light that goes astray in a cavity.
    signal *= 1.0 - coverage * np.float32(rng.uniform(-0.3, 0.7))
    if footprint_px > 0.3:
        signal = np.asarray(cv2.GaussianBlur(signal, (0, 0), footprint_px))
    return np.asarray(signal, np.float32)


def _receive(signal: Floats, rng: np.random.Generator) -> Floats:
    noise = float(np.exp(rng.uniform(np.log(0.003), np.log(0.08))))
    received = signal * (1.0 + noise * rng.standard_normal(signal.shape))
    if rng.random() < 0.3:  # bytes
        received = np.round(received * 255.0 * rng.uniform(0.5, 2.0))
    return np.asarray(np.maximum(received, 0.0), np.float32)


def _lidar_returns(depth_m: Floats, albedo: Floats, rng: np.random.Generator) -> _Returns:
    """Returns as of a time-of-flight LiDAR: sparse, centimetres of noise, a wide beam."""
    height, width = depth_m.shape
    if rng.random() < 0.5:  # rings
        rows = np.arange(rng.uniform(0.0, 20.0), height - 1, rng.uniform(3.0, 25.0))
        columns = np.arange(rng.uniform(0.0, 5.0), width - 1, rng.uniform(1.5, 8.0))
        v, u = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing='ij'))
        v = np.clip(v + rng.normal(0.0, 1.0) + rng.normal(0.0, 0.3, v.shape), 0, height - 1)
    else:  # a pattern that never repeats
        count = int(height * width / np.exp(rng.uniform(np.log(4.0), np.log(60.0))))
        u, v = rng.uniform(0.0, width - 1, count), rng.uniform(0.0, height - 1, count)
    at_row, at_column = np.rint(v).astype(np.intp), np.rint(u).astype(np.intp)
    depths = depth_m[at_row, at_column].astype(np.float64)
    depths += rng.normal(0.0, rng.uniform(0.004, 0.03), depths.shape) + rng.normal(0.0, 0.005)
    keep = rng.random(depths.shape) > rng.uniform(0.0, 0.3)
    footprint_px = float(rng.uniform(0.5, 5.0))
    intensity = _intensities(depth_m, np.zeros_like(depth_m), albedo, footprint_px, rng)[at_row, at_column]
    pixels = np.stack([u, v], axis=1)
    return _Returns(pixels[keep], np.maximum(depths, 0.05)[keep], _receive(intensity[keep], rng))


@dataclass(frozen=True)
class MatchConfig:
    """How pairs of a picture and of points laid on a wrong view of it are made."""

    context_px: int = setting(56, 'margin from which points come into view', unit='px', low=0, high=512)
    batch_size: int = setting(4, 'pairs a step', low=1, high=4096)
    shift_px: float = setting(72.0, 'largest shift of the points', unit='px', low=0.0, high=1000.0)
    rotation_deg: float = setting(10.0, 'deviation of the rotation of the points', unit='deg', low=0.0, high=90.0)
    scale: float = setting(0.08, 'deviation of the logarithm of their scale', low=0.0, high=1.0)
    lidar_share: float = setting(0.4, 'pairs with points of a time-of-flight LiDAR', low=0.0, high=1.0)
    no_intensity_share: float = setting(0.1, 'pairs without intensity', low=0.0, high=1.0)


class PairDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Pair number i of a run: picture, point maps and where each place of the maps is in the picture."""

    def __init__(self, config: MatchConfig, crops: CropDataset, length: int) -> None:
        """crops: the run's crops, whose views and backgrounds are used."""
        self._config = config
        self._crops = crops
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """image (3, S, S), point maps (5, S / 2, S / 2), T_image_maps (3, 3): homogeneous pixels, all float32."""
        cv2.setNumThreads(1)
        config = self._config
        rng = np.random.default_rng((self._crops.seed, index, 1))
        crop_px = self._crops.crop_px
        side = crop_px + 2 * config.context_px
        patch = self._crops.draw(side, rng)
        image = _photograph(patch, config.context_px, rng)
        if not np.isfinite(patch.depth_m[0, 0]):
            returns = _Returns(np.empty((0, 2)), np.empty(0), np.empty(0, np.float32))
        elif rng.random() < config.lidar_share:
            returns = _lidar_returns(patch.depth_m, patch.albedo, rng)
        else:
            returns = _depth_camera_returns(patch.depth_m, patch.coverage, patch.albedo, _DepthCamera.draw(rng), rng)
        T_image_maps = _draw_misalignment(config, crop_px, rng)
        pixels = returns.pixels - config.context_px
        homogeneous = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(T_image_maps).T
        pixels = homogeneous[:, :2] / homogeneous[:, 2:]
        seen = (pixels >= 0.0).all(axis=1) & (pixels <= crop_px - 1.0).all(axis=1)
        intensity = None if rng.random() < config.no_intensity_share else returns.intensity[seen]
        maps = point_features(pixels[seen], returns.depths_m[seen], intensity, crop_px, crop_px)
        return (
            torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1) / 255.0),
            torch.from_numpy(maps),
            torch.from_numpy(T_image_maps.astype(np.float32)),
        )


def _draw_misalignment(config: MatchConfig, crop_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """T_image_maps (3, 3): what a wrong pose of the sensor does to pixels of a wall, turned about the middle."""
    angle = np.radians(rng.normal(0.0, config.rotation_deg))
    scale = np.exp(rng.normal(0.0, config.scale))
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    shift = rng.uniform(-config.shift_px, config.shift_px, 2)
    tilt = rng.normal(0.0, 0.05, 2) / crop_px
    middle = 0.5 * (crop_px - 1)
    centred = np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]], [tilt[0], tilt[1], 1.0]])
    to_middle = np.array([[1.0, 0.0, -middle], [0.0, 1.0, -middle], [0.0, 0.0, 1.0]])
    return np.asarray(np.linalg.inv(to_middle) @ centred @ to_middle)
