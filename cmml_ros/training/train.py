"""`cmml train`: a network from simulated scenes, resumable at any step."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from cmml_ros.config import flatten_config, load_config, setting
from cmml_ros.errors import ModelError
from cmml_ros.model.checkpoint import find_weights, load_network, save_weights
from cmml_ros.model.network import SIZE_CHANNELS, MultitaskNetwork
from cmml_ros.training.dataset import CropDataset, DataConfig, MatchConfig, PairDataset
from cmml_ros.training.folders import import_folder
from cmml_ros.training.losses import matching_loss, segmentation_loss
from cmml_ros.training.views import ViewConfig, prepare_views

log = logging.getLogger(__name__)

_TASKS = ('segmentation', 'coarse', 'fine')


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run."""

    views: ViewConfig = field(default_factory=ViewConfig)
    data: DataConfig = field(default_factory=DataConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    size: str = setting('small', 'size of the network', choices=tuple(SIZE_CHANNELS))
    start_from: str = setting('', 'weights to go on from, by name or path; empty: random ones')
    match_only: bool = setting(False, 'leave image encoder and segmentation head as they are, learn to match')
    seed: int = setting(1, 'seed of weights, views and crops', low=0, high=2**31 - 1)
    steps: int = setting(20000, 'optimiser steps', low=1, high=10**8)
    batch_size: int = setting(8, 'crops a step', low=1, high=4096)
    learning_rate: float = setting(2e-3, 'peak of the one-cycle schedule', low=1e-7, high=1.0)
    weight_decay: float = setting(1e-2, 'AdamW weight decay', low=0.0, high=1.0)
    average_decay: float = setting(0.998, 'decay of the averaged weights that are shipped', low=0.0, high=0.99999)
    workers: int = setting(2, 'processes that make crops', low=0, high=256)
    checkpoint_every_s: float = setting(120.0, 'a resumable checkpoint this often', unit='s', low=0.0, high=86400.0)


class _Run:
    """What a checkpoint holds."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.step = 0
        self.network = _start(config).to(device)
        self.learn()
        # How uncertain each task is (segmentation, coarse and fine matching): logarithms of the variances.
        self.task_uncertainty = torch.nn.Parameter(torch.zeros(3, device=device))
        self.optimizer = torch.optim.AdamW(
            [
                {
                    'params': [weights for weights in self.network.parameters() if weights.requires_grad],
                    'weight_decay': config.weight_decay,
                },
                {'params': [self.task_uncertainty], 'weight_decay': 0.0},
            ],
            lr=config.learning_rate,
        )
        self.average = torch.optim.swa_utils.AveragedModel(
            self.network,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )

    def learn(self) -> None:
        """Put the network into training mode, but for what `match_only` leaves alone."""
        self.network.train()
        if self.config.match_only:
            for part in (self.network.image_encoder, self.network.segmentation_head):
                part.eval().requires_grad_(False)

    def advance(self, batch: Sequence[Tensor]) -> tuple[float, ...]:
        """One optimiser step; the losses of segmentation (unless `match_only`), coarse and fine matching before it."""
        for group in self.optimizer.param_groups:
            group['lr'] = _learning_rate(self.config, self.step)
        # What is drawn in the losses depends on the step alone, so that a resumed run draws the same.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        network = self.network
        *crops, picture, point_maps, T_image_maps = batch
        losses = []
        if self.config.match_only:
            with torch.no_grad():
                pyramid = network.encode(picture, None)
        else:
            image, range_maps, coverage, rim, weight = crops
            # One pass for both, so that batch normalisation sees pictures with and without range alike.
            no_range = range_maps.new_zeros(len(picture), *range_maps.shape[1:])
            shared = network.encode(torch.cat([image, picture]), torch.cat([range_maps, no_range]))
            logits = network.segmentation_head([level[: len(image)] for level in shared])
            losses.append(segmentation_loss(logits, coverage, rim, weight))
            pyramid = [level[len(image) :] for level in shared]
        descriptors = network.describe(pyramid, point_maps)
        losses += matching_loss(network.matching_head, descriptors, point_maps, T_image_maps)
        uncertainty = self.task_uncertainty[-len(losses) :]
        # Kendall, Gal and Cipolla, CVPR 2018: what a task is weighted by is learnt.
        loss = (torch.stack(losses) * torch.exp(-uncertainty) + uncertainty).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        values = tuple(part.item() for part in losses)
        if not math.isfinite(sum(values)):
            raise ModelError(f'loss is not finite at step {self.step}; lower learning_rate')
        self.step += 1
        return values

    def save(self, path: Path) -> None:
        state = {
            'config': flatten_config(self.config),
            'step': self.step,
            'network': self.network.state_dict(),
            'average': self.average.state_dict(),
            'task_uncertainty': self.task_uncertainty.detach(),
            'optimizer': self.optimizer.state_dict(),
        }
        # Written beside and renamed: a run killed while it saves keeps the checkpoint before.
        beside = path.with_suffix('.new')
        torch.save(state, beside)
        os.replace(beside, path)

    def resume(self, path: Path, device: torch.device) -> None:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        free = {'workers', 'checkpoint_every_s'}
        mine = flatten_config(self.config)
        changed = [name for name, value in mine.items() if name not in free and state['config'].get(name) != value]
        if changed:
            raise ModelError(
                f'{path}: made with other settings ({", ".join(changed)}); give another --out or remove the file'
            )
        self.network.load_state_dict(state['network'])
        self.average.load_state_dict(state['average'])
        with torch.no_grad():
            self.task_uncertainty.copy_(state['task_uncertainty'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.step = int(state['step'])

    def export(self, path: Path) -> None:
        """The averaged weights, as they are shipped."""
        averaged = self.average.module
        assert isinstance(averaged, MultitaskNetwork)
        settings = {name: str(value) for name, value in flatten_config(self.config).items()}
        save_weights(averaged, path, {'steps_done': str(self.step), **settings})


def train(config_path: Path, out: Path, backgrounds: Sequence[Path] = (), data: Sequence[Path] = ()) -> Path:
    """Train as `config_path` says and return the weights, `out/weights.safetensors`.

    A run that was stopped goes on from `out/checkpoint.pt`. backgrounds: folders of pictures of concrete without
    airholes. data: folders of labelled pictures, see `import_folder`. Every step depends on the seed and its number
    alone, so that a run that was killed and resumed sees the data that it would have seen.
    Raises ModelError when the checkpoint belongs to another configuration.
    """
    config = load_config(TrainConfig, config_path)
    out.mkdir(parents=True, exist_ok=True)
    views = prepare_views(config.views, out / 'views', config.seed)
    views += [path for folder in data for path in import_folder(folder, out / 'own')]
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    run = _Run(config, device)
    checkpoint, weights = out / 'checkpoint.pt', out / 'weights.safetensors'
    if checkpoint.exists():
        run.resume(checkpoint, device)
        log.info('going on from step %d', run.step)

    dataset = _StepDataset(config, views, backgrounds)
    loader = DataLoader(
        Subset(dataset, range(run.step, config.steps)),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=2 if config.workers else None,
    )
    # Else sums over threads differ from run to run, and a resumed run would not be the same.
    torch.use_deterministic_algorithms(True, warn_only=True)
    run.learn()
    saved_at = time.monotonic()
    smooth: list[float] = []
    with (
        (out / 'losses.jsonl').open('a', encoding='utf-8') as journal,
        tqdm(total=config.steps, initial=run.step, unit='step', dynamic_ncols=True) as bar,
    ):
        for batch in loader:
            values = run.advance([tensor.to(device) for tensor in batch])
            smooth = [0.98 * old + 0.02 * new for old, new in zip(smooth or values, values, strict=True)]
            named = dict(zip(_TASKS[-len(smooth) :], smooth, strict=True))
            bar.update()
            bar.set_postfix({name: f'{value:.3f}' for name, value in named.items()}, refresh=False)
            if run.step % 50 == 0:
                journal.write(json.dumps({'step': run.step, **named}) + '\n')
                journal.flush()
            if time.monotonic() - saved_at >= config.checkpoint_every_s:
                run.save(checkpoint)
                run.export(weights)
                saved_at = time.monotonic()
    run.save(checkpoint)
    run.export(weights)
    return weights


class _StepDataset(Dataset[list[Tensor]]):
    """All that step i of a run learns from, a function of (seed, i) alone: crops to segment, then pairs to match."""

    def __init__(self, config: TrainConfig, views: Sequence[Path], backgrounds: Sequence[Path]) -> None:
        self._config = config
        crops, pairs = config.steps * config.batch_size, config.steps * config.match.batch_size
        self._crops = CropDataset(config.data, views, backgrounds, config.seed, crops)
        self._pairs = PairDataset(config.match, self._crops, pairs)

    def __len__(self) -> int:
        return self._config.steps

    def __getitem__(self, step: int) -> list[Tensor]:
        """Batches of the tensors that `_Run.advance` takes."""
        parts: list[tuple[Dataset[Any], int]] = [(self._pairs, self._config.match.batch_size)]
        if not self._config.match_only:
            parts.insert(0, (self._crops, self._config.batch_size))
        return [
            torch.stack(tensors)
            for dataset, size in parts
            for tensors in zip(*(dataset[step * size + i] for i in range(size)), strict=True)
        ]


def _start(config: TrainConfig) -> MultitaskNetwork:
    if not config.start_from:
        return MultitaskNetwork(config.size)
    network, _ = load_network(find_weights(config.start_from))
    if network.size != config.size:
        raise ModelError(f'start_from: weights of size "{network.size}", but size is "{config.size}"')
    return network


def _learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over 3 % of the steps, then half a cosine down to 1 % of the peak."""
    warm = max(1, round(0.03 * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))
