"""From light to pixel values: lens, sensor and what the camera's own software does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import ShapeError

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Response:
    """A camera's answer to light.

    level: linear value, 1 is white, to which the brighter side of the picture is exposed. vignetting: light lost in the
    corners. defocus_px: radius of the blur disc. motion_px, motion_rad: length and direction of motion blur. glare:
    share of the mean light spread over the picture. shot_noise, read_noise: deviation of white and of black, over
    white. contrast: strength of an S-shaped tone curve. saturation: 1 leaves colours alone. white_balance: BGR gains.
    sharpening: strength of an unsharp mask. jpeg_quality: 100 leaves the picture alone.
    """

    level: float = 0.35
    vignetting: float = 0.1
    defocus_px: float = 0.5
    motion_px: float = 0.0
    motion_rad: float = 0.0
    glare: float = 0.005
    shot_noise: float = 0.01
    read_noise: float = 0.002
    contrast: float = 0.15
    saturation: float = 1.0
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    sharpening: float = 0.0
    jpeg_quality: int = 100


def draw_response(rng: np.random.Generator) -> Response:
    """A camera drawn at random, from clean to poor."""
    return Response(
        level=float(np.clip(rng.lognormal(math.log(0.3), 0.4), 0.06, 0.62)),
        vignetting=rng.uniform(0.0, 0.4),
        defocus_px=abs(rng.normal(0.4, 0.5)),
        motion_px=rng.exponential(2.0) if rng.random() < 0.25 else 0.0,
        motion_rad=rng.uniform(0.0, math.pi),
        glare=rng.uniform(0.0, 0.02),
        shot_noise=rng.uniform(0.003, 0.035),
        read_noise=rng.uniform(0.0005, 0.006),
        contrast=rng.uniform(-0.1, 0.5),
        saturation=rng.uniform(0.5, 1.4),
        white_balance=(rng.normal(1.0, 0.05), 1.0, rng.normal(1.0, 0.05)),
        sharpening=rng.uniform(0.0, 1.2) if rng.random() < 0.6 else 0.0,
        jpeg_quality=int(rng.integers(60, 99)) if rng.random() < 0.6 else 100,
    )


def compose(shading: Image, albedo: Image, response: Response, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture (H, W, 3), uint8 BGR, of `albedo` under `shading`, both (H, W, 3) float32.

    Raises ShapeError when they differ in shape.
    """
    if shading.shape != albedo.shape or shading.ndim != 3 or shading.shape[2] != 3:
        raise ShapeError(f'shading and albedo must both be (H, W, 3), got {shading.shape} and {albedo.shape}')
    light = (shading * albedo).astype(np.float32, copy=False)
    # Not the median: that may lie beside the wall.
    light *= np.float32(response.level / max(float(np.percentile(light[::4, ::4, 1], 70)), 1e-6))
    light *= np.array(response.white_balance, dtype=np.float32)
    light = _lens(light, response)
    deviation = np.sqrt(np.float32(response.shot_noise**2) * light + np.float32(response.read_noise**2))
    light += deviation * rng.standard_normal(light.shape, dtype=np.float32)
    return _develop(light, response)


def _lens(light: Image, response: Response) -> Image:
    height, width = light.shape[:2]
    if response.vignetting:
        x = np.linspace(-1, 1, width, dtype=np.float32)[None] * width
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * height
        light *= (1 - np.float32(response.vignetting) * (x * x + y * y) / np.float32(width**2 + height**2))[..., None]
    if response.glare:
        light = (1 - response.glare) * light + np.float32(response.glare) * light.mean(axis=(0, 1))
    if response.defocus_px >= 1:
        light = np.asarray(cv2.filter2D(light, -1, _disc(response.defocus_px)), dtype=np.float32)
    elif response.defocus_px > 0.1:
        light = np.asarray(cv2.GaussianBlur(light, (0, 0), response.defocus_px), dtype=np.float32)
    if response.motion_px > 0.5:
        light = np.asarray(cv2.filter2D(light, -1, _line(response.motion_px, response.motion_rad)), dtype=np.float32)
    return light


def _disc(radius: float) -> Image:
    half = math.ceil(radius)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def _line(length: float, angle: float) -> Image:
    half = math.ceil(length / 2) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along = np.abs(x * math.cos(angle) + y * math.sin(angle))
    across = np.abs(-x * math.sin(angle) + y * math.cos(angle))
    kernel = np.clip(length / 2 + 0.5 - along, 0, 1) * np.clip(1 - across, 0, 1)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def _develop(light: Image, response: Response) -> NDArray[np.uint8]:
    """Saturation, tone curve, sharpening, 8 bits, JPEG."""
    light = np.clip(light, 0, 1)
    if response.saturation != 1:
        grey = light.mean(axis=2, keepdims=True)
        light = np.clip(grey + np.float32(response.saturation) * (light - grey), 0, 1)
    # The curve (sRGB, IEC 61966-2-1) as a table: powers of a million pixels are slow.
    x = np.linspace(0, 1, 4096)
    encoded = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)
    curve = encoded - response.contrast * np.sin(2 * math.pi * encoded) / (2 * math.pi)
    image = (255 * curve).astype(np.float32)[np.rint(light * 4095).astype(np.uint16)]
    if response.sharpening:
        image += np.float32(response.sharpening) * (image - cv2.GaussianBlur(image, (0, 0), 1.0))
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if response.jpeg_quality < 100:
        _, stream = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, response.jpeg_quality])
        pixels = np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), dtype=np.uint8)
    return pixels
