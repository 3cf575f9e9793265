"""The network of `step_time`'s CNN in PyTorch, for the servers that `serve` compares with."""

import os

import torch
from step_time_torch import make

MOST, WAIT = 32, 0.002  # rows at a time, and seconds for others: lsm's own by default


def network() -> torch.nn.Module:
    """Returns it with random weights, to be computed on all CPUs."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    return make("cnn").eval()


def picture(body: dict) -> torch.Tensor:
    """Returns (3, 32, 32) in [0, 1] of a request with 3072 whole numbers."""
    pixels = torch.tensor(body["image"], dtype=torch.uint8).view(32, 32, 3)
    return pixels.permute(2, 0, 1) / 255
