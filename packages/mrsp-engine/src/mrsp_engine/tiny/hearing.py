"""Calibrating a randomly initialised audio tower, from varied sounds made here; it then stays frozen.

Shape legend: S rows of all sounds, D width of a row.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from mrsp_engine.tiny.vision import whiten

__all__ = ["calibrate_hearing", "make_varied_sounds"]

SAMPLE_RATE = 16_000
NUM_SOUNDS = 24
CONVOLUTION_GAIN = 4.0


@torch.no_grad()
def calibrate_hearing(tower: Any, scale: float, extractor: WhisperFeatureExtractor) -> None:
    """Centre, whiten and scale the rows of a Qwen2.5-Omni audio tower over varied sounds of a window.

    As with pictures, fresh weights give nearly identical rows, which the language model couldn't tell apart. Sound has
    to outweigh the positions that the tower adds behind its convolutions, too: otherwise two moments of one tone differ
    more than two tones.
    """
    for convolution in (tower.conv1, tower.conv2):
        fan_in = convolution.in_channels * convolution.kernel_size[0]
        nn.init.normal_(convolution.weight, std=CONVOLUTION_GAIN / math.sqrt(fan_in))
    nn.init.normal_(tower.proj.weight, std=1 / math.sqrt(tower.proj.in_features))
    sounds = make_varied_sounds(int(extractor.n_samples), num_sounds=NUM_SOUNDS)
    features = extractor([sound.numpy() for sound in sounds], sampling_rate=SAMPLE_RATE, return_tensors="pt")
    rows = [
        tower(heard, feature_lens=torch.tensor([heard.shape[1]])).last_hidden_state
        for heard in features["input_features"]
    ]
    whiten(tower.proj, scale, torch.cat(rows))


def make_varied_sounds(num_samples: int, *, num_sounds: int) -> Tensor:
    """Sounds that change four times a second between silence, noise and tones: [num_sounds, num_samples]."""
    segment = SAMPLE_RATE // 4
    num_segments = -(-num_samples // segment)
    time = torch.arange(segment) / SAMPLE_RATE
    pitch = 80.0 * 2 ** (torch.rand(num_sounds, num_segments, 3, 1) * 6.0)
    loudness = torch.rand(num_sounds, num_segments, 3, 1).square()
    tones = (loudness * torch.sin(2 * math.pi * pitch * time)).sum(2)
    noise = torch.randn(num_sounds, num_segments, segment) * torch.rand(num_sounds, num_segments, 1).square()
    is_heard = (torch.rand(num_sounds, num_segments, 2, 1) > 0.4).float()
    sounds = 0.3 * (tones * is_heard[:, :, 0] + 0.3 * noise * is_heard[:, :, 1])
    return sounds.reshape(num_sounds, -1)[:, :num_samples]
