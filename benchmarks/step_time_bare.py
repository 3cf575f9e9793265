"""Hand-written JAX training steps, short and written as XLA's CPU back end likes them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.step_time_cases import Case, experiment
from lsm.tasks.texts import sequences

_HEADS = {128: 4, 384: 6}
"""Of the GPTs, by width."""


class Bare:
    """One model, its optimiser and a jitted step; has the batches on the device already."""

    def __init__(self, case: Case, dtype: str, options: Mapping[str, Any] | None):
        """Compiles nothing yet.

        Args:
          case: what to train. The LSTM and the ResNet are Linen modules here too.
          dtype: of the computation; parameters are float32.
          options: XLA's compiler options.
        """
        batches, optimizer = case.batches(), make_optimizer(case.model)
        inputs = _inputs(case.model)
        if case.model in ("lstm", "resnet"):
            params, rest, forward = _linen(
                experiment(case, dtype, 1).task.model, inputs(batches[0])
            )
        else:
            params, rest = init(case.model), {}
            plain = {"mlp": mlp, "cnn": cnn, "gpt": gpt, "gpt_384": gpt}[case.model]

            def forward(params, rest, x):
                return plain(params, x, jnp.dtype(dtype)), rest

        def loss(params, rest, batch):
            logits, rest = forward(params, rest, inputs(batch))
            labels = batch["label"] if "label" in batch else batch["tokens"][:, 1:]
            return _losses(logits.astype(jnp.float32), labels).mean(), rest

        def step(state, batch):
            params, rest, opt_state = state
            (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), rest, opt_state), value

        params, rest = jax.device_put((params, rest))
        self.parameters = sum(x.size for x in jax.tree.leaves(params))
        self._step = jax.jit(step, donate_argnums=0, compiler_options=dict(options or {}))
        self._state = params, rest, optimizer.init(params)
        self._batches = [jax.device_put(dict(batch)) for batch in batches]

    def run(self, steps: int) -> float:
        """Trains for `steps` steps; returns the seconds that one took."""
        start = time.perf_counter()
        for i in range(steps):
            self._state, value = self._step(self._state, self._batches[i % len(self._batches)])
        jax.block_until_ready((self._state, value))
        return (time.perf_counter() - start) / steps


def _losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each example; of one logit the logistic loss."""
    if logits.shape[-1] == 1:
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _inputs(model: str) -> Callable[[Mapping[str, jax.Array]], jax.Array]:
    """Returns how a model's input comes from a batch."""
    if model in ("gpt", "gpt_384"):
        return lambda batch: batch["tokens"][:, :-1]
    if model == "lstm":
        return lambda batch: sequences(batch, "tokens")
    return lambda batch: batch["image"].astype(jnp.float32) / 255


def _linen(model: nn.Module, x: Any) -> tuple[Any, Any, Callable]:
    """Returns parameters, batch statistics, and their function (params, rest, x)."""
    variables = jax.jit(model.init)(jax.random.key(0), jax.tree.map(lambda x: x[:1], x))
    rest, params = flax.core.pop(variables, "params")

    def forward(params, rest, x):
        variables = {"params": params, **rest}
        return model.apply(variables, x, train=True, mutable=list(rest))

    return params, rest, forward


def mlp(params: Any, x_BxHxWxC: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """784-128-10 with ReLU on flattened pictures."""
    w, b = [p.astype(dtype) for p in params["w"]], [p.astype(dtype) for p in params["b"]]
    x_BxD = x_BxHxWxC.reshape(x_BxHxWxC.shape[0], -1).astype(dtype)
    return jax.nn.relu(x_BxD @ w[0] + b[0]) @ w[1] + b[1]


def cnn(params: Any, x_BxHxWxC: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Three 3x3 convolutions with pools between, dense 64, dense 10."""
    x = x_BxHxWxC.astype(dtype)
    w, b = [p.astype(dtype) for p in params["w"]], [p.astype(dtype) for p in params["b"]]
    for i in range(3):
        x = jax.lax.conv_general_dilated(
            x, w[i], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        # Bias and ReLU after the pool: the same function, on a quarter of the values.
        x = jax.nn.relu((max_pool_2x2(x) if i < 2 else x) + b[i])
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ w[3] + b[3]) @ w[4] + b[4]


@jax.custom_vjp
def max_pool_2x2(x_BxHxWxC: jax.Array) -> jax.Array:
    """Max over 2x2 windows; the gradient goes to the first maximum, as with `reduce_window`."""
    return _windows(x_BxHxWxC).max((2, 4))


def _pool_forward(x: jax.Array) -> tuple[jax.Array, Any]:
    y = max_pool_2x2(x)
    return y, (x, y)


def _pool_backward(saved: Any, g: jax.Array) -> tuple[jax.Array]:
    x, y = saved
    windows, free, parts = _windows(x), True, []
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        hit = free & (windows[:, :, i, :, j] == y)
        parts.append(jnp.where(hit, g, 0))
        free = free & ~hit
    rows = [jnp.stack(parts[:2], 3), jnp.stack(parts[2:], 3)]
    b, h, w, c = y.shape
    dx = jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, c)
    odd = [(0, full - even) for full, even in zip(x.shape, dx.shape, strict=True)]
    return (jnp.pad(dx, odd),)


max_pool_2x2.defvjp(_pool_forward, _pool_backward)


def _windows(x_BxHxWxC: jax.Array) -> jax.Array:
    b, h, w, c = x_BxHxWxC.shape
    x_BxHxWxC = x_BxHxWxC[:, : h // 2 * 2, : w // 2 * 2]
    return x_BxHxWxC.reshape(b, h // 2, 2, w // 2, 2, c)


def gpt(params: Any, tokens_BxT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Pre-norm blocks with heads of `_HEADS`; tokens in one row each, (B x T, D)."""
    (b, t), (layers, d, _) = tokens_BxT.shape, params["blocks"]["qkv"].shape
    heads = _HEADS[d]
    wte = params["wte"].astype(dtype)
    x_NxD = (wte[tokens_BxT] + params["wpe"].astype(dtype)).reshape(b * t, d)
    for i in range(layers):
        p = {name: leaf[i] for name, leaf in params["blocks"].items()}
        w = {name: leaf.astype(dtype) for name, leaf in p.items() if leaf.ndim == 2}
        qkv = (_norm(x_NxD, p["norm_1"], dtype) @ w["qkv"]).reshape(b, t, 3, heads, d // heads)
        x_NxD = x_NxD + _attention(qkv).reshape(b * t, d) @ w["out"]
        x_NxD = x_NxD + jax.nn.gelu(_norm(x_NxD, p["norm_2"], dtype) @ w["up"]) @ w["down"]
    return (_norm(x_NxD, params["norm"], dtype) @ wte.T).reshape(b, t, -1)


def _attention(qkv_BxTx3xHxK: jax.Array) -> jax.Array:
    q, k, v = jnp.moveaxis(qkv_BxTx3xHxK, 2, 0)
    scores = jnp.einsum("bthk,bshk->bhts", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    scores = jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores).astype(q.dtype), v)


def _norm(x_NxD: jax.Array, scale_D: jax.Array, dtype: jnp.dtype) -> jax.Array:
    x_NxD = x_NxD.astype(jnp.float32)
    x_NxD = x_NxD - x_NxD.mean(-1, keepdims=True)
    x_NxD = x_NxD * jax.lax.rsqrt((x_NxD * x_NxD).mean(-1, keepdims=True) + 1e-6)
    return (x_NxD * scale_D).astype(dtype)


def init(model: str) -> Any:
    """Returns float32 parameters: normal weights, zero biases, norms of one."""
    rng = np.random.default_rng(0)

    def normal(*shape, std=None):
        std = std or float(np.prod(shape[:-1])) ** -0.5
        return (rng.standard_normal(shape) * std).astype(np.float32)

    if model in ("gpt", "gpt_384"):
        layers, d, context = (4, 128, 64) if model == "gpt" else (6, 384, 256)
        shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
        blocks = {name: normal(layers, *shape, std=0.02) for name, shape in shapes.items()}
        blocks |= {norm: np.ones((layers, d), np.float32) for norm in ("norm_1", "norm_2")}
        tables = {"wte": normal(65, d, std=0.02), "wpe": normal(context, d, std=0.02)}
        return {"blocks": blocks, "norm": np.ones(d, np.float32), **tables}
    shapes = {
        "mlp": [(784, 128), (128, 10)],
        "cnn": [(3, 3, 3, 32), (3, 3, 32, 64), (3, 3, 64, 64), (1024, 64), (64, 10)],
    }[model]
    return {
        "w": [normal(*shape) for shape in shapes],
        "b": [np.zeros(shape[-1], np.float32) for shape in shapes],
    }


def make_optimizer(model: str) -> optax.GradientTransformation:
    """Returns the Optax chain of the model's experiment."""
    if model == "mlp":
        return optax.sgd(1e-3, momentum=0.9)
    if model == "resnet":
        return optax.sgd(1e-3, momentum=0.9, nesterov=True)
    if model in ("cnn", "lstm"):
        return optax.adam(1e-3, eps=1e-7)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in str(path), params)

    adamw = optax.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)
