"""What surrounds every algorithm: clipping, decay masks, groups, freezing, the average, paths."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.optim import (
    LAMB,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Cosine,
    Group,
    Lion,
    Momentum,
    Muon,
    ReduceOnPlateau,
    RMSProp,
    Shampoo,
    WarmUp,
    averaged_params,
)

HORIZON = Horizon(steps=10, batch_size=1, examples=10)
ALL = (SGD, Momentum, Adagrad, RMSProp, Adam, AdamW, Lion, Adafactor, LAMB, Muon, Shampoo)


def tree(seed):
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.float32(rng.normal(size=shape))

    return {
        "Dense_0": {"kernel": leaf(4, 3), "bias": leaf(3)},
        "Dense_1": {"kernel": leaf(3, 2), "bias": leaf(2)},
        "Embed_0": {"embedding": leaf(5, 4)},
        "LayerNorm_0": {"scale": leaf(4)},
    }


def run(optimizer, params, grads):
    """Returns the parameters and the optimiser state after `grads`."""
    transform = optimizer.make(HORIZON)
    state = transform.init(params)

    @jax.jit
    def step(params, state, g):
        updates, state = transform.update(g, state, params, value=jnp.float32(1))
        return optax.apply_updates(params, updates), state

    for g in grads:
        params, state = step(params, state, g)
    return params, state


def names(a_tree):
    leaves = jax.tree_util.tree_leaves_with_path(a_tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def assert_bitwise(got, want):
    assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def test_clip_scales_the_whole_gradient_to_the_norm():
    params, grads = tree(0), tree(1)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    assert norm > 2
    moved, _ = run(SGD(learning_rate=0.1, clip_norm=2.0), params, [grads])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g * 2.0 / norm, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, expected)
    loose, _ = run(SGD(learning_rate=0.1, clip_norm=2 * norm), params, [grads])
    plain, _ = run(SGD(learning_rate=0.1), params, [grads])
    jax.tree.map(assert_bitwise, loose, plain)


def test_decay_leaves_biases_and_norms_alone_by_default():
    params = tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved, _ = run(AdamW(learning_rate=0.1, weight_decay=0.5), params, [zeros])
    for layer, leaves in params.items():
        for name, before in leaves.items():
            factor = 1 - 0.1 * 0.5 if name in ("kernel", "embedding") else 1
            np.testing.assert_allclose(moved[layer][name], factor * before, rtol=1e-6)


def test_decay_follows_its_pattern():
    params = tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved, _ = run(SGD(learning_rate=0.1, weight_decay=0.5, decay="Dense_1/"), params, [zeros])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), moved, params)
    assert [n for n, c in zip(names(changed), jax.tree.leaves(changed), strict=True) if c] == [
        "Dense_1/bias",
        "Dense_1/kernel",
    ]


def test_groups_scale_the_learning_rate_and_the_first_match_wins():
    params, grads = tree(0), tree(1)
    groups = (Group("Dense_0/bias$", 3.0), Group("^Dense_", 0.5))
    moved, _ = run(SGD(learning_rate=0.1, groups=groups), params, [grads])
    factors = {"Dense_0/bias": 3.0, "Dense_0/kernel": 0.5, "Dense_1/bias": 0.5}
    for layer, leaves in params.items():
        for name, before in leaves.items():
            factor = factors.get(f"{layer}/{name}", 0.5 if layer == "Dense_1" else 1.0)
            expected = before - 0.1 * factor * grads[layer][name]
            np.testing.assert_allclose(moved[layer][name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", ALL)
def test_frozen_leaves_stay_bitwise_and_hold_no_state(cls):
    params = tree(0)
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[0, 0].set(-0.0)
    optimizer = cls(
        learning_rate=0.1,
        weight_decay=0.3,
        clip_norm=1.0,
        groups=(Group("^Dense_0/", 0.0), Group("bias$", 2.0)),
        ema=0.9,
        schedule=WarmUp(2, then=ReduceOnPlateau(accumulation=1, patience=1)),
    )
    moved, state = run(optimizer, params, [tree(s) for s in range(1, 6)])
    jax.tree.map(assert_bitwise, moved["Dense_0"], params["Dense_0"])
    assert not [name for name in names(state) if "Dense_0" in name]
    assert [name for name in names(state) if name.endswith("ema/average/Dense_1/kernel")]
    for name in ("kernel", "bias"):
        assert (moved["Dense_1"][name] != params["Dense_1"][name]).all()
    average = averaged_params(state, moved)
    assert_bitwise(average["Dense_0"]["kernel"], params["Dense_0"]["kernel"])
    assert (average["Dense_1"]["kernel"] != moved["Dense_1"]["kernel"]).any()


def test_freezing_outside_jit_keeps_the_sign_of_zero():
    params = {"kernel": jnp.float32([-0.0, 0.0]), "bias": jnp.float32([1.0])}
    transform = SGD(learning_rate=0.1, groups=(Group("kernel", 0.0),)).make(HORIZON)
    updates, _ = transform.update(params, transform.init(params), params)
    assert_bitwise(optax.apply_updates(params, updates)["kernel"], params["kernel"])


def test_frozen_gradients_do_not_count_in_the_norm():
    params = {"frozen": jnp.float32([1.0]), "kernel": jnp.float32([1.0])}
    grads = {"frozen": jnp.float32([1e6]), "kernel": jnp.float32([0.5])}
    optimizer = SGD(learning_rate=1.0, clip_norm=1.0, groups=(Group("frozen", 0.0),))
    moved, _ = run(optimizer, params, [grads])
    assert float(moved["kernel"][0]) == 0.5


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_ema_is_the_bias_corrected_average_of_the_parameters(steps):
    decay, w = 0.8, np.float64([1.0, -2.0])
    grads = [np.random.default_rng(s).normal(size=2) for s in range(steps)]
    optimizer = SGD(learning_rate=0.1, ema=decay)
    moved, state = run(
        optimizer, {"kernel": jnp.float32(w)}, [{"kernel": jnp.float32(g)} for g in grads]
    )
    seen = w - 0.1 * np.cumsum(grads, axis=0)
    weights = decay ** np.arange(steps)[::-1]
    expected = weights @ seen / weights.sum()
    np.testing.assert_allclose(averaged_params(state, moved)["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(moved["kernel"], seen[-1], rtol=1e-5)


def test_ema_first_step_leaves_nothing_of_the_start():
    # 1 - decay^t in float32 would be off by 2e-4 here, and leak so much of the initial 1e4.
    optimizer = SGD(learning_rate=1.0, ema=0.9999)
    params = {"kernel": jnp.float32([1e4])}
    moved, state = run(optimizer, params, [{"kernel": jnp.float32([1e4 - 1])}])
    assert float(averaged_params(state, moved)["kernel"][0]) == pytest.approx(1.0, abs=1e-2)


def test_without_ema_the_average_is_the_parameters():
    params, state = run(Adam(learning_rate=0.1), tree(0), [tree(1)])
    assert averaged_params(state, params) is params


def test_averages_of_several_optimizers_are_put_together():
    params, labels = tree(0), {"Dense_0": "a", "Dense_1": "b", "Embed_0": "b", "LayerNorm_0": "b"}
    transform = optax.partition(
        {
            "a": SGD(learning_rate=0.1, ema=0.5).make(HORIZON),
            "b": Adam(learning_rate=0.1, ema=0.5).make(HORIZON),
        },
        labels,
    )
    state = transform.init(params)
    for seed in (1, 2):
        updates, state = transform.update(tree(seed), state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    average = averaged_params(state, params)
    assert all(
        (a != p).all() for a, p in zip(*map(jax.tree.leaves, (average, params)), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"groups": (Group("^Dens_1/bias$", 0.1),)},
            r"Group\.pattern: '\^Dens_1/bias\$' matches no parameter; the parameters are "
            r"Dense_0/bias, .*Did you mean 'Dense_1/bias'\?",
        ),
        (
            {"groups": (Group(".*", 0.0), Group("Dense_1/", 1.0))},
            r"Adam\.groups: every parameter that 'Dense_1/' matches belongs to an earlier group",
        ),
        (
            {"weight_decay": 0.1, "decay": "Dense_0/kernels"},
            r"Adam\.decay: 'Dense_0/kernels' matches no parameter.*Did you mean 'Dense_0/kernel'\?",
        ),
    ],
)
def test_a_pattern_that_chooses_nothing_is_an_error_at_init(options, message):
    transform = Adam(learning_rate=0.1, **options).make(HORIZON)
    with pytest.raises(ConfigError, match=message) as error:
        jax.eval_shape(transform.init, tree(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cls", ALL)
def test_state_paths_end_with_parameter_paths(cls):
    params = tree(0)
    shapes = dict(zip(names(params), map(jnp.shape, jax.tree.leaves(params)), strict=True))
    optimizer = cls(learning_rate=0.1, ema=0.9, clip_norm=1.0, schedule=Cosine())
    transform = optimizer.make(HORIZON)
    state = jax.eval_shape(transform.init, params)
    other = "v_row|v_col|statistics|roots" if cls is Shampoo else "v_row|v_col"
    for name, leaf in zip(names(state), jax.tree.leaves(state), strict=True):
        owner = next((path for path in shapes if name.endswith("/" + path)), None)
        if owner is None:
            assert leaf.ndim == 0 or name.endswith("ns_coeffs"), name
        elif not re.search(other, name):
            assert leaf.shape == shapes[owner], name
    assert {f"ema/average/{path}" for path in shapes} <= set(names(state))
    if cls is Adam:
        assert "core/mu/Dense_0/kernel" in names(state)


@pytest.mark.parametrize("cls", ALL)
def test_the_state_keeps_its_structure_and_dtypes(cls):
    params = tree(0)
    transform = cls(learning_rate=0.1, ema=0.9, schedule=WarmUp(2, then=Cosine())).make(HORIZON)
    before = jax.eval_shape(transform.init, params)
    updates, after = jax.eval_shape(
        lambda g, s, p: transform.update(g, s, p, value=jnp.float32(1)), params, before, params
    )
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))  # fmt: skip
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_only_what_is_needed_is_in_the_chain():
    def parts(optimizer):
        return list(optimizer.make(HORIZON).init(tree(0)))

    assert parts(SGD(learning_rate=0.1)) == ["learning_rate"]
    assert parts(Adam(learning_rate=0.1)) == ["core", "learning_rate"]
    assert parts(Adam(learning_rate=0.1, groups=(Group("bias", 1.0),))) == ["core", "learning_rate"]
    full = AdamW(
        learning_rate=0.1,
        clip_norm=1.0,
        groups=(Group("bias", 0.5),),
        schedule=ReduceOnPlateau(),
        ema=0.9,
    )
    order = ["clip", "core", "decay", "groups", "learning_rate", "plateau", "ema"]
    assert parts(full) == order
    coupled = ["decay", "core", "learning_rate"]
    assert parts(Adam(learning_rate=0.1, weight_decay=0.1)) == coupled


def test_adam_compiles_to_the_operations_of_optax_adam():
    def operations(transform):
        params = tree(0)

        def step(params, state, grads):
            updates, state = transform.update(grads, state, params, value=jnp.float32(1))
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(step).lower(params, transform.init(params), params)
        return collections.Counter(re.findall(r"stablehlo\.\w+", lowered.as_text()))

    ours = operations(Adam(learning_rate=1e-3).make(HORIZON))
    assert ours == operations(optax.with_extra_args_support(optax.adam(1e-3)))
