"""Weights on disk: safetensors only, with what is needed to know them again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from cmml_ros.errors import ModelError

if TYPE_CHECKING:  # it brings torch, which takes seconds to import
    from cmml_ros.model.network import MultitaskNetwork

# Raised whenever the network's layers, inputs or their meaning change.
FORMAT = '2'
WEIGHTS_DIR = Path(__file__).parent / 'weights'
CALIBRATION = WEIGHTS_DIR / 'calibration.npz'


def save_weights(network: MultitaskNetwork, path: Path, about: dict[str, str]) -> None:
    """Write the network's weights with `about` (free text, for the model card) to a safetensors file."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {'cmml_ros.format': FORMAT, 'cmml_ros.size': network.size, 'cmml_ros.about': json.dumps(about)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)


def find_weights(model: str) -> Path:
    """Path of the weights called `model`: a shipped name or a file.

    Raises ModelError when there are none.
    """
    if model.endswith('.safetensors'):
        path = Path(model).expanduser()
        if not path.is_file():
            raise ModelError(f'{path}: no such weights file; check detection.model')
        return path
    path = WEIGHTS_DIR / f'{model}.safetensors'
    if not path.is_file():
        shipped = sorted(item.stem for item in WEIGHTS_DIR.glob('*.safetensors'))
        raise ModelError(
            f'no shipped weights called "{model}" (there are: {", ".join(shipped) or "none"}); '
            'set detection.model to one of these or to the path of a .safetensors file'
        )
    return path


def identify(path: Path) -> str:
    """Name and digest of the weights in `path`. Raises ModelError when they cannot be read."""
    try:
        return f'{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}'
    except OSError as error:
        raise ModelError(f'{path}: cannot be read ({error.strerror})') from None


def load_network(path: Path) -> tuple[MultitaskNetwork, str]:
    """The network in `path` in evaluation mode on the CPU, and its id (name and digest).

    Raises ModelError for a missing, foreign or outdated file.
    """
    import torch

    from cmml_ros.model.network import MultitaskNetwork

    try:
        with safe_open(path, framework='pt') as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f'{path}: cannot be read as safetensors ({error})') from None
    found = metadata.get('cmml_ros.format')
    if found is None:
        raise ModelError(f'{path}: not weights of this package (no cmml_ros.format in its header)')
    if found != FORMAT:
        raise ModelError(f'{path}: weights of format {found}, this version reads {FORMAT}; train or fetch new ones')
    network = MultitaskNetwork(metadata.get('cmml_ros.size', ''))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f'{path}: weights do not fit the network ({str(error).splitlines()[-1].strip()})') from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise ModelError(f'{path}: weights are not finite; training went astray')
    return network.eval(), identify(path)
