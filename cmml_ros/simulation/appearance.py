"""What concrete looks like: reflectance in the developed coordinates of a wall, at any resolution.

Multiplicative noise layers (grain, mottling, clouds, boards) carry decals (stains, cracks, rust, paint, writing ...).
Reflectance is linear, BGR, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

from cmml_ros.simulation.wall import Wall

Array = NDArray[np.float64]
Image = NDArray[np.float32]

_TILE = 1024


class Texture:
    """A picture that repeats or ends, sampled without aliasing: halved copies are made when they are needed."""

    def __init__(self, picture: Image | NDArray[np.uint8], *, repeats: bool) -> None:
        self._levels: list[Any] = [picture]
        self._border = cv2.BORDER_WRAP if repeats else cv2.BORDER_CONSTANT
        self._repeats = repeats

    def sample(self, u: Image, v: Image, texels_per_pixel: float) -> Image:
        """Values at texel coordinates (column u, row v), averaged over about a pixel."""
        level = max(0, round(math.log2(max(texels_per_pixel, 1e-6))))
        while len(self._levels) <= level and min(self._levels[-1].shape[:2]) >= 4:
            last = self._levels[-1]
            half = (max(1, last.shape[1] // 2), max(1, last.shape[0] // 2))
            self._levels.append(cv2.resize(last, half, interpolation=cv2.INTER_AREA))
        picture = self._levels[min(level, len(self._levels) - 1)]
        scale_u, scale_v = picture.shape[1] / self._levels[0].shape[1], picture.shape[0] / self._levels[0].shape[0]
        u = (u + 0.5) * scale_u - 0.5
        v = (v + 0.5) * scale_v - 0.5
        if self._repeats:
            u, v = np.mod(u, picture.shape[1]), np.mod(v, picture.shape[0])
        u, v = u.astype(np.float32, copy=False), v.astype(np.float32, copy=False)
        values = cv2.remap(picture, u, v, cv2.INTER_LINEAR, borderMode=self._border)
        return np.asarray(values, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Layer:
    """Noise that multiplies reflectance by exp(gain * noise).

    texels_per_m: (2, 2) from developed coordinates to texels. gain: (3,) BGR.
    """

    texture: Texture
    texels_per_m: Array
    gain: Array

    def sample(self, developed: Image, pixel_m: float) -> Image:
        """Noise (H, W) at developed coordinates (H, W, 2)."""
        matrix = self.texels_per_m.astype(np.float32)
        s, t = developed[..., 0], developed[..., 1]
        u, v = matrix[0, 0] * s + matrix[0, 1] * t, matrix[1, 0] * s + matrix[1, 1] * t
        density = float(np.linalg.svd(self.texels_per_m, compute_uv=False)[0])
        return self.texture.sample(u, v, pixel_m * density)


@dataclass(frozen=True, eq=False)
class Joints:
    """Straight joints at equal distance: boards or panels, each with its own tone.

    direction: (2,) unit vector across the joints. tones: log reflectance of the boards, in turn. line_gain: of the
    joint itself. broken: noise that interrupts the line where it is below `gap`.
    """

    direction: Array
    spacing_m: float
    offset_m: float
    tones: Array
    line_width_m: float
    line_gain: float
    broken: Layer
    gap: float

    def sample(self, developed: Image, pixel_m: float) -> Image:
        """Log reflectance (H, W)."""
        across = developed[..., 0] * np.float32(self.direction[0]) + developed[..., 1] * np.float32(self.direction[1])
        position = (across - np.float32(self.offset_m)) / np.float32(self.spacing_m)
        board = np.floor(position).astype(np.int32)
        distance = np.abs(position - np.rint(position)) * np.float32(self.spacing_m)
        width = max(self.line_width_m, pixel_m / 2)
        line = np.exp(-((distance / np.float32(width)) ** 2)) * np.float32(self.line_width_m / width)
        near = np.flatnonzero(line.max(axis=1) > 0.01)
        if len(near):
            rows = slice(near[0], near[-1] + 1)
            line[rows] *= np.clip(4 * (self.broken.sample(developed[rows], pixel_m) - self.gap), 0, 1)
        value: Image = self.tones.astype(np.float32)[board % len(self.tones)] + np.float32(self.line_gain) * line
        return value


@dataclass(frozen=True, eq=False)
class Decal:
    """Something flat on the wall: reflectance becomes r * (1 + a (tint - 1)) + a * paint for its opacity a.

    left_m, top_m: developed coordinates of its corner; opacity: (h, w), 255 is opaque, row 0 at the top; outline:
    (n, 2), developed coordinates.
    """

    kind: str
    left_m: float
    top_m: float
    texel_m: float
    opacity: Texture
    shape: tuple[int, int]
    tint: Array
    paint: Array
    outline: Array

    def apply(self, reflectance: Image, developed: Image, pixel_m: float) -> None:
        """Change `reflectance` (H, W, 3) in place, where the decal lies."""
        step = 8
        u = (developed[::step, ::step, 0] - self.left_m) / self.texel_m
        v = (self.top_m - developed[::step, ::step, 1]) / self.texel_m
        margin = 1.5 * step * pixel_m / self.texel_m + 2
        height, width = self.shape
        near = (u > -margin) & (u < width + margin) & (v > -margin) & (v < height + margin)
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not len(rows):
            return
        part = (
            slice(rows[0] * step, rows[-1] * step + step),
            slice(columns[0] * step, columns[-1] * step + step),
        )
        s, t = developed[part][..., 0], developed[part][..., 1]
        # Opacity is sampled at the middle of texels; row 0 lies at the top.
        u = (s - np.float32(self.left_m)) / np.float32(self.texel_m) - np.float32(0.5)
        v = (np.float32(self.top_m) - t) / np.float32(self.texel_m) - np.float32(0.5)
        opacity = self.opacity.sample(u, v, pixel_m / self.texel_m)[..., None] / np.float32(255)
        below = reflectance[part]
        below *= 1 + opacity * (self.tint - 1).astype(np.float32)
        below += opacity * self.paint.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Appearance:
    """Everything that reflectance needs; hole_tints: (holes, 3), the inside of an airhole over the wall around it."""

    base: Array
    layers: tuple[Layer, ...]
    joints: tuple[Joints, ...]
    decals: tuple[Decal, ...]
    relief_layers: tuple[tuple[Layer, Layer], ...]
    hole_tints: Array

    def reflectance(self, developed: Image, pixel_m: float) -> Image:
        """Linear BGR reflectance (H, W, 3) at developed coordinates (H, W, 2), averaged over about `pixel_m`."""
        developed = np.nan_to_num(developed).astype(np.float32, copy=False)
        log = np.empty((*developed.shape[:2], 3), dtype=np.float32)
        log[:] = np.log(self.base)
        for layer in self.layers:
            noise = layer.sample(developed, pixel_m)
            for channel in range(3):
                log[..., channel] += np.float32(layer.gain[channel]) * noise
        for joints in self.joints:
            log += joints.sample(developed, pixel_m)[..., None]
        reflectance: Image = np.exp(log)
        for decal in self.decals:
            decal.apply(reflectance, developed, pixel_m)
        return np.clip(reflectance, 0.004, 0.9, out=reflectance)

    def relief(self, developed: Image, pixel_m: float, slope: tuple[float, float]) -> Image:
        """Factor (H, W) by which small bumps change the light that falls in with tangents `slope` along (s, t)."""
        developed = np.nan_to_num(developed).astype(np.float32, copy=False)
        factor = np.ones(developed.shape[:2], dtype=np.float32)
        for along_s, along_t in self.relief_layers:
            factor -= np.float32(slope[0] * along_s.gain[0]) * along_s.sample(developed, pixel_m)
            factor -= np.float32(slope[1] * along_t.gain[0]) * along_t.sample(developed, pixel_m)
        return np.clip(factor, 0.25, 2.0, out=factor)


def make_appearance(
    wall: Wall, hole_centres: Array, hole_radii: Array, distractor_density: float, rng: np.random.Generator
) -> Appearance:
    """A look drawn at random for `wall`; distractor_density 1 is a usual number of decals, 0 a clean wall."""
    base, layers, relief = _concrete(rng)
    joints = _joints(wall, layers[0], rng)
    decals = _decals(wall, hole_centres, hole_radii, distractor_density, rng)
    tints = rng.uniform(0.2, 0.85, (len(hole_centres), 1)) * rng.uniform(0.92, 1.05, (len(hole_centres), 3))
    return Appearance(base, layers, joints, decals, relief, tints)


def _concrete(rng: np.random.Generator) -> tuple[Array, tuple[Layer, ...], tuple[tuple[Layer, Layer], ...]]:
    lightness = float(np.clip(rng.normal(0.36, 0.12), 0.10, 0.68))
    warmth, green = rng.normal(0.05, 0.06), rng.normal(0.01, 0.015)
    base = lightness * np.array([1 - warmth, 1 + green, 1 + 0.3 * warmth])

    def gain(amplitude: float, hue: float) -> Array:
        return amplitude * (1 + hue * rng.uniform(-1.5, 1.5) * np.array([1.0, 0.1, -0.6]))

    # Pictures of concrete hold about the same contrast in every octave: amplitude falls as 1 / frequency. Per octave it
    # is 1 to 2 % of the mean, up to 4 % on rough or dirty surfaces; a tile of ten octaves has about three times that.
    contrast = float(np.clip(rng.lognormal(math.log(0.065), 0.6), 0.015, 0.22))
    fine = _uneven(_spectral_tile(rng, rng.uniform(0.7, 1.15)), rng)
    mottle = _uneven(_spectral_tile(rng, rng.uniform(0.9, 1.3)), rng)
    cloud = _spectral_tile(rng, rng.uniform(1.6, 2.6))
    layers = [
        Layer(Texture(fine, repeats=True), _turned(rng, 3500.0), gain(contrast * rng.uniform(0.6, 1.2), 0.08)),
        Layer(Texture(mottle, repeats=True), _turned(rng, 900.0), gain(contrast * rng.uniform(0.4, 1.2), 0.3)),
        Layer(Texture(cloud, repeats=True), _turned(rng, 250.0), gain(contrast * rng.uniform(0.1, 1.2), 0.35)),
    ]
    if rng.random() < 0.6:  # vertical or horizontal streaks: wood grain of the form, or water
        streaks = _uneven(_spectral_tile(rng, rng.uniform(0.8, 1.5), stretch=rng.uniform(5, 30)), rng)
        matrix = np.diag([1.0, 1.0]) if rng.random() < 0.75 else np.array([[0.0, 1.0], [1.0, 0.0]])
        strength = gain(contrast * rng.uniform(0.2, 1.3), 0.3)
        layers.append(Layer(Texture(streaks, repeats=True), matrix * rng.uniform(400, 2000), strength))
    for _ in range(int(rng.choice([0, 1, 2], p=[0.25, 0.5, 0.25]))):  # aggregate and pinholes too small to count
        specks = _speck_tile(rng, rng.uniform(0.9, 3.5))
        strength = gain(rng.choice([-1.0, -1.0, 1.0]) * rng.uniform(0.05, 0.6), 0.1)
        layers.append(Layer(Texture(specks, repeats=True), _turned(rng, 2500.0), strength))
    return base, tuple(layers), _relief((mottle, fine), rng)


def _relief(heights: tuple[Image, ...], rng: np.random.Generator) -> tuple[tuple[Layer, Layer], ...]:
    """Slopes of bumpy tiles along s and t; they turn with nothing, so that a slope keeps its direction."""
    pairs = []
    for height, per_m, strength in zip(heights, (700.0, 3500.0), rng.uniform(0.01, 0.09, 2), strict=True):
        along_u = np.roll(height, -1, axis=1) - np.roll(height, 1, axis=1)
        along_v = np.roll(height, -1, axis=0) - np.roll(height, 1, axis=0)
        matrix = np.diag([per_m, per_m])
        pairs.append(
            (
                Layer(Texture(along_u / along_u.std(), repeats=True), matrix, np.full(3, strength)),
                Layer(Texture(along_v / along_v.std(), repeats=True), matrix, np.full(3, strength)),
            )
        )
    return tuple(pairs)


def _joints(wall: Wall, broken: Layer, rng: np.random.Generator) -> tuple[Joints, ...]:
    joints = []
    if rng.random() < 0.45:
        direction = np.array([1.0, 0.0]) if rng.random() < 0.5 else np.array([0.0, 1.0])
        joints.append(
            Joints(
                direction,
                rng.uniform(0.08, 0.25),
                rng.uniform(0, 1),
                rng.normal(0, rng.uniform(0.01, 0.08), 29),
                rng.uniform(0.0003, 0.0015),
                rng.uniform(-1.2, 0.3),
                broken,
                rng.uniform(-1.5, 0.3),
            )
        )
    if rng.random() < 0.4:
        for direction, extent in ((np.array([1.0, 0.0]), wall.width_m), (np.array([0.0, 1.0]), wall.height_m)):
            joints.append(
                Joints(
                    direction,
                    rng.uniform(0.6, 1.5),
                    rng.uniform(0, extent),
                    rng.normal(0, 0.04, 17),
                    rng.uniform(0.0008, 0.004),
                    rng.uniform(-2.5, 0.2),
                    broken,
                    rng.uniform(-2.5, -0.3),
                )
            )
    return tuple(joints)


def _spectral_tile(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> Image:
    """Periodic noise of unit deviation whose amplitude falls as frequency^-slope; stretched along rows' normal."""
    frequency = np.hypot(fft.rfftfreq(_TILE)[None, :], fft.fftfreq(_TILE)[:, None] * stretch).astype(np.float32)
    amplitude = np.maximum(frequency, 2.0 / _TILE) ** -slope
    amplitude[0, 0] = 0.0
    spectrum = fft.rfft2(rng.standard_normal((_TILE, _TILE), dtype=np.float32)) * amplitude
    tile = fft.irfft2(spectrum, s=(_TILE, _TILE))
    return np.asarray(tile / tile.std(), dtype=np.float32)


def _uneven(tile: Image, rng: np.random.Generator) -> Image:
    """The tile with a contrast that changes from place to place, and with its bright side flattened, as haze does."""
    other = _spectral_tile(rng, 1.6)
    uneven = tile * np.exp(np.float32(rng.uniform(0.1, 0.6)) * other)
    uneven = -np.expm1(np.float32(-rng.uniform(0.05, 0.35)) * np.clip(uneven, -5, 5))
    return np.asarray((uneven - uneven.mean()) / uneven.std(), dtype=np.float32)


def _speck_tile(rng: np.random.Generator, size: float) -> Image:
    """Sparse blobs with soft edges, 0 to 1: band-passed noise above a threshold."""
    noise = rng.standard_normal((_TILE, _TILE)).astype(np.float32)
    band = gaussian_filter(noise, size, mode='wrap') - gaussian_filter(noise, 2.5 * size, mode='wrap')
    band /= band.std()
    low, width = rng.uniform(1.6, 2.8), rng.uniform(0.3, 1.2)
    return np.asarray(np.clip((band - low) / width, 0, 1), dtype=np.float32)


def _turned(rng: np.random.Generator, texels_per_m: float) -> Array:
    angle, scale = rng.uniform(0, 2 * math.pi), texels_per_m * rng.uniform(0.6, 1.6)
    return scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


# ---- decals: each maker returns opacity (h, w) in [0, 1], its texel size, tint and paint ----

_Drawing = tuple[Image, float, Array, Array]
_BLACK = np.zeros(3)


def _decals(
    wall: Wall, hole_centres: Array, hole_radii: Array, density: float, rng: np.random.Generator
) -> tuple[Decal, ...]:
    area = wall.width_m * wall.height_m
    decals = []
    for kind, per_m2, share, draw in _KINDS:
        # Not every wall has everything: `share` of them have the kind at all.
        if density <= 0 or rng.random() > share:
            continue
        for _ in range(int(rng.poisson(density * per_m2 * area * rng.uniform(0.3, 2.0)))):
            middle = rng.uniform(0, 1, 2) * (wall.width_m, wall.height_m)
            decals.append(_place(kind, draw(rng), middle))
    if density > 0 and len(hole_centres):
        around = rng.random() * 0.15
        for centre, radius in zip(hole_centres, hole_radii, strict=True):
            if rng.random() < around:
                decals.append(_place('halo', _halo(rng, float(radius)), centre))
            elif rng.random() < around / 2:
                drawing = _run(rng, 2.0 * float(radius))
                decals.append(_place('run', drawing, centre - [0.0, drawing[0].shape[0] / 2 * drawing[1]]))
    order = rng.permutation(len(decals))
    return tuple(decals[index] for index in order)


def _place(kind: str, drawing: _Drawing, middle: Array) -> Decal:
    opacity, texel_m, tint, paint = drawing
    height, width = opacity.shape
    left, top = float(middle[0]) - width / 2 * texel_m, float(middle[1]) + height / 2 * texel_m
    bytes_ = np.round(np.clip(opacity, 0, 1) * 255).astype(np.uint8)
    visible = (bytes_ > 0.4 * max(int(bytes_.max()), 1)).astype(np.uint8)
    contours, _ = cv2.findContours(visible, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = max(contours, key=cv2.contourArea) if contours else np.zeros((1, 1, 2), np.int32)
    if kind in ('writing', 'crack', 'efflorescence', 'moss', 'splash', 'aggregate') and contours:
        points = cv2.convexHull(np.vstack(contours))
    outline = np.array([left, top]) + (points[:, 0, :] + 0.5) * np.array([texel_m, -texel_m])
    return Decal(kind, left, top, texel_m, Texture(bytes_, repeats=False), (height, width), tint, paint, outline)


def _grid(height: int, width: int) -> tuple[Image, Image]:
    """Coordinates from -1 to 1 to the right (x) and up (y)."""
    y, x = np.meshgrid(np.linspace(1, -1, height), np.linspace(-1, 1, width), indexing='ij')
    return x.astype(np.float32), y.astype(np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, cells: float) -> Image:
    """Fractal noise of about unit deviation; `cells` of the coarsest octave along the longer side."""
    total = np.zeros((height, width), dtype=np.float32)
    amplitude, longer = 1.0, max(height, width)
    while cells < longer / 2:
        shape = (max(2, round(cells * height / longer)) + 1, max(2, round(cells * width / longer)) + 1)
        lattice = rng.standard_normal(shape).astype(np.float32)
        total += np.float32(amplitude) * cv2.resize(lattice, (width, height), interpolation=cv2.INTER_CUBIC)
        amplitude, cells = amplitude * 0.55, cells * 2
    return total


def _step(value: NDArray[Any], softness: float) -> Image:
    """0 below -softness, 1 above +softness, smooth between."""
    x = np.clip(value / (2 * softness) + 0.5, 0, 1)
    return np.asarray(x * x * (3 - 2 * x), dtype=np.float32)


def _blob(rng: np.random.Generator, size: int, irregularity: float, softness: float, aspect: float = 1.0) -> Image:
    """A patch with a noisy edge that fits a square of `size` texels."""
    x, y = _grid(size, size)
    radius = np.hypot(x * max(1.0, aspect), y * max(1.0, 1 / aspect)) / 0.7
    edge = 1 - radius + irregularity * _noise(rng, size, size, 3.0)
    # Nothing may be cut by the end of the picture.
    return _step(edge, softness) * _step(0.93 - np.maximum(np.abs(x), np.abs(y)), 0.06)


def _stain(rng: np.random.Generator) -> _Drawing:
    size_m, texels = float(np.clip(rng.lognormal(math.log(0.018), 0.7), 0.003, 0.12)), 128
    opacity = _blob(rng, texels, rng.uniform(0.05, 0.3), rng.uniform(0.04, 0.4), rng.uniform(0.5, 1.6))
    opacity *= np.clip(0.8 + 0.25 * _noise(rng, texels, texels, 6.0), 0.2, 1)
    shade = rng.uniform(0.5, 0.93) if rng.random() < 0.8 else rng.uniform(1.05, 1.35)
    return opacity, size_m / texels, shade * rng.uniform(0.97, 1.03, 3), _BLACK


def _painted_spot(rng: np.random.Generator) -> _Drawing:
    size_m, texels = float(np.clip(rng.lognormal(math.log(0.008), 0.55), 0.002, 0.035)), 96
    aspect = math.exp(rng.normal(0, 0.25))
    opacity = _blob(rng, texels, rng.choice([0.03, 0.1, 0.25]), rng.choice([0.02, 0.05, 0.2]), aspect)
    opacity *= rng.uniform(0.85, 1.0)
    paint = rng.uniform(0.005, 0.06) * rng.uniform(0.7, 1.3, 3)
    return opacity, size_m / 0.7 / texels, _BLACK, paint


def _rust_spot(rng: np.random.Generator) -> _Drawing:
    size_m, texels = float(np.clip(rng.lognormal(math.log(0.015), 0.7), 0.003, 0.08)), 128
    opacity = _blob(rng, texels, rng.uniform(0.2, 0.5), rng.uniform(0.1, 0.5))
    opacity *= np.clip(0.75 + 0.3 * _noise(rng, texels, texels, 8.0), 0, 1)
    return opacity, size_m / texels, np.array([0.25, 0.4, 0.6]), _rust(rng)


def _rust_run(rng: np.random.Generator) -> _Drawing:
    opacity, texel_m, _, _ = _run(rng, rng.uniform(0.004, 0.03))
    return opacity, texel_m, np.array([0.4, 0.6, 0.8]), 0.8 * _rust(rng)


def _rust(rng: np.random.Generator) -> Array:
    return np.array([0.02, 0.06, 0.16]) * rng.uniform(0.4, 1.3) * rng.uniform(0.8, 1.2, 3)


def _run(rng: np.random.Generator, width_m: float | None = None) -> _Drawing:
    """A streak that runs down from its upper end and fades."""
    width_m = width_m if width_m is not None else rng.uniform(0.006, 0.08)
    length_m = width_m * rng.uniform(2.5, 12)
    height, width = 256, 64
    texel_m = length_m / height
    width = max(8, round(1.8 * width_m / texel_m))
    x, y = _grid(height, width)
    wander = 0.25 * cv2.resize(_noise(rng, 32, 4, 3.0), (width, height), interpolation=cv2.INTER_CUBIC)
    columns = cv2.resize(
        rng.standard_normal((3, max(3, width // 3))).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    opacity = _step(0.55 - np.abs(x + wander) + 0.15 * columns, 0.3) * _step(1.02 - np.abs(x), 0.12)
    start = 0.9 - 0.25 * x * x - rng.uniform(0.02, 0.15) * np.abs(columns)
    opacity *= np.clip((y + 1) / 2, 0, 1) ** rng.uniform(0.4, 1.6) * _step(start - y, rng.uniform(0.02, 0.15))
    opacity *= np.clip(0.8 + 0.3 * columns, 0.1, 1)
    shade = rng.uniform(0.55, 0.92) if rng.random() < 0.7 else rng.uniform(1.08, 1.5)
    return opacity.astype(np.float32), texel_m, shade * rng.uniform(0.97, 1.03, 3), _BLACK


def _wet_patch(rng: np.random.Generator) -> _Drawing:
    size_m, texels = rng.uniform(0.04, 0.35), 256
    opacity = _blob(rng, texels, rng.uniform(0.15, 0.45), rng.uniform(0.03, 0.25), rng.uniform(0.5, 1.5))
    return opacity, size_m / texels, rng.uniform(0.4, 0.75) * np.array([0.97, 1.0, 1.0]), _BLACK


def _efflorescence(rng: np.random.Generator) -> _Drawing:
    size_m, texels = rng.uniform(0.02, 0.25), 256
    opacity = _blob(rng, texels, 0.5, 0.6) * _step(_noise(rng, texels, texels, 10.0) - rng.uniform(-0.5, 0.8), 0.7)
    return opacity * rng.uniform(0.3, 0.9), size_m / texels, np.full(3, 0.4), np.full(3, rng.uniform(0.25, 0.45))


def _moss(rng: np.random.Generator) -> _Drawing:
    size_m, texels = rng.uniform(0.03, 0.3), 256
    opacity = _blob(rng, texels, 0.6, 0.7) * _step(_noise(rng, texels, texels, 14.0) - rng.uniform(0.0, 1.2), 0.3)
    paint = np.array([0.02, 0.045, 0.035]) * rng.uniform(0.3, 1.5) * rng.uniform(0.7, 1.3, 3)
    return opacity, size_m / texels, np.full(3, 0.15), paint


def _halo(rng: np.random.Generator, radius_m: float) -> _Drawing:
    texels = 96
    opacity = _blob(rng, texels, rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.7))
    shade = rng.uniform(0.55, 0.9) if rng.random() < 0.6 else rng.uniform(1.1, 1.4)
    size_m = 2 * radius_m * rng.uniform(1.4, 3.5) / 0.7
    return opacity * rng.uniform(0.5, 1), size_m / texels, shade * rng.uniform(0.95, 1.05, 3), _BLACK


def _crack(rng: np.random.Generator) -> _Drawing:
    """A dark line that wanders, forks and changes its width."""
    length_m, width_m = rng.uniform(0.08, 0.6), rng.uniform(0.00015, 0.0012)
    texel_m = max(0.0003, length_m / 1500)
    size = int(1.1 * length_m / texel_m)
    supersample = 2  # widths below a texel come out as grey
    canvas = np.zeros((size * supersample, size * supersample), np.uint8)

    def draw(start: Array, heading: float, steps: int, thickness_m: float, forks: float) -> None:
        position, direction = start, heading
        for _ in range(steps):
            direction = heading + 0.75 * (direction - heading) + rng.normal(0, 0.45)
            step = rng.uniform(2, 9) * np.array([math.cos(direction), math.sin(direction)])
            thickness = max(1, round(thickness_m * rng.uniform(0.3, 1.5) / texel_m * supersample))
            ends = [tuple(round(value * 16) for value in point) for point in (position, position + step)]
            shade = int(255 * min(1.0, thickness_m / texel_m * supersample))
            cv2.line(canvas, ends[0], ends[1], max(shade, 90), thickness, cv2.LINE_AA, 4)
            position = position + step
            if rng.random() < forks:
                aside = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.3)
                draw(position, aside, int(steps * rng.uniform(0.1, 0.5)), 0.6 * thickness_m, forks / 4)

    turn = rng.uniform(0, 2 * math.pi)
    middle = np.full(2, size * supersample / 2)
    start = middle - 0.5 * size * supersample * 0.9 * np.array([math.cos(turn), math.sin(turn)])
    draw(start, turn, int(size * supersample * 0.9 / 5), width_m, rng.choice([0.0, 0.004, 0.012]))
    opacity = np.asarray(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA) / 255, dtype=np.float32)
    tint: Array = np.full(3, rng.uniform(0.05, 0.4))
    return opacity, texel_m, tint, 0.005 + _BLACK


def _slit(rng: np.random.Generator) -> _Drawing:
    """A straight open joint: dark, ragged, with pieces of mortar in it."""
    length_m, width_m = rng.uniform(0.1, 0.6), rng.uniform(0.0008, 0.005)
    texel_m = length_m / 1024
    across = max(12, round(6 * width_m / texel_m))
    x, _ = _grid(1024, across)
    wander = cv2.resize(_noise(rng, 256, 2, 20.0), (across, 1024), interpolation=cv2.INTER_LINEAR)
    filled = cv2.resize(_noise(rng, 256, 2, 12.0), (across, 1024), interpolation=cv2.INTER_LINEAR)
    opacity = _step(0.33 - np.abs(x + 0.05 * wander) + 0.06 * wander, 0.06)
    opacity *= _step(filled + rng.uniform(-0.3, 1.5), 0.2)
    opacity[[0, -1]] = 0
    if rng.random() < 0.3:
        opacity = np.ascontiguousarray(opacity.T)
    return opacity, texel_m, np.full(3, 0.1), rng.uniform(0.01, 0.05) * np.array([0.8, 0.95, 1.0])


def _writing(rng: np.random.Generator) -> _Drawing:
    """Chalk, marker or paint: figures, a cross, a ring, an arrow."""
    canvas = np.zeros((160, 360), np.uint8)
    thickness = int(rng.integers(2, 7))
    choice = rng.random()
    if choice < 0.6:
        words = ['A7', '12', 'B-3', 'OK', '+0.50', 'W24', '17/3', 'x2', 'R1', 'No 5']
        text = str(rng.choice(words))
        cv2.putText(canvas, text, (20, 115), cv2.FONT_HERSHEY_SCRIPT_SIMPLEX, 2.6, 255, thickness, cv2.LINE_AA)
    elif choice < 0.75:
        axes, end = (int(rng.integers(30, 70)), 60), int(rng.integers(280, 360))
        cv2.ellipse(canvas, (180, 80), axes, 0, 0, end, 255, thickness, cv2.LINE_AA)
    elif choice < 0.9:
        cv2.line(canvas, (120, 25), (240, 135), 255, thickness, cv2.LINE_AA)
        cv2.line(canvas, (235, 30), (125, 130), 255, thickness, cv2.LINE_AA)
    else:
        cv2.arrowedLine(canvas, (40, 90), (310, 60), 255, thickness, cv2.LINE_AA, 0, 0.15)
    opacity = canvas.astype(np.float32) / 255 * np.clip(0.75 + 0.35 * _noise(rng, 160, 360, 30.0), 0.1, 1)
    colours = np.array([[0.7, 0.7, 0.7], [0.02, 0.02, 0.02], [0.05, 0.05, 0.5], [0.5, 0.15, 0.05], [0.05, 0.35, 0.6]])
    return opacity, rng.uniform(0.05, 0.3) / 360, np.full(3, 0.1), colours[rng.integers(len(colours))]


def _patch(rng: np.random.Generator) -> _Drawing:
    """Mortar of another tone, with straight sides."""
    height, width = int(rng.integers(60, 200)), int(rng.integers(60, 200))
    x, y = _grid(height, width)
    edge = 0.9 - np.maximum(np.abs(x), np.abs(y)) + 0.02 * _noise(rng, height, width, 8.0)
    return _step(edge, 0.03), rng.uniform(0.05, 0.4) / 200, rng.uniform(0.75, 1.3) * rng.uniform(0.97, 1.03, 3), _BLACK


def _splash(rng: np.random.Generator) -> _Drawing:
    """Drops of mud or paint: many small dark spots, elongated the way they flew."""
    size_m, texels = rng.uniform(0.04, 0.25), 400
    canvas = np.zeros((texels, texels), np.uint8)
    turn = float(rng.uniform(0, 180))
    for _ in range(int(rng.integers(8, 60))):
        x, y = (int(value) for value in np.clip(rng.normal(0.5, 0.17, 2), 0.06, 0.94) * texels)
        radius = float(np.clip(rng.lognormal(math.log(0.0015), 0.5) / size_m * texels, 1, 20))
        axes = (max(1, round(radius * rng.uniform(1, 2.2))), max(1, round(radius)))
        cv2.ellipse(canvas, (x, y), axes, turn, 0, 360, int(rng.integers(140, 256)), -1, cv2.LINE_AA)
    opacity = np.asarray(canvas / np.float32(255), dtype=np.float32)
    return opacity, size_m / texels, _BLACK + 0.1, rng.uniform(0.01, 0.08) * rng.uniform(0.7, 1.3, 3)


def _aggregate(rng: np.random.Generator) -> _Drawing:
    """Where the skin of cement is gone: stones of many tones with dark gaps."""
    size_m, texels = rng.uniform(0.03, 0.25), 320
    stones = int(np.clip((size_m / rng.uniform(0.004, 0.014)) ** 2, 30, 1500))
    seeds = np.ones((texels, texels), np.uint8)
    seeds[rng.integers(0, texels, stones), rng.integers(0, texels, stones)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    typical = texels / math.sqrt(stones)
    gaps = _step(distance / np.float32(typical) - 0.55 + 0.1 * _noise(rng, texels, texels, 20.0), 0.12)
    tones = rng.uniform(0.0, 0.7, int(labels.max()) + 1).astype(np.float32)[labels]
    opacity = _blob(rng, texels, rng.uniform(0.2, 0.45), 0.1) * np.maximum(gaps, tones)
    return opacity, size_m / texels, rng.uniform(0.1, 0.45) * rng.uniform(0.9, 1.1, 3), _BLACK


def _shadow(rng: np.random.Generator) -> _Drawing:
    """The shadow of a rail, a cable or a corner, blurred by the size of the sun."""
    size_m, texels = rng.uniform(0.8, 2.5), 512
    x, y = _grid(texels, texels)
    turn = rng.uniform(0, math.pi)
    across = x * math.cos(turn) + y * math.sin(turn) + rng.uniform(-0.1, 0.1) * (x * x - y * y)
    width = rng.choice([0.01, 0.05, 0.5])
    opacity = _step(width - np.abs(across), rng.uniform(0.004, 0.06)) * _step(
        0.98 - np.maximum(np.abs(x), np.abs(y)), 0.01
    )
    return opacity, size_m / texels, rng.uniform(0.25, 0.6) * np.array([1.1, 1.0, 0.95]), _BLACK


_KINDS: tuple[tuple[str, float, float, Callable[[np.random.Generator], _Drawing]], ...] = (
    ('stain', 25.0, 0.8, _stain),
    ('painted_spot', 14.0, 0.6, _painted_spot),
    ('crack', 2.5, 0.5, _crack),
    ('rust_spot', 4.0, 0.35, _rust_spot),
    ('rust_run', 2.0, 0.25, _rust_run),
    ('run', 5.0, 0.5, _run),
    ('wet_patch', 1.5, 0.3, _wet_patch),
    ('efflorescence', 2.5, 0.3, _efflorescence),
    ('moss', 3.0, 0.2, _moss),
    ('slit', 1.0, 0.2, _slit),
    ('writing', 2.0, 0.3, _writing),
    ('patch', 1.0, 0.2, _patch),
    ('splash', 1.5, 0.2, _splash),
    ('aggregate', 1.5, 0.2, _aggregate),
    ('shadow', 1.0, 0.12, _shadow),
)
