"""PyTorch's training steps for `step_time`: a worker, run as a script in any interpreter.

    python benchmarks/step_time_torch.py MODEL BATCH_SIZE DTYPE MEMORY_FORMAT

It prints the number of parameters, then reads numbers of steps and answers each with the seconds
that a step took. It needs PyTorch and NumPy alone.
"""

import os
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_BATCHES = 8


def serve(model_name: str, batch_size: int, dtype: str, memory_format: str) -> None:
    """Runs steps until the input ends."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere; XLA counts the same way
    torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count())
    torch.manual_seed(0)
    model, optimizer = make(model_name)
    model.to(memory_format=getattr(torch, memory_format))
    data = batches(model_name, batch_size, memory_format)
    step = make_step(model, optimizer, dtype, clip=model_name == "gpt")
    print(sum(p.numel() for p in model.parameters()), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for i in range(int(line)):
            step(*data[i % len(data)])
        print((time.perf_counter() - start) / int(line), flush=True)


def batches(model: str, batch_size: int, memory_format: str) -> list[tuple]:
    """Returns random (inputs, labels), pictures already as floats in [0, 1]."""
    rng = np.random.default_rng(0)

    def integers(high, *shape):
        return torch.tensor(rng.integers(0, high, (batch_size, *shape)))

    if model == "gpt":
        tokens = [integers(65, 65) for _ in range(_BATCHES)]
        return [(t[:, :-1], t[:, 1:]) for t in tokens]
    shape = (1, 28, 28) if model == "mlp" else (3, 32, 32)
    form = getattr(torch, memory_format)
    return [
        ((integers(256, *shape) / 255).contiguous(memory_format=form), integers(10))
        for _ in range(_BATCHES)
    ]


def make_step(model: nn.Module, optimizer: torch.optim.Optimizer, dtype: str, clip: bool):
    """Returns the eager step (inputs, labels) -> None."""

    def step(inputs, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(inputs).flatten(0, -2)
        loss = F.cross_entropy(logits.float(), labels.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def make(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Returns the model and its optimiser."""
    if name == "mlp":
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if name == "cnn":
        layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))
        return model, torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
    model = GPT()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))


class GPT(nn.Module):
    """Four pre-norm blocks of width 128, learned positions, tied embedding; no biases."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(65, 128), nn.Embedding(64, 128)
        self.blocks = nn.Sequential(*[Block() for _ in range(4)])
        self.norm = nn.LayerNorm(128, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        """Maps tokens (B, T) to logits (B, T, 65)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return self.norm(self.blocks(x)) @ self.wte.weight.T


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); attention is PyTorch's fused one."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(128, bias=False), nn.LayerNorm(128, bias=False)
        self.qkv, self.out = nn.Linear(128, 384, bias=False), nn.Linear(128, 128, bias=False)
        self.up, self.down = nn.Linear(128, 512, bias=False), nn.Linear(512, 128, bias=False)

    def forward(self, x):
        """Maps (B, T, 128) to (B, T, 128)."""
        b, t, d = x.shape
        split = self.qkv(self.norm_1(x)).split(d, 2)
        q, k, v = (y.view(b, t, 4, 32).transpose(1, 2) for y in split)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
