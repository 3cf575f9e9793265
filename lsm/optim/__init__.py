"""Optimisers, schedules and the average of parameters, as typed configs over Optax.

optimizer = AdamW(learning_rate=1e-3, schedule=WarmUp("5%", then=Cosine()), clip_norm=1.0)
transform = optimizer.make(Horizon(steps=1000, batch_size=128, examples=50_000))
"""

from lsm.optim.base import Algorithm, Group, Optimizer
from lsm.optim.ema import (
    ParamsEmaState,
    averaged_model_state,
    averaged_params,
    averages_model_state,
    params_ema,
    with_model_state,
)
from lsm.optim.layers import LayerDecay
from lsm.optim.masks import PruneState, masks_of, pruned, sparsity, with_masks
from lsm.optim.master import keep_master
from lsm.optim.muon import MatrixAxes, Muon
from lsm.optim.optimizers import (
    LAMB,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Momentum,
    RMSProp,
    Shampoo,
)
from lsm.optim.partition import Part, Partition
from lsm.optim.pruning import FixedMasks, Magnitude, Movement, Pruning, TwoOfFour
from lsm.optim.raw import Raw, as_optimizer
from lsm.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    ReduceOnPlateau,
    Schedule,
    Step,
    WarmUp,
)
from lsm.optim.shampoo import ShampooState, scale_by_shampoo
from lsm.optim.stacks import unstacked

__all__ = [
    "LAMB",
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Algorithm",
    "Constant",
    "Cosine",
    "Exponential",
    "FixedMasks",
    "Group",
    "InverseSqrt",
    "LayerDecay",
    "Linear",
    "Lion",
    "Magnitude",
    "MatrixAxes",
    "Momentum",
    "Movement",
    "Muon",
    "Optimizer",
    "ParamsEmaState",
    "Part",
    "Partition",
    "PruneState",
    "Pruning",
    "RMSProp",
    "Raw",
    "ReduceOnPlateau",
    "Schedule",
    "Shampoo",
    "ShampooState",
    "Step",
    "TwoOfFour",
    "WarmUp",
    "as_optimizer",
    "averaged_model_state",
    "averaged_params",
    "averages_model_state",
    "keep_master",
    "masks_of",
    "params_ema",
    "pruned",
    "scale_by_shampoo",
    "sparsity",
    "unstacked",
    "with_masks",
    "with_model_state",
]
