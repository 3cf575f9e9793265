"""The optimisers, as typed configs over Optax.

Each docstring says what one step is, for gradient g, parameters w and learning rate lr, and whether
weight decay is coupled or decoupled. The fields that all share are those of `Algorithm`. Defaults
are the paper's; where Keras or PyTorch differ, the field says so.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from lsm.checks import require, require_choice
from lsm.optim.base import Algorithm, Link
from lsm.optim.shampoo import scale_by_shampoo


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Algorithm):
    """Plain (stochastic) gradient descent: w <- w - lr g.

    Weight decay is coupled. Robbins & Monro 1951.
    """

    coupled: ClassVar[bool] = True

    def core(self) -> None:
        """Returns None: the direction is the gradient."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(Algorithm):
    """Gradient descent with momentum b: w <- w - lr m. Weight decay is coupled.

    Polyak 1964; Nesterov 1983, in the form of Sutskever et al. 2013.

    Attributes:
      momentum: b, in [0, 1).
      convention: "accumulate" is m <- b m + g (PyTorch, Keras); "average" is
        m <- b m + (1 - b) g. The first steps 1 / (1 - b) times as far at the same learning rate.
      nesterov: looks one step ahead: the direction is b m + g, or b m + (1 - b) g.
    """

    coupled: ClassVar[bool] = True
    momentum: float = 0.9
    convention: Literal["accumulate", "average"] = "accumulate"
    nesterov: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(self, momentum="[0, 1)")
        require_choice(self, "convention", "accumulate", "average")

    def core(self) -> optax.GradientTransformation:
        """Returns the trace of past gradients."""
        trace = optax.trace(self.momentum, self.nesterov)
        if self.convention == "accumulate":
            return trace
        # The trace of (1 - b) g is the average; Nesterov's look ahead then has the factor too.
        return optax.chain(optax.scale(1 - self.momentum), trace)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adagrad(Algorithm):
    """Adagrad: s <- s + g^2;  w <- w - lr g / (sqrt(s) + eps). Weight decay is coupled.

    Duchi, Hazan & Singer 2011 (the diagonal form; eps is their delta), as PyTorch's.

    Attributes:
      initial_accumulator: s before the first step; 0 in the paper and PyTorch, 0.1 in Keras and
        Optax.
      eps: outside the root; 1e-10 as in PyTorch. Keras and Optax have 1e-7 inside it.
    """

    coupled: ClassVar[bool] = True
    initial_accumulator: float = 0.0
    eps: float = 1e-10

    def __post_init__(self):
        super().__post_init__()
        require(self, initial_accumulator="[0, inf)", eps="(0, inf)")

    def core(self) -> optax.GradientTransformation:
        """Returns the scaling by the root of the sum of squares."""

        # Not optax.scale_by_rss: that has eps inside the root.
        def init(params):
            return optax.ScaleByRssState(optax.tree.full_like(params, self.initial_accumulator))

        def update(updates, state, params=None):
            del params
            sums = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
            scaled = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + self.eps), updates, sums)
            return scaled, optax.ScaleByRssState(sums)

        return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMSProp(Algorithm):
    """RMSProp: v <- b v + (1 - b) g^2;  w <- w - lr g / (sqrt(v) + eps). Weight decay is coupled.

    Hinton's lecture 6e, 2012, in which v starts at 0 and nothing is corrected for that.

    Attributes:
      average: b; 0.9 in the lecture, Keras and Optax, 0.99 in PyTorch.
      eps: against division by 0; the lecture has none.
      eps_in_root: False divides by sqrt(v) + eps (PyTorch), True by sqrt(v + eps) (Keras, Optax).
    """

    coupled: ClassVar[bool] = True
    average: float = 0.9
    eps: float = 1e-8
    eps_in_root: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(self, average="[0, 1)", eps="(0, inf)")

    def core(self) -> optax.GradientTransformation:
        """Returns the scaling by the root of the mean square."""
        return optax.scale_by_rms(self.average, self.eps, eps_in_sqrt=self.eps_in_root)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Algorithm):
    """Adam: m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - lr M / (sqrt(V) + eps).

    M = m / (1 - b1^t) and V = v / (1 - b2^t) correct the bias of starting at 0, as published:
    Kingma & Ba 2015, arXiv:1412.6980, algorithm 1. Weight decay is coupled; see `AdamW`.

    Attributes:
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: outside the root, after the correction; 1e-7 in Keras.
    """

    coupled: ClassVar[bool] = True
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        require(self, b1="[0, 1)", b2="[0, 1)", eps="(0, inf)")

    def core(self) -> optax.GradientTransformation:
        """Returns the scaling by both corrected moments."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: w <- w - lr (M / (sqrt(V) + eps) + weight_decay w).

    Loshchilov & Hutter 2019, arXiv:1711.05101. As in PyTorch, Keras and Optax the decay is
    multiplied by the whole learning rate; in the paper only by the schedule's factor.

    Attributes:
      weight_decay: 0.01 as in PyTorch; 0.004 in Keras, 1e-4 in Optax.
    """

    coupled: ClassVar[bool] = False
    weight_decay: float = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Algorithm):
    """Lion: w <- w - lr (sign(b1 m + (1 - b1) g) + weight_decay w);  m <- b2 m + (1 - b2) g.

    Chen et al. 2023, arXiv:2302.06675. Weight decay is decoupled. The paper takes a learning rate
    3 to 10 times smaller than AdamW's, and a weight decay that much larger.

    Attributes:
      b1: share of the momentum in the direction.
      b2: decay of the momentum.
    """

    b1: float = 0.9
    b2: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        require(self, b1="[0, 1)", b2="[0, 1)")

    def core(self) -> optax.GradientTransformation:
        """Returns the sign of the interpolated momentum."""
        return optax.scale_by_lion(self.b1, self.b2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Algorithm):
    """Adafactor: second moments of matrices kept as a row and a column; no first moment.

    Shazeer & Stern 2018, arXiv:1804.04235. g / sqrt(v), clipped to a root mean square of
    `clip_threshold`, times the parameter's own root mean square (at least 1e-3), so that the
    learning rate is relative to the parameter: the paper takes min(1e-2, 1 / sqrt(step)), that
    is `learning_rate=1e-2, schedule=InverseSqrt(10_000)` or so. Weight decay is decoupled.

    Attributes:
      decay_power: c in the decay of the squares, 1 - step^(-c).
      clip_threshold: largest root mean square of a parameter's direction; None does not clip.
      parameter_scale: whether the learning rate is relative to the size of the parameter.
      min_factored_dim: matrices whose second largest axis is shorter keep the whole second moment;
        the paper factors every matrix, T5 and Optax those from 128.
      momentum: decay of an average of the directions; None, as in the paper, keeps none.
    """

    decay_power: float = 0.8
    clip_threshold: float | None = 1.0
    parameter_scale: bool = True
    min_factored_dim: int = 128
    momentum: float | None = None

    def __post_init__(self):
        super().__post_init__()
        require(self, decay_power="(0, 1]", min_factored_dim="[1, inf)", momentum="[0, 1)")
        if self.clip_threshold is not None:
            require(self, clip_threshold="(0, inf)")

    def core(self) -> optax.GradientTransformation:
        """Returns factored scaling, clipping, the parameter's scale and the average."""
        parts = [
            # Squares, clipping and scale in the order of the paper's algorithm 4; Optax's 1e-30
            # under the root and its least scale of 1e-3 are the paper's epsilons.
            optax.scale_by_factored_rms(
                decay_rate=self.decay_power, min_dim_size_to_factor=self.min_factored_dim
            )
        ]
        if self.clip_threshold is not None:
            parts.append(optax.clip_by_block_rms(self.clip_threshold))
        if self.parameter_scale:
            parts.append(optax.scale_by_param_block_rms())
        if self.momentum is not None:
            # Not corrected, as in `optax.adafactor`.
            parts.append(optax.ema(self.momentum, debias=False))
        return optax.chain(*parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMB(Algorithm):
    """LAMB: Adam's direction u plus weight decay, scaled to the norm of each parameter tensor.

    w <- w - lr |w| / |u + weight_decay w| (u + weight_decay w), where a norm of 0 counts as a ratio
    of 1. For very large batches. You et al. 2020, arXiv:1904.00962. Weight decay is decoupled, and
    part of what is normalised.

    Attributes:
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: outside the root, after the bias correction.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        require(self, b1="[0, 1)", b2="[0, 1)", eps="(0, inf)")

    def core(self) -> optax.GradientTransformation:
        """Returns the scaling by both corrected moments."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps)

    def direction(self) -> list[Link]:
        """Returns Adam, decay and, last, the trust ratio."""
        # Behind the decay, which is part of the direction whose norm is taken.
        return [*super().direction(), ("trust_ratio", optax.scale_by_trust_ratio())]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shampoo(Algorithm):
    """Shampoo: L^(-1/4) G R^(-1/4) for a matrix, with the step length of a simpler optimiser.

    Gupta et al. 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018. See
    `lsm.optim.shampoo.scale_by_shampoo` for tensors of any order. Weight decay is decoupled.

    Attributes:
      b1: decay of an average of the directions, bias corrected; 0 keeps none.
      b2: decay of the second moments.
      graft: whose norm each tensor's step gets, and what vectors are updated by: "adam" is
        g / (sqrt(V) + eps) with V as in Adam, "sgd" the gradient.
      eps: of the "adam" graft.
      ridge: added to a second-moment matrix, relative to its largest eigenvalue.
      max_dim: axes longer than this are not preconditioned.
      update_every: steps between two computations of the matrix roots.
    """

    b1: float = 0.9
    b2: float = 0.999
    graft: Literal["adam", "sgd"] = "adam"
    eps: float = 1e-8
    ridge: float = 1e-6
    max_dim: int = 1024
    update_every: int = 10

    def __post_init__(self):
        super().__post_init__()
        require(self, b1="[0, 1)", b2="[0, 1)", eps="(0, inf)", ridge="(0, 1)")
        require(self, max_dim="[1, inf)", update_every="[1, inf)")
        require_choice(self, "graft", "adam", "sgd")

    def core(self) -> optax.GradientTransformation:
        """Returns the preconditioner, and the average where there is one."""
        graft = optax.identity()
        if self.graft == "adam":
            # Without Adam's first moment: that is kept of the preconditioned directions, below.
            graft = optax.scale_by_rms(self.b2, self.eps, eps_in_sqrt=False, bias_correction=True)
        shampoo = scale_by_shampoo(
            graft,
            b2=self.b2,
            ridge=self.ridge,
            max_dim=self.max_dim,
            update_every=self.update_every,
        )
        return optax.chain(shampoo, optax.ema(self.b1)) if self.b1 else shampoo
