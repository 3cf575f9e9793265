"""Low-precision parameters with a float32 master copy, as an Optax transform."""

import jax
import jax.numpy as jnp
import optax


def keep_master(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` in float32 on a master copy of parameters that are held in fewer bits.

    `init` takes the parameters in float32; `update` takes gradients and parameters of any float
    dtype, and what it returns makes the parameters the rounded master copy (Micikevicius et al.
    2018, arXiv:1710.03740). The state is that of `inner` with "master" added.
    """

    def init(params: optax.Params) -> dict:
        return {"master": params, **inner.init(params)}

    def update(updates, state, params=None, **extra):
        state = dict(state)
        # Where the parameters are no longer the rounded master, somebody set them since
        # (`Task.after_update`): then they count.
        master = jax.tree.map(
            lambda m, p: jnp.where(m.astype(p.dtype) == p, m, p.astype(m.dtype)),
            state.pop("master"),
            params,
        )
        updates = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        updates, state = inner.update(updates, state, master, **extra)
        master = optax.apply_updates(master, updates)
        # The difference of two bfloat16 numbers that are close is exact in float32.
        step = jax.tree.map(
            lambda m, p: m.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32),
            master,
            params,
        )
        return step, {"master": master, **state}

    return optax.GradientTransformationExtraArgs(init, update)
