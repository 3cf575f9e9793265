"""PyTorch's training steps for `step_time`: a worker, run as a script in any interpreter.

    python benchmarks/step_time_torch.py MODEL BATCH_SIZE DTYPE DEVICE MODE MEMORY_FORMAT

MODE is "eager" or "compiled": model and loss by `torch.compile`. It prints the number of
parameters, then reads numbers of steps and answers each with the seconds that a step took. It
needs PyTorch and NumPy alone.
"""

import os
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_BATCHES = 8
_GPTS = {"gpt": (4, 4, 128, 64), "gpt_384": (6, 6, 384, 256)}
"""Layers, heads, width, context."""


def serve(name: str, batch_size: int, dtype: str, device: str, mode: str, form: str) -> None:
    """Runs steps until the input ends."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere; XLA counts the same way
    torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count())
    torch.manual_seed(0)
    model = make(name).to(device, memory_format=getattr(torch, form))
    optimizer = make_optimizer(name, model)
    data = batches(name, batch_size, device, form)
    step = make_step(model, optimizer, dtype, device, mode == "compiled", clip=name in _GPTS)
    print(sum(p.numel() for p in model.parameters() if p.requires_grad), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for i in range(int(line)):
            step(*data[i % len(data)])
        if device == "cuda":
            torch.cuda.synchronize()
        print((time.perf_counter() - start) / int(line), flush=True)


def batches(model: str, batch_size: int, device: str, form: str) -> list[tuple]:
    """Returns random (inputs, labels), pictures already as floats in [0, 1]."""
    rng = np.random.default_rng(0)

    def integers(high, *shape):
        return torch.tensor(rng.integers(0, high, (batch_size, *shape)), device=device)

    if model in _GPTS:
        context = _GPTS[model][-1]
        tokens = [integers(65, context + 1) for _ in range(_BATCHES)]
        return [(t[:, :-1], t[:, 1:]) for t in tokens]
    if model == "lstm":
        return [(integers(10_000, 500), integers(2)) for _ in range(_BATCHES)]
    shape = (1, 28, 28) if model == "mlp" else (3, 32, 32)
    form = getattr(torch, form)
    return [
        ((integers(256, *shape) / 255).contiguous(memory_format=form), integers(10))
        for _ in range(_BATCHES)
    ]


def make_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dtype: str,
    device: str,
    compiled: bool,
    clip: bool,
):
    """Returns the step (inputs, labels) -> None."""

    def loss(inputs, labels):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(inputs).flatten(0, -2).float()
        if logits.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
        return F.cross_entropy(logits, labels.flatten())

    if compiled:
        loss = torch.compile(loss, dynamic=False)

    def step(inputs, labels):
        value = loss(inputs, labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def make(name: str) -> nn.Module:
    """Returns the model."""
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    if name == "cnn":
        layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))
    if name == "lstm":
        return TextClassifier()
    return ResNet() if name == "resnet" else GPT(*_GPTS[name])


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimiser, in PyTorch's fastest form."""
    params = [p for p in model.parameters() if p.requires_grad]
    if name in ("mlp", "resnet"):
        return torch.optim.SGD(params, lr=1e-3, momentum=0.9, nesterov=name == "resnet", fused=True)
    if name in ("cnn", "lstm"):
        return torch.optim.Adam(params, lr=1e-3, eps=1e-7, fused=True)
    decayed = [p for p in params if p.ndim >= 2]
    others = [p for p in params if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)


class TextClassifier(nn.Module):
    """Embedding, two layers of LSTM with one bias each, as Keras's, and one unit."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(10_000, 32)
        self.lstm = nn.LSTM(32, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, 1)
        for name, p in self.lstm.named_parameters():
            if "bias_hh" in name:
                nn.init.zeros_(p).requires_grad_(False)

    def forward(self, tokens):
        """Maps tokens (B, T) to a logit (B, 1)."""
        return self.head(self.lstm(self.tokens(tokens))[0][:, -1])


class ResNet(nn.Module):
    """2x2 convolution; stages of [conv, pool, norm, GELU] and x + [conv, norm, GELU]; head."""

    def __init__(self, widths=(64, 256, 256)):
        super().__init__()
        self.first = nn.Conv2d(3, 24, 2)
        self.stages = nn.Sequential(*map(Stage, (24, *widths), widths))
        self.head = nn.Linear(widths[-1], 10, bias=False)

    def forward(self, x):
        """Maps pictures (B, 3, H, W) to logits (B, 10)."""
        return self.head(self.stages(F.gelu(self.first(x))).amax((2, 3)))


class Stage(nn.Module):
    """See `ResNet`."""

    def __init__(self, old, new):
        super().__init__()
        self.conv_1 = nn.Conv2d(old, new, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(new, new, 3, padding=1, bias=False)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(new), nn.BatchNorm2d(new)

    def forward(self, x):
        """Maps (B, C, H, W) to (B, new, H / 2, W / 2)."""
        x = F.gelu(self.norm_1(F.max_pool2d(self.conv_1(x), 2)))
        return x + F.gelu(self.norm_2(self.conv_2(x)))


class GPT(nn.Module):
    """Pre-norm blocks, learned positions, tied embedding; no biases."""

    def __init__(self, layers, heads, width, context):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(65, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(heads, width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        """Maps tokens (B, T) to logits (B, T, 65)."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        return self.norm(self.blocks(x)) @ self.wte.weight.T


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); attention is PyTorch's fused one."""

    def __init__(self, heads, width):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.out, self.up, self.down = (
            nn.Linear(*shape, bias=False)
            for shape in ((width, 3 * width), (width,) * 2, (width, 4 * width), (4 * width, width))
        )

    def forward(self, x):
        """Maps (B, T, D) to (B, T, D)."""
        b, t, d = x.shape
        split = self.qkv(self.norm_1(x)).split(d, 2)
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in split)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
