"""Blocks against NumPy, what a cache and packed segments change (nothing), parts on their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError, MeshError
from lsm.mesh import Mesh, batch_sharding, jit, make_mesh, replicated, shard
from lsm.models import (
    GPT,
    Attention,
    Block,
    CrossAttention,
    Mask,
    Mlp,
    Stack,
    Transformer,
    families,
)
from lsm.models.experts import Experts

B, T, S, D, H, K, V = 2, 5, 7, 12, 3, 4, 31
CAUSAL = Mask(causal=True)
SIZES = {"vocabulary": V, "layers": 3, "heads": 4, "width": 16, "context": 24}
GROUPED = SIZES | {"kv_heads": 2, "hidden": 24}
STYLES = {
    "gpt2": families.gpt2(**SIZES),
    "llama": families.llama(**GROUPED),
    "qwen2": families.qwen2(**GROUPED),
    "qwen3": families.qwen3(**GROUPED | {"head_width": 6}),
    "gemma2": families.gemma2(**GROUPED, head_width=6, window=4),
    "gemma3": families.gemma3(**GROUPED, head_width=6, window=3, global_every=3),
    "mixtral": families.mixtral(**GROUPED, experts=Experts(count=4, top_k=2, capacity=None)),
}


def made(module, *args, **options):
    return jax.jit(functools.partial(module.init, **options))(jax.random.key(0), *args)


def noisy(module, *args, **options):
    """Parameters far from their first values, so that nothing small hides."""
    variables = made(module, *args, **options)
    leaves, tree = jax.tree.flatten(variables)
    random = np.random.default_rng(0)
    return tree.unflatten([x + 0.2 * random.normal(size=x.shape).astype(x.dtype) for x in leaves])


def arrays(*shapes, seed=1):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def tokens(rows=B, length=12):
    return np.random.default_rng(2).integers(0, V, (rows, length))


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_a_block_with_memory_is_numpys():
    config = Transformer(layers=1, heads=H, width=D, bias=True, mlp="relu")
    x, memory = arrays((B, T, D), (B, S, D))
    padding_BxS = np.arange(S) < np.array([[S], [4]])
    options = {"memory_BxSxD": memory, "memory_mask": Mask(keys_BxS=jnp.array(padding_BxS))}
    variables = noisy(Block(config), x, CAUSAL, **options)
    p = jax.tree.map(np.asarray, variables["params"])

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * p[name]["scale"] + p[name]["bias"]

    def dense(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def heads(x, parts):  # (B, L, parts x D), head by head, as `parts` arrays (B, H, L, K)
        return x.reshape(B, -1, H, parts, K).transpose(3, 0, 2, 1, 4)

    def read(q, k, v, seen):
        scores = np.where(seen, q @ k.swapaxes(-1, -2) / K**0.5, -np.inf)
        return softmax(scores), (softmax(scores) @ v).swapaxes(1, 2).reshape(B, -1, D)

    maps, y = read(*heads(dense(norm(x, "norm_1"), "qkv"), 3), np.tri(T, dtype=bool))
    h = x + dense(y, "out")
    (q,) = heads(dense(norm(h, "norm_cross"), "cross_q"), 1)
    k, v = heads(dense(memory, "cross_kv"), 2)
    cross_maps, y = read(q, k, v, padding_BxS[:, None, None])
    h = h + dense(y, "cross_out")
    h = h + dense(np.maximum(dense(norm(h, "norm_2"), "up"), 0), "down")

    run = jax.jit(functools.partial(Block(config).apply, maps=True))
    found = run(variables, x, CAUSAL, **options)
    np.testing.assert_allclose(found.x_BxTxD, h, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.maps_BxHxTxS, maps, atol=1e-5)
    np.testing.assert_allclose(found.cross_maps_BxHxTxS, cross_maps, atol=1e-5)
    assert found.cache is None and (found.balance_B == 0).all()


def test_parts_stand_alone_with_the_parameters_that_they_have_in_a_block():
    config = Transformer(layers=1, heads=H, width=D, bias=True, qk_norm=True)
    x, memory = arrays((B, T, D), (B, S, D))
    parts = {
        Attention: (x, CAUSAL),
        CrossAttention: (x, memory, Mask()),
        Mlp: (x,),
    }

    @jax.jit
    def init(key):
        whole = Block(config).init(key, x, CAUSAL, memory_BxSxD=memory)["params"]
        return whole, [part(config).init(key, *args)["params"] for part, args in parts.items()]

    whole, each = init(jax.random.key(0))
    norms = {name: whole[name] for name in ("norm_1", "norm_cross", "norm_2")}
    for alone in each:
        of_block = {name: whole[name] for name in alone}
        jax.tree.map(np.testing.assert_array_equal, alone, of_block)  # the same draws, too
        norms |= of_block
    assert norms == whole


def test_norm_positions():
    """With maps that read nothing and an MLP of 0, what is left is norms of the input."""
    (x,) = arrays((B, T, D))

    def run(x, position):
        block = Block(Transformer(layers=1, heads=H, width=D, norm_position=position))
        variables = block.init(jax.random.key(0), x, CAUSAL)
        zeros = jax.tree.map_with_path(lambda path, leaf: leaf * ("norm" in str(path)), variables)
        return block.apply(zeros, x, CAUSAL).x_BxTxD, variables["params"]

    positions = ("pre", "post", "sandwich")
    found = jax.jit(lambda x: [run(x, position) for position in positions])(x)
    (pre, post, sandwich), params = zip(*found, strict=True)
    normed = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(pre, x)
    np.testing.assert_allclose(sandwich, x)
    np.testing.assert_allclose(post, normed, rtol=1e-4, atol=1e-4)
    norms = [{name for name in each if "norm" in name} for each in params]
    assert norms[0] == norms[1] == {"norm_1", "norm_2"}
    assert norms[2] == {"norm_1", "norm_2", "post_norm_1", "post_norm_2"}


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_cached_logits_are_those_of_the_whole_text(style):
    """A prompt of 5, three tokens at once, then one at a time."""
    model, text = STYLES[style], tokens()
    variables = noisy(model, text)
    expected = jax.jit(model.apply)(variables, text)
    decode = jax.jit(lambda *args: model.apply(*args, method="decode"), donate_argnums=2)
    cache, found = model.cache(B, 16), []
    for part in np.split(text, [5, 8, 9, 10, 11], axis=1):
        logits, cache = decode(variables, part, cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected) > 1
    np.testing.assert_array_equal(cache.length, 12)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["gpt2", "llama", "gemma3"])
def test_prompts_of_different_lengths_go_on_where_each_ends(style):
    model, text = STYLES[style], tokens()
    variables = noisy(model, text)
    expected = jax.jit(model.apply)(variables, text)
    decode = jax.jit(lambda *args: model.apply(*args, method="decode"))
    lengths_B, row_B = np.array([6, 3]), np.arange(B)
    _, cache = decode(variables, text[:, :6], model.cache(B, 16))  # row 1 holds three too many
    cache = cache.filled(lengths_B)
    for step in range(6):
        place_B = lengths_B + step
        logits, cache = decode(variables, text[row_B, place_B][:, None], cache)
        np.testing.assert_allclose(logits[:, 0], expected[row_B, place_B], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["gpt2", "llama", "gemma3"])
def test_packed_segments_are_separate_documents(style):
    model, text = STYLES[style], tokens()
    variables = noisy(model, text)
    ends = np.array([[4, 9], [1, 7]])
    segments = (np.arange(12) >= ends[..., None]).sum(1)
    mask = Mask(causal=True, segments_BxT=jnp.array(segments))
    found = jax.jit(model.apply)(variables, text, mask=mask)
    for row in range(B):
        for part, piece in zip(
            np.split(text[row], ends[row]), np.split(found[row], ends[row]), strict=True
        ):
            alone = model.apply(variables, part[None])[0]
            np.testing.assert_allclose(piece, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_bidirectional_stack_does_not_see_padding():
    stack = Stack(Transformer(layers=2, heads=H, width=D, theta=100.0, window=4))
    (x,) = arrays((B, T, D))
    variables = noisy(stack, x, Mask())
    whole = stack.apply(variables, x[:, :3], Mask()).x_BxTxD
    padded = stack.apply(variables, x, Mask(keys_BxS=jnp.arange(T)[None] < jnp.full((B, 1), 3)))
    np.testing.assert_allclose(padded.x_BxTxD[:, :3], whole, rtol=1e-4, atol=1e-5)
    assert not np.allclose(stack.apply(variables, x, Mask()).x_BxTxD[:, :3], whole, atol=1e-2)


def test_a_cached_decoder_computes_the_memorys_keys_once():
    config = Transformer(layers=2, heads=H, width=D, theta=100.0)
    x, memory = arrays((B, T, D), (B, S, D))
    memory_mask = Mask(keys_BxS=jnp.arange(S)[None] < jnp.array([[S], [4]]))
    stack = Stack(config)
    variables = noisy(stack, x, CAUSAL, memory_BxSxD=memory)

    @jax.jit
    def begin(variables, x, memory, cache):
        options = {"memory_BxSxD": memory, "memory_mask": memory_mask}
        whole = stack.apply(variables, x, CAUSAL, **options)
        return whole, stack.apply(variables, x[:, :2], CAUSAL, **options, cache=cache)

    expected, first = begin(variables, x, memory, config.cache(B, 8))

    @jax.jit
    def go_on(variables, x, cache):
        return stack.apply(variables, x, CAUSAL, memory_mask=memory_mask, cache=cache)

    rest = go_on(variables, x[:, 2:], first.cache)
    found = np.concatenate([first.x_BxTxD, rest.x_BxTxD], axis=1)
    np.testing.assert_allclose(found, expected.x_BxTxD, rtol=1e-4, atol=1e-5)
    unread = jax.tree.map_with_path(
        lambda path, leaf: leaf * jnp.nan if "cross_kv" in str(path) else leaf, variables
    )
    np.testing.assert_array_equal(go_on(unread, x[:, 2:], first.cache).x_BxTxD, rest.x_BxTxD)


def test_maps_of_all_layers_sum_to_one():
    stack = Stack(Transformer(layers=3, heads=4, kv_heads=2, width=16, window=3, global_every=3))
    (x,) = arrays((B, T, 16))
    run = jax.jit(functools.partial(stack.apply, maps=True))
    found = run(noisy(stack, x, CAUSAL), x, CAUSAL).maps_BxHxTxS
    assert found.shape == (3, B, 4, T, T)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert (found[:2, :, :, 4, 0] == 0).all() and (found[2, :, :, 4, 0] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"fsdp": 4, "tensor": 2}, {"pipeline": 2, "data": 4}], ids=str
)
def test_gradients_by_example_are_those_of_one_device(axes):
    sizes = {"vocabulary": 32, "layers": 2, "heads": 4, "width": 16, "context": 8}
    model, text = families.llama(**sizes, kv_heads=2, hidden=32), tokens(8, 9)
    params = model.init(jax.random.key(0), text[:1, :-1])["params"]

    def loss(params, text_T):
        logits_TxV = model.apply({"params": params}, text_T[None, :-1])[0]
        picked_T = jnp.take_along_axis(jax.nn.log_softmax(logits_TxV), text_T[1:, None], axis=1)
        return -picked_T.mean()

    def by_example(params, text_BxT):
        return jax.vmap(jax.grad(loss), (None, 0))(params, text_BxT)

    mesh = make_mesh(Mesh(**{"data": 1, **axes}))
    split = jit(
        by_example,
        in_shardings=(shard(params, mesh, model.layout.rules), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        mesh=mesh,
    )
    found, expected = split(params, text), jax.jit(by_example)(params, text)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected
    )
    assert len({float(x) for x in expected["norm_f"]["scale"][:, 0]}) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", [{"data": 2, "tensor": 2}, {"fsdp": 4}, {"tensor": 2, "sequence": 2}], ids=str
)
def test_decoding_on_a_mesh_is_that_of_one_device(axes):
    model, text = families.llama(**GROUPED | {"vocabulary": 32}), tokens(4, 6)
    variables = noisy(model, text)
    mesh = make_mesh(Mesh(**{"data": 1, **axes}), jax.devices()[:4])

    def decode(variables, text):
        logits, cache = model.apply(variables, text[:, :4], model.cache(4, 8), method="decode")
        return logits, model.apply(variables, text[:, 4:5], cache, method="decode")[0]

    rules = model.layout.rules
    inputs = (shard(variables, mesh, rules), batch_sharding(mesh))
    split = jit(decode, in_shardings=inputs, out_shardings=replicated(mesh), mesh=mesh)
    found, expected = split(variables, text), decode(variables, text)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), found, expected
    )


@pytest.mark.slow
def test_stages_hand_back_maps_and_read_the_memory_and_the_mask_of_their_rows():
    config = Transformer(layers=4, heads=2, width=8)
    rows, stack = 16, Stack(config)
    x, memory = arrays((rows, T, 8), (rows, S, 8))
    lengths_B = np.arange(rows) % T + 1
    keys_BxS = np.arange(T) < lengths_B[:, None]
    variables = noisy(stack, x, Mask(), memory_BxSxD=memory)

    def run(variables, x, memory, keys_BxS):
        mask = Mask(keys_BxS=keys_BxS)
        return stack.apply(variables, x, mask, memory_BxSxD=memory, maps=True)

    mesh = make_mesh(Mesh(data=2, pipeline=4))
    split = jit(
        run,
        in_shardings=(replicated(mesh), *[batch_sharding(mesh)] * 3),
        out_shardings=replicated(mesh),
        mesh=mesh,
    )
    found = split(variables, x, memory, keys_BxS)
    expected = jax.jit(run)(variables, x, memory, keys_BxS)
    assert expected.cross_maps_BxHxTxS.shape == (4, rows, 2, T, S)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, expected
    )


def test_a_cache_and_stages_do_not_go_together():
    model, mesh = STYLES["llama"], make_mesh(Mesh(data=1, pipeline=3), jax.devices()[:3])
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    def decode(variables):
        return model.apply(variables, tokens(), model.cache(B, 16), method="decode")

    whole = replicated(mesh)
    split = jit(decode, in_shardings=(whole,), out_shardings=whole, mesh=mesh)
    with pytest.raises(MeshError, match="^mesh.pipeline=3 given, but a cache needs 1"):
        split(variables)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3, "width": 16}, "heads: 3 does not divide width 16"),
        ({"heads": 4, "width": 20, "theta": 1e4}, "theta: turns pairs of a head's 5 numbers"),
        ({"kv_heads": 3}, "kv_heads: 3 does not divide heads 4"),
        ({"theta": 0.0}, "Transformer.theta: 0.0 given"),
        ({"mlp": "gelo"}, "Transformer.mlp: 'gelo' given; allowed: 'gelu'"),
        ({"norm_position": "mid"}, "Transformer.norm_position: 'mid' given; allowed: 'pre'"),
        ({"layers": 0}, "Transformer.layers: 0 given"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ConfigError, match=message):
        Transformer(**fields)


def test_more_errors():
    with pytest.raises(ConfigError, match="has a field 'layer'. Did you mean 'layers'"):
        families.llama(layer=2)
    with pytest.raises(ConfigError, match="cache: 25 positions where context is 24"):
        STYLES["gpt2"].cache(B, 25)
    with pytest.raises(ConfigError, match="GPT.logit_softcap: 0.0 given"):
        GPT(vocabulary=V, logit_softcap=0.0)
    assert dataclasses.is_dataclass(STYLES["llama"].transformer)


def test_a_memory_is_given_as_often_as_the_parameters_were_made_for_it():
    config, x_BxTxD = Transformer(layers=1, heads=2, width=8), jnp.ones((1, 3, 8))
    block, mask = Block(config), Mask(causal=True)
    memory = {"memory_BxSxD": x_BxTxD}
    plain = jax.eval_shape(block.init, jax.random.key(0), x_BxTxD, mask)
    cross = jax.eval_shape(block.init, jax.random.key(0), x_BxTxD, mask, **memory)
    with pytest.raises(ConfigError, match="Block: no memory given; .* made with one"):
        jax.eval_shape(block.apply, cross, x_BxTxD, mask)
    with pytest.raises(ConfigError, match="Block: a memory given; .* made with none"):
        jax.eval_shape(block.apply, plain, x_BxTxD, mask, **memory)
