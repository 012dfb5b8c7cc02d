"""Networks as they were made ready in an earlier run, in the user's cache folder: a node starts seconds sooner."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cmml_ros.model.checkpoint import CALIBRATION

if TYPE_CHECKING:  # it brings torch, which takes seconds to import
    from cmml_ros.model.network import MultitaskNetwork


def find_cache() -> Path | None:
    """`$XDG_CACHE_HOME/cmml_ros` or `~/.cache/cmml_ros`, which may be deleted; None where it cannot be written."""
    try:
        folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'cmml_ros'
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        return None
    return folder if os.access(folder, os.W_OK) else None


def make_onnx_once(load: Callable[[], MultitaskNetwork], model_id: str, part: str, cache: Path | None) -> bytes:
    """What `export` makes of the network, from `cache` where it was made before of the same weights by the same code.

    load: gives the network where it was not made before. model_id: with the digest of the weights, as `identify` gives
    it. part: the segmentation in int8 or in float32, or the encoding or the description of matching.
    """
    if cache is None:
        return _make(load(), part)
    sources = hashlib.sha256(version('torch').encode())
    for source in (*sorted(Path(__file__).parent.glob('*.py')), CALIBRATION):
        sources.update(source.read_bytes())
    path = cache / f'{model_id}-{part}-{sources.hexdigest()[:12]}.onnx'
    with suppress(OSError, ValueError):  # ValueError: cut short
        digest, model = path.read_bytes().split(b'\n', 1)
        if hashlib.sha256(model).hexdigest().encode() == digest:
            return model
    model = _make(load(), part)
    with suppress(OSError), tempfile.TemporaryDirectory(dir=cache) as folder:
        # In whole or not at all: another node may read while this one writes, and the disk may be full.
        made = Path(folder) / path.name
        made.write_bytes(hashlib.sha256(model).hexdigest().encode() + b'\n' + model)
        made.replace(path)
    return model


def _make(network: MultitaskNetwork, part: str) -> bytes:
    from cmml_ros.model import export
    from cmml_ros.model.quantize import load_calibration, quantize

    if part == 'encoding':
        return export.make_encoding_onnx(network)
    if part == 'description':
        return export.make_description_onnx(network)
    if part == 'int8':
        return export.make_quantized_onnx(quantize(network, load_calibration()))
    return export.make_onnx(network)
