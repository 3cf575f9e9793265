"""airbench94's training step in PyTorch, for `airbench`: a worker, run as a script.

    python benchmarks/airbench_torch.py BATCH_SIZE MODE MEMORY_FORMAT

The network, Muon and SGD of github.com/KellerJordan/cifar10-airbench (airbench94_muon.py), in
float32: a CPU has no float16. MODE is "eager" or "compiled". It prints the number of parameters
that are trained, then reads numbers of steps and answers each with the seconds that a step took.
"""

import os
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

_STEPS = 200  # of the whole run, and of the whitening's bias
_BIAS_STEPS = 75


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Returns a convolution whose first filters pass their input on."""
    layer = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
    nn.init.dirac_(layer.weight.data[:inputs])
    return layer


def norm(width: int) -> nn.BatchNorm2d:
    """Returns a batch norm without a factor."""
    layer = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad = False
    return layer


def group(inputs: int, width: int) -> nn.Sequential:
    """Returns a group of two convolutions."""
    first = [conv(inputs, width), nn.MaxPool2d(2), norm(width), nn.GELU()]
    return nn.Sequential(*first, conv(width, width), norm(width), nn.GELU())


class Net(nn.Module):
    """The network, for pictures (B, 3, 32, 32)."""

    def __init__(self, widths: tuple[int, ...] = (64, 256, 256)):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad = False
        inputs = (24, *widths)
        groups = [group(*pair) for pair in zip(inputs, widths, strict=False)]
        self.groups = nn.Sequential(nn.GELU(), *groups)
        self.head = nn.Linear(widths[-1], 10, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, 10)."""
        x = self.groups(self.whiten(x)).amax((2, 3))
        return self.head(x) / x.shape[1]


def orthogonal(g: torch.Tensor) -> torch.Tensor:
    """Returns a matrix (outputs <= inputs) with singular values near 1: three iterations."""
    x = g / (g.norm() + 1e-7)
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of 0.6, made orthogonal; filters first get the norm sqrt(outputs)."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """Moves the parameters."""
        for part in self.param_groups:
            for p in part["params"]:
                held = self.state[p].setdefault("momentum", torch.zeros_like(p))
                held.mul_(0.6).add_(p.grad)
                direction = (p.grad + 0.6 * held).flatten(1)
                p.mul_(len(p) ** 0.5 / p.norm())
                p.sub_(part["lr"] * orthogonal(direction).view_as(p))


def optimizers(net: Net, batch_size: int) -> list[torch.optim.Optimizer]:
    """Returns SGD and Muon, as the original has them."""
    filters = [p for p in net.parameters() if p.ndim == 4 and p.requires_grad]
    biases = [p for n, p in net.groups.named_parameters() if n.endswith("bias")]
    parts = [
        {"params": params, "lr": rate, "weight_decay": 2e-6 * batch_size / rate}
        for params, rate in (
            ([net.whiten.bias], 0.053),
            (biases, 0.053),
            ([net.head.weight], 0.67),
        )
    ]
    return [torch.optim.SGD(parts, momentum=0.85, nesterov=True), Muon(filters, lr=0.24)]


class Training:
    """A network in training."""

    def __init__(self, net: Net, batch_size: int, compiled: bool = False):
        self._optimizers, self._net, self._number = optimizers(net, batch_size), net, 0
        for part in self._parts():
            part["first"] = part["lr"]

        def loss(images, labels):
            return F.cross_entropy(net(images), labels, label_smoothing=0.2, reduction="sum")

        self._loss = torch.compile(loss, dynamic=False) if compiled else loss

    def _parts(self) -> list[dict]:
        return [part for optimizer in self._optimizers for part in optimizer.param_groups]

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Makes a step; returns the mean loss before it."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self._loss(images, labels)
        loss.backward()
        for i, part in enumerate(self._parts()):
            over = _STEPS if i else _BIAS_STEPS
            part["lr"] = part["first"] * max(1 - self._number / over, 0.0)
        if self._number >= _BIAS_STEPS:
            self._net.whiten.bias.grad = None
        for optimizer in self._optimizers:
            optimizer.step()
        self._number += 1
        return loss.item() / len(labels)


if __name__ == "__main__":
    batch_size, mode, form = int(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3])
    affinity = getattr(os, "sched_getaffinity", None)
    torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count())
    torch.manual_seed(0)
    net = Net().to(memory_format=form)
    training = Training(net, batch_size, mode == "compiled")
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=form)
    labels = torch.randint(0, 10, (batch_size,))
    print(sum(p.numel() for p in net.parameters() if p.requires_grad), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            training.step(images, labels)
        print((time.perf_counter() - start) / int(line), flush=True)
