"""`cmml train`: a network from simulated scenes, resumable at any step."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cmml_ros.config import flatten_config, load_config, setting
from cmml_ros.errors import ModelError
from cmml_ros.model.checkpoint import find_weights, identify, load_network, save_weights
from cmml_ros.model.network import SIZE_CHANNELS, MultitaskNetwork
from cmml_ros.training.dataset import CropDataset, DataConfig, MatchConfig, PairDataset, load_pictures
from cmml_ros.training.folders import import_folder
from cmml_ros.training.losses import matching_loss, segmentation_loss
from cmml_ros.training.views import ViewConfig, prepare_views

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run."""

    views: ViewConfig = field(default_factory=ViewConfig)
    data: DataConfig = field(default_factory=DataConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    size: str = setting('small', 'size of the network', choices=tuple(SIZE_CHANNELS))
    start_from: str = setting('', 'weights to go on from, by name or path; empty: random ones')
    learn: str = setting(
        'both',
        'what is learnt: to match leaves image encoder and segmentation head as they are, to segment the rest',
        choices=('both', 'segmentation', 'matching'),
    )
    seed: int = setting(1, 'seed of weights, views and crops', low=0, high=2**31 - 1)
    steps: int = setting(20000, 'optimiser steps', low=1, high=10**8)
    batch_size: int = setting(8, 'crops a step', low=1, high=4096)
    learning_rate: float = setting(2e-3, 'peak of the one-cycle schedule', low=1e-7, high=1.0)
    weight_decay: float = setting(1e-2, 'AdamW weight decay', low=0.0, high=1.0)
    average_decay: float = setting(0.998, 'decay of the averaged weights that are shipped', low=0.0, high=0.99999)
    workers: int = setting(2, 'processes that make crops', low=0, high=256)
    checkpoint_every_s: float = setting(120.0, 'a resumable checkpoint this often', unit='s', low=0.0, high=86400.0)


class _Objective(nn.Module):
    """The network with its losses, and how uncertain each task is: logarithms of the variances."""

    def __init__(self, network: MultitaskNetwork, learn: str) -> None:
        super().__init__()
        self.network = network
        self._segments, self._matches = learn != 'matching', learn != 'segmentation'
        self.task_uncertainty = nn.Parameter(torch.zeros(self._segments + 2 * self._matches))
        self.tasks = ('segmentation',) * self._segments + ('coarse', 'fine') * self._matches
        for part in self._kept():
            part.requires_grad_(False)

    def _kept(self) -> list[nn.Module]:
        """What is left as it is."""
        network = self.network
        kept: list[nn.Module] = [] if self._segments else [network.image_encoder, network.segmentation_head]
        return kept + ([] if self._matches else [network.point_encoder, network.matching_head])

    def train(self, mode: bool = True) -> _Objective:
        super().train(mode)
        for part in self._kept():
            part.eval()
        return self

    def forward(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The sum to minimise, and the loss of each task that is learnt.

        batch: image, range maps, coverage, rim and weight of crops, then picture, point maps and T_image_maps of pairs;
        of what is not learnt nothing.
        """
        network = self.network
        losses = []
        pairs: Sequence[Tensor] = batch
        pyramid: list[Tensor] = []
        if self._segments:
            image, range_maps, coverage, rim, weight, *pairs = batch
            if self._matches:
                # One pass for both, so that batch normalisation sees pictures with and without range alike.
                no_range = range_maps.new_zeros(len(pairs[0]), *range_maps.shape[1:])
                shared = network.encode(torch.cat([image, pairs[0]]), torch.cat([range_maps, no_range]))
                pyramid = [level[len(image) :] for level in shared]
                shared = [level[: len(image)] for level in shared]
            else:
                shared = network.encode(image, range_maps)
            losses.append(segmentation_loss(network.segmentation_head(shared).float(), coverage, rim, weight))
        elif self._matches:
            with torch.no_grad():
                pyramid = network.encode(pairs[0], None)
        if self._matches:
            _, point_maps, T_image_maps = pairs
            descriptors = network.describe(pyramid, point_maps)
            losses += matching_loss(network.matching_head, descriptors, point_maps, T_image_maps)
        # Kendall, Gal and Cipolla, CVPR 2018: what a task is weighted by is learnt.
        stacked = torch.stack(losses)
        return (stacked * torch.exp(-self.task_uncertainty) + self.task_uncertainty).sum(), stacked.detach()


class _Run:
    """What a checkpoint holds."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.step = 0
        self.network = _start(config).to(device)
        self.objective = _Objective(self.network, config.learn).to(device)
        # On several devices each works on its share of a step's batch and gradients are averaged.
        self._parallel: nn.Module = self.objective
        if distributed.is_initialized():
            self._parallel = nn.parallel.DistributedDataParallel(self.objective)
        self.optimizer = torch.optim.AdamW(
            [
                {
                    'params': [weights for weights in self.network.parameters() if weights.requires_grad],
                    'weight_decay': config.weight_decay,
                },
                {'params': [self.objective.task_uncertainty], 'weight_decay': 0.0},
            ],
            lr=config.learning_rate,
        )
        self.average = torch.optim.swa_utils.AveragedModel(
            self.network,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )

    def advance(self, batch: Sequence[Tensor]) -> tuple[float, ...]:
        """One optimiser step; the losses of the tasks that are learnt before it."""
        for group in self.optimizer.param_groups:
            group['lr'] = _learning_rate(self.config, self.step)
        # What is drawn in the losses depends on the step alone, so that a resumed run draws the same.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        # The brain-float format has the range of single precision: no loss needs scaling.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == 'cuda'):
            loss, losses = self._parallel([tensor.to(self.device, non_blocking=True) for tensor in batch])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        values = tuple(losses.tolist())
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
            'task_uncertainty': self.objective.task_uncertainty.detach(),
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
            self.objective.task_uncertainty.copy_(state['task_uncertainty'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.step = int(state['step'])

    def export(self, path: Path) -> None:
        """The averaged weights, as they are shipped."""
        averaged = self.average.module
        assert isinstance(averaged, MultitaskNetwork)
        settings = {name: str(value) for name, value in flatten_config(self.config).items()}
        if self.config.start_from:
            # Where a file lay means nothing to others.
            settings['start_from'] = identify(find_weights(self.config.start_from))
        save_weights(averaged, path, {'steps_done': str(self.step), **settings})


def train(config_path: Path, out: Path, backgrounds: Sequence[Path] = (), data: Sequence[Path] = ()) -> Path:
    """Train as `config_path` says and return the weights, `out/weights.safetensors`.

    A run that was stopped goes on from `out/checkpoint.pt`. backgrounds: folders of pictures of concrete without
    airholes. data: folders of labelled pictures, see `import_folder`. Every step depends on the seed and its number
    alone, so that a run that was killed and resumed sees the data that it would have seen.
    Raises ModelError when the checkpoint belongs to another configuration.
    """
    config = load_config(TrainConfig, config_path)
    with _process_group(config) as device:
        return _train(config, out, backgrounds, data, device)


@contextmanager
def _process_group(config: TrainConfig) -> Iterator[torch.device]:
    """The device of this process; under torchrun the process joins the others."""
    gpu = torch.cuda.is_available()
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0'))) if gpu else torch.device('cpu')
    if not distributed.is_torchelastic_launched():
        yield device
        return
    distributed.init_process_group('nccl' if gpu else 'gloo')
    try:
        processes = distributed.get_world_size()
        if config.batch_size % processes or config.match.batch_size % processes:
            raise ModelError(
                f'batch_size {config.batch_size} and match.batch_size {config.match.batch_size} have to be '
                f'multiples of the {processes} processes'
            )
        yield device
    finally:
        distributed.destroy_process_group()


def _train(
    config: TrainConfig, out: Path, backgrounds: Sequence[Path], data: Sequence[Path], device: torch.device
) -> Path:
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    out.mkdir(parents=True, exist_ok=True)
    # What may be refused comes first: views take hours.
    run = _Run(config, device)
    checkpoint, weights = out / 'checkpoint.pt', out / 'weights.safetensors'
    if checkpoint.exists():
        run.resume(checkpoint, device)
        log.info('going on from step %d', run.step)
    pictures = [picture for folder in backgrounds for picture in load_pictures(folder)]
    if rank > 0:
        distributed.barrier()  # the first process makes the views
    own = [path for folder in data for path in import_folder(folder, out / 'own')]
    views = prepare_views(config.views, out / 'views', config.seed) + own
    if rank == 0 and processes > 1:
        distributed.barrier()

    dataset = _StepDataset(config, views, pictures, rank, processes)
    loader = DataLoader(
        Subset(dataset, range(run.step, config.steps)),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=2 if config.workers else None,
        pin_memory=device.type == 'cuda',
    )
    # Else sums over threads differ from run to run, and a resumed run would not be the same.
    torch.use_deterministic_algorithms(True, warn_only=True)
    run.objective.train()
    if rank > 0:
        for batch in loader:
            run.advance(batch)
        return weights

    saved_at = time.monotonic()
    smooth: list[float] = []
    with (
        SummaryWriter(out / 'log', purge_step=run.step) as journal,
        tqdm(total=config.steps, initial=run.step, unit='step', dynamic_ncols=True) as bar,
    ):
        for batch in loader:
            values = run.advance(batch)
            smooth = [0.98 * old + 0.02 * new for old, new in zip(smooth or values, values, strict=True)]
            bar.update()
            named = dict(zip(run.objective.tasks, smooth, strict=True))
            bar.set_postfix({name: f'{value:.3f}' for name, value in named.items()}, refresh=False)
            if run.step % 50 == 0:
                for name, value in named.items():
                    journal.add_scalar(f'loss/{name}', value, run.step)
            if time.monotonic() - saved_at >= config.checkpoint_every_s:
                run.save(checkpoint)
                run.export(weights)
                saved_at = time.monotonic()
    run.save(checkpoint)
    run.export(weights)
    return weights


class _StepDataset(Dataset[list[Tensor]]):
    """What step i of a run learns from, a function of (seed, i) alone: crops to segment, then pairs to match.

    Of several processes each gets its share.
    """

    def __init__(
        self,
        config: TrainConfig,
        views: Sequence[Path],
        backgrounds: Sequence[NDArray[np.uint8]],
        rank: int,
        processes: int,
    ) -> None:
        self._config = config
        self._rank, self._processes = rank, processes
        crops, pairs = config.steps * config.batch_size, config.steps * config.match.batch_size
        self._crops = CropDataset(config.data, views, backgrounds, config.seed, crops)
        self._pairs = PairDataset(config.match, self._crops, pairs)

    def __len__(self) -> int:
        return self._config.steps

    def __getitem__(self, step: int) -> list[Tensor]:
        """Batches of the tensors that `_Objective` takes."""
        parts: list[tuple[Dataset[Any], int]] = []
        if self._config.learn != 'matching':
            parts.append((self._crops, self._config.batch_size))
        if self._config.learn != 'segmentation':
            parts.append((self._pairs, self._config.match.batch_size))
        return [
            torch.stack(tensors)
            for dataset, size in parts
            for tensors in zip(
                *(dataset[step * size + i] for i in range(self._rank, size, self._processes)), strict=True
            )
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
