"""Hand-written JAX training steps, short and written as XLA's CPU back end likes them."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Bare:
    """One model, its optimiser and a jitted step; has the batches on the device already."""

    def __init__(
        self,
        model: str,
        batches: Sequence[Mapping[str, np.ndarray]],
        dtype: str,
        options: Mapping[str, Any] | None,
    ):
        """Compiles nothing yet.

        Args:
          model: "mlp", "cnn" or "gpt".
          batches: what to train on, in turn.
          dtype: of the computation; parameters are float32.
          options: XLA's compiler options.
        """
        forward = {"mlp": mlp, "cnn": cnn, "gpt": gpt}[model]
        optimizer = make_optimizer(model)

        def loss(params, batch):
            if model == "gpt":
                inputs, labels = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
            else:
                inputs, labels = batch["image"].astype(jnp.float32) / 255, batch["label"]
            logits = forward(params, inputs, jnp.dtype(dtype)).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(state, batch):
            params, opt_state = state
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        params = jax.device_put(init(model))
        self.parameters = sum(x.size for x in jax.tree.leaves(params))
        self._step = jax.jit(step, donate_argnums=0, compiler_options=dict(options or {}))
        self._state = params, optimizer.init(params)
        self._batches = [jax.device_put(dict(batch)) for batch in batches]

    def run(self, steps: int) -> float:
        """Trains for `steps` steps; returns the seconds that one took."""
        start = time.perf_counter()
        for i in range(steps):
            self._state, value = self._step(self._state, self._batches[i % len(self._batches)])
        jax.block_until_ready((self._state, value))
        return (time.perf_counter() - start) / steps


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
    """Four pre-norm blocks of width 128 with 4 heads; tokens in one row each, (B x T, D)."""
    b, t = tokens_BxT.shape
    wte = params["wte"].astype(dtype)
    x_NxD = (wte[tokens_BxT] + params["wpe"].astype(dtype)).reshape(b * t, 128)
    for i in range(4):
        p = {name: leaf[i] for name, leaf in params["blocks"].items()}
        w = {name: leaf.astype(dtype) for name, leaf in p.items() if leaf.ndim == 2}
        qkv = (_norm(x_NxD, p["norm_1"], dtype) @ w["qkv"]).reshape(b, t, 3, 4, 32)
        x_NxD = x_NxD + _attention(qkv).reshape(b * t, 128) @ w["out"]
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

    if model == "gpt":
        shapes = {"qkv": (128, 384), "out": (128, 128), "up": (128, 512), "down": (512, 128)}
        blocks = {name: normal(4, *shape, std=0.02) for name, shape in shapes.items()}
        blocks |= {norm: np.ones((4, 128), np.float32) for norm in ("norm_1", "norm_2")}
        tables = {"wte": normal(65, 128, std=0.02), "wpe": normal(64, 128, std=0.02)}
        return {"blocks": blocks, "norm": np.ones(128, np.float32), **tables}
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
    if model == "cnn":
        return optax.adam(1e-3, eps=1e-7)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in str(path), params)

    adamw = optax.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)
