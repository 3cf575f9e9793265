"""Pruning as a transform: which weights, when, and what is 0 after every update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.metrics import Weighted
from lsm.optim import (
    SGD,
    Adafactor,
    AdamW,
    FixedMasks,
    Group,
    Magnitude,
    Movement,
    Muon,
    Partition,
    Shampoo,
    TwoOfFour,
    averaged_params,
    masks_of,
    sparsity,
    with_masks,
)
from lsm.params import flat, names
from lsm.train import skip_nonfinite
from lsm.train.state import TrainState

HORIZON = Horizon(steps=10, batch_size=1, examples=10)
STACKS = ((r"^blocks/", 1),)
NOW = {"begin": 1, "end": 1}


def tree(seed, dtype=np.float32):
    random = np.random.default_rng(seed)
    shapes = {
        "Dense_0": {"kernel": (8, 3), "bias": (3,)},
        "blocks": {"kernel": (2, 4, 5), "norm": {"scale": (5,)}},
        "tokens": {"embedding": (5, 4)},
    }
    draw = lambda shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def run(optimizer, updates=10, params=None, master=False, grads=None):
    """Returns parameters and state after each of some updates."""
    transform = optimizer.make(HORIZON, master=master, stacks=STACKS)
    params = tree(0) if params is None else params
    state = transform.init(params)
    params = tree(0, jnp.bfloat16) if master else params

    @jax.jit
    def step(params, state, g):
        u, state = transform.update(g, state, params, value=jnp.float32(1))
        return optax.apply_updates(params, u), state

    for seed in range(1, updates + 1):
        params, state = step(params, state, tree(seed) if grads is None else grads)
        yield params, state


def last(*args, **options):
    return list(run(*args, **options))[-1]


def zeros(params):
    return {name: int((np.asarray(x, np.float32) == 0).sum()) for name, x in flat(params).items()}


def kernels(params):
    return np.concatenate([np.ravel(x) for name, x in flat(params).items() if "kernel" in name])


def test_the_schedule_is_that_of_zhu_and_gupta():
    prune = Magnitude(sparsity=0.5, initial=0.1, begin=2, end=8, every=3)
    found = [kernels(params) for params, _ in run(SGD(learning_rate=0.1, prune=prune))]
    shares = [0, 0.1, 0.1, 0.1] + [0.5 + (0.1 - 0.5) * (1 - 3 / 6) ** 3] * 3 + [0.5] * 3
    assert [int((x == 0).sum()) for x in found] == [int(share * 64) for share in shares]
    # And those of the smallest magnitude: what SGD makes of them, in NumPy.
    weights, kept = kernels(tree(0)), np.ones(64, bool)
    for number, got in enumerate(found, 1):
        weights = np.where(kept, weights - np.float32(0.1) * kernels(tree(number)), 0)
        if number in (2, 5, 8):
            kept[np.argsort(np.abs(weights), kind="stable")[: int(shares[number - 1] * 64)]] = False
            weights = np.where(kept, weights, 0)
        np.testing.assert_allclose(got, weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got == 0, ~kept)


def test_the_last_time_comes_even_off_the_beat_and_a_short_run_prunes_too():
    prune = Magnitude(sparsity=0.5, begin=1, end=6, every=4)
    counts = [int((kernels(p) == 0).sum()) for p, _ in run(SGD(learning_rate=0.1, prune=prune))]
    assert counts == [0] * 4 + [int(0.5 * (1 - 0.2**3) * 64)] + [32] * 5
    assert [Magnitude(sparsity=0.5).times(Horizon(n, 1, 1)).count for n in (1, 2, 10)] == [1, 1, 6]


def test_by_layer_each_layer_of_a_stack_has_the_share():
    prune = Magnitude(sparsity=0.5, scope="layer", **NOW)
    params, state = last(SGD(learning_rate=1e-9, prune=prune), updates=2)
    blocks = np.asarray(params["blocks"]["kernel"])
    assert [(layer == 0).sum() for layer in blocks] == [10, 10]
    for layer, before in zip(blocks, np.asarray(tree(0)["blocks"]["kernel"]), strict=True):
        assert np.abs(before[layer == 0]).max() < np.abs(before[layer != 0]).min()
    assert zeros(params)["Dense_0/kernel"] == 12
    assert sparsity(state) == {"sparsity": 0.5}


def test_kernels_alone_are_pruned_by_default():
    params, state = last(SGD(learning_rate=0.1, prune=Magnitude(sparsity=0.9, **NOW)))
    assert set(masks_of(state)) == {"Dense_0/kernel", "blocks/kernel"}
    assert {name for name, count in zeros(params).items() if count} == set(masks_of(state))


def test_movement_keeps_what_moves_away_from_0():
    prune = Movement(sparsity=0.5, begin=3, end=3)
    transform = SGD(learning_rate=0.1, prune=prune)
    moved = list(run(transform, updates=4))
    weights, score = kernels(tree(0)), np.zeros(64)
    for number in range(1, 4):
        gradient = kernels(tree(number))
        score -= weights * gradient
        weights = weights - np.float32(0.1) * gradient
    gone = np.argsort(score)[:32]
    assert (kernels(moved[1][0]) != 0).all()
    np.testing.assert_array_equal(np.flatnonzero(kernels(moved[2][0]) == 0), np.sort(gone))
    scores = flat(moved[2][1]["prune"].scores)
    np.testing.assert_allclose(kernels(scores), score, rtol=1e-4, atol=1e-5)


def test_two_of_four_inputs_are_kept():
    params = tree(0) | {"first": {"kernel": jnp.ones((3, 3, 3, 2))}}
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[:4].set(1.0)  # all equal
    zero = jax.tree.map(jnp.zeros_like, params)
    (found, state), _ = run(SGD(learning_rate=0.1, prune=TwoOfFour()), 2, params, grads=zero)
    assert "first/kernel" not in masks_of(state)  # of three channels
    for name in ("Dense_0", "blocks"):
        before, after = (np.asarray(of[name]["kernel"]) for of in (params, found))
        fours = np.moveaxis(before, -2, -1).reshape(-1, 4)
        kept = np.moveaxis(after, -2, -1).reshape(-1, 4) != 0
        order = np.argsort(-np.abs(fours), axis=1, kind="stable")
        want = np.zeros_like(kept)
        np.put_along_axis(want, order[:, :2], True, axis=1)
        np.testing.assert_array_equal(kept, want)


@pytest.mark.parametrize("cls", [AdamW, Muon, Adafactor, Shampoo])
def test_the_pruned_are_0_after_every_update_in_average_and_master_too(cls):
    prune = Magnitude(sparsity=0.75, begin=2, end=4, every=1)
    optimizer = cls(learning_rate=0.1, weight_decay=0.1, clip_norm=1.0, ema=0.9, prune=prune)
    before = None
    for params, state in run(optimizer, updates=6, master=True):
        assert params["Dense_0"]["kernel"].dtype == jnp.bfloat16
        average = flat(averaged_params(state, params))
        for name, mask in masks_of(state).items():
            for x in (flat(params)[name], flat(state["master"])[name], average[name]):
                np.testing.assert_array_equal(np.asarray(x, np.float32) == 0, ~mask, name)
            assert before is None or not (mask & ~before[name]).any()  # none comes back
        before = masks_of(state)
    assert sparsity(state) == {"sparsity": 0.75}
    assert sum(map(int, zeros(params).values())) == 48


def test_the_pruned_have_no_gradient_in_the_norm_that_is_clipped():
    masks = {"Dense_0/kernel": jnp.zeros((8, 3), bool), "blocks/kernel": jnp.ones((2, 4, 5), bool)}
    transform = SGD(learning_rate=1.0, clip_norm=1.0, prune=FixedMasks()).make(HORIZON)
    state = with_masks(transform.init(tree(0)), masks)
    grads = jax.tree.map(jnp.zeros_like, tree(0))
    grads["Dense_0"]["kernel"] += 1e6
    grads["blocks"]["kernel"] = grads["blocks"]["kernel"].at[0, 0, 0].set(0.5)
    updates, state = transform.update(grads, state, tree(0))
    assert float(updates["blocks"]["kernel"][0, 0, 0]) == -0.5
    assert sparsity(state) == {"sparsity": 24 / 64}


def test_frozen_weights_are_not_pruned():
    optimizer = SGD(
        learning_rate=0.1, groups=(Group("Dense_0/", 0),), prune=Magnitude(sparsity=0.5, **NOW)
    )
    params, state = last(optimizer)
    assert list(masks_of(state)) == ["blocks/kernel"]
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], tree(0)["Dense_0"]["kernel"])
    assert zeros(params)["blocks/kernel"] == 20


def test_each_part_of_a_partition_prunes_its_own():
    optimizer = Partition(
        ("^blocks/", SGD(learning_rate=0.1, prune=Magnitude(sparsity=0.5, **NOW))),
        ("^Dense", AdamW(learning_rate=0.1, prune=TwoOfFour(begin=3))),
        (".*", SGD(learning_rate=0.1)),
    )
    assert [type(pruning) for pruning in optimizer.prunings] == [Magnitude, TwoOfFour]
    params, state = last(optimizer)
    assert zeros(params)["blocks/kernel"] == 20 and zeros(params)["Dense_0/kernel"] == 12
    assert sparsity(state) == {"sparsity": 0.5}


@pytest.mark.parametrize("share", [0, 0.999])
def test_the_ends_of_the_range_and_equal_weights(share):
    ones = jax.tree.map(jnp.ones_like, tree(0))
    for scope in ("global", "layer"):
        prune = Magnitude(sparsity=share, scope=scope, **NOW)
        zero = jax.tree.map(jnp.zeros_like, ones)
        params, _ = last(SGD(learning_rate=0.1, prune=prune), 2, ones, grads=zero)
        left = 64 - sum(zeros(params).values())
        assert left == (64 if not share else 1 if scope == "global" else 3)


def test_state_paths_end_with_those_of_the_parameters():
    transform = AdamW(learning_rate=0.1, prune=Movement(sparsity=0.5)).make(HORIZON)
    state = jax.eval_shape(transform.init, tree(0))
    found = [name for name in names(state) if name.startswith("prune/")]
    kinds, kernels = ("masks", "scores"), ("Dense_0/kernel", "blocks/kernel")
    arrays = [f"prune/{kind}/{kernel}" for kind in kinds for kernel in kernels]
    assert found == ["prune/updates/count", "prune/times", "prune/zeros", *arrays]


def test_it_is_pruned_only_when_it_is_time():
    transform = SGD(learning_rate=0.1, prune=Magnitude(sparsity=0.5)).make(HORIZON)
    state = transform.init(tree(0))
    text = jax.jit(transform.update).lower(tree(1), state, tree(0)).as_text()
    branch = text.index("stablehlo.case")
    assert "stablehlo.while" not in text[:branch] and "stablehlo.sort" not in text
    fixed = SGD(learning_rate=0.1, prune=FixedMasks()).make(HORIZON)
    text = jax.jit(fixed.update).lower(tree(1), fixed.init(tree(0)), tree(0)).as_text()
    assert "stablehlo.case" not in text


def test_a_pruning_whose_update_is_skipped_is_made_up_for():
    transform = SGD(learning_rate=0.1, prune=Magnitude(sparsity=0.5, begin=2, end=2)).make(HORIZON)

    def step(state, batch):
        updates, opt_state = transform.update(batch, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss = Weighted(batch["Dense_0"]["kernel"].sum(), jnp.float32(1))
        return TrainState(state.step + 1, params, {}, opt_state), {"loss": loss}

    step = jax.jit(skip_nonfinite(step))
    state = TrainState(jnp.int32(0), tree(0), {}, transform.init(tree(0)))
    bad = jax.tree.map(lambda x: x * jnp.nan, tree(0))
    found = []
    for batch in (tree(1), bad, tree(3)):
        state, _ = step(state, batch)
        found.append(sum(zeros(state.params).values()))
    assert found == [0, 0, 32]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Magnitude(sparsity=1.0), r"Magnitude.sparsity: 1.0 given; allowed: .*\[0, 1\)"),
        (lambda: Magnitude(sparsity=0.5, initial=0.6), "Magnitude.initial: 0.6 given; .* 0.5"),
        (lambda: Magnitude(sparsity=0.5, scope="global layer"), "allowed: 'global', 'layer'"),
        (lambda: Magnitude(sparsity=0.5, begin=8), "Magnitude.begin: 8 given, step 8, .* end, 7"),
        (lambda: Magnitude(sparsity=0.5, end=11), "Magnitude.end: 11 given, step 11; .* up to 10"),
        (lambda: TwoOfFour(begin=11), "TwoOfFour.begin: 11 given, step 11; allowed: up to 10"),
        (
            lambda: Magnitude(sparsity=0.5, pattern="kernell"),
            "Magnitude.pattern: 'kernell' matches",
        ),
        (lambda: TwoOfFour(pattern="bias"), "matches no kernel whose inputs are a multiple of 4"),
        (lambda: Movement(sparsity=0.5, pattern="("), "Movement.pattern: '\\(' is not a regular"),
    ],
)
def test_what_cannot_be_is_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        jax.eval_shape(SGD(learning_rate=0.1, prune=make()).make(HORIZON).init, tree(0))
    assert "\n" not in str(error.value)


def test_too_many_times_and_too_many_weights_are_one_line():
    long = Horizon(steps=1_000_000, batch_size=1, examples=10)
    with pytest.raises(ConfigError, match="every: 1 given, which prunes 500,001 times; allowed"):
        Magnitude(sparsity=0.5, every=1).times(long)
    huge = {"blocks": {"kernel": jax.ShapeDtypeStruct((4, 2**15, 2**15), np.float32)}}
    transform = SGD(learning_rate=0.1, prune=Magnitude(sparsity=0.5)).make(HORIZON, stacks=STACKS)
    with pytest.raises(ConfigError, match="scope: 'global' compares 4,294,967,296 weights"):
        jax.eval_shape(transform.init, huge)
    layers = Magnitude(sparsity=0.5, scope="layer")
    jax.eval_shape(SGD(learning_rate=0.1, prune=layers).make(HORIZON, stacks=STACKS).init, huge)
