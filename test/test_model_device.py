from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from cmml_ros.config import DetectionConfig
from cmml_ros.errors import ModelError
from cmml_ros.model.runtime import Segmenter

PICTURE = np.full((64, 64, 3), 128, np.uint8)


def exhaust(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose memory has run out, where there is none."""

    def fail(*_: object) -> None:
        raise MemoryError('CUDA out of memory')

    monkeypatch.setattr(segmenter, '_engine', fail)
    monkeypatch.setattr(segmenter, 'device', 'cuda')


def test_a_gpu_without_memory_hands_over_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = Segmenter(DetectionConfig(device='auto'))
    expected = segmenter.probabilities(PICTURE, None)
    exhaust(segmenter, monkeypatch)
    with caplog.at_level(logging.WARNING):
        probabilities = [segmenter.probabilities(PICTURE, None) for _ in range(2)]
    assert len([record for record in caplog.records if 'no memory left' in record.message]) == 1
    assert segmenter.device == 'cpu'
    for mask, rim in probabilities:
        assert np.allclose(mask, expected[0], atol=1e-6)
        assert np.allclose(rim, expected[1], atol=1e-6)


def test_a_gpu_that_was_demanded_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(DetectionConfig(device='cpu'))
    monkeypatch.setattr(segmenter, '_config', DetectionConfig(device='cuda'))
    exhaust(segmenter, monkeypatch)
    with pytest.raises(ModelError, match='the GPU has no memory left for a picture of 64x64'):
        segmenter.probabilities(PICTURE, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_demanded_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match='torch finds no CUDA device'):
        Segmenter(DetectionConfig(device='cuda'))
