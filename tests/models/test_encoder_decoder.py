"""The encoder-decoder: against PyTorch's, cached, padded, and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.mesh import Mesh, batch_sharding, jit, make_mesh, replicated, shard
from lsm.models import EncoderDecoder, Mask, Sequences, Transformer
from lsm.models.embedding import sinusoids
from tests.models.test_arrangements import norm, randomly, stacked, torch_block

B, S, T, V = 4, 7, 6, 40
CONFIG = Transformer(layers=2, heads=4, width=32, hidden=48, bias=True, mlp="relu")
MODEL = EncoderDecoder(vocabulary=V, encoder=CONFIG, decoder=CONFIG, context=16)


def texts(seed=0):
    random = np.random.default_rng(seed)
    source, target = (random.integers(0, V, (B, n)).astype(np.int32) for n in (S, T))
    return Sequences(jnp.asarray(source), jnp.array([S, 3, 1, 5])), jnp.asarray(target)


@functools.cache
def made(model=MODEL):
    return jax.jit(model.init)(jax.random.key(0), texts())


@functools.cache
def applied(model=MODEL, method=None):
    return jax.jit(functools.partial(model.apply, method=method))


def test_waves_are_the_papers():
    # arXiv:1706.03762, section 3.5: sin(pos / 10000^(2i / d)) at 2i, cos at 2i + 1.
    found = sinusoids(5, 6)
    assert found[3, 2] == pytest.approx(np.sin(3 / 10000 ** (2 / 6)))
    assert found[3, 5] == pytest.approx(np.cos(3 / 10000 ** (4 / 6)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_logits_are_pytorchs(norm_position):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    pre, (d, h, n) = norm_position == "pre", (CONFIG.width, CONFIG.heads, CONFIG.layers)
    sizes = {"batch_first": True, "norm_first": pre, "dropout": 0.0}
    parts = torch.nn.ModuleDict({"tokens": torch.nn.Embedding(V, d)})
    for side in ("encoder", "decoder"):
        layer = getattr(torch.nn, f"Transformer{side.title()}Layer")(d, h, 48, **sizes)
        last = torch.nn.LayerNorm(d) if pre else None
        parts[side] = getattr(torch.nn, f"Transformer{side.title()}")(layer, n, last)
    w, (source, target) = randomly(parts.eval()), texts()
    padding = torch.tensor(~np.asarray(source.real_BxT))

    def embedded(tokens):
        tokens = torch.tensor(np.asarray(tokens))
        waves = torch.tensor(sinusoids(tokens.shape[1], d))
        return parts["tokens"](tokens) * d**0.5 + waves

    with torch.no_grad():
        memory = parts["encoder"](embedded(source.tokens_BxT), src_key_padding_mask=padding)
        hidden = parts["decoder"](
            embedded(target),
            memory,
            tgt_mask=torch.tensor(~np.tri(T, dtype=bool)),
            memory_key_padding_mask=padding,
        )
        expected = (hidden @ parts["tokens"].weight.T).numpy()
    params = {"tokens": {"embedding": w["tokens.weight"]}}
    for side, name in (("encoder", "encoding"), ("decoder", "decoding")):
        layers = [torch_block(w, f"{side}.layers.{i}", side == "decoder") for i in range(n)]
        params[name] = stacked(layers) | ({"norm_f": norm(w, f"{side}.norm")} if pre else {})
    config = CONFIG.__class__(**{**vars(CONFIG), "epsilon": 1e-5, "norm_position": norm_position})
    model = MODEL.clone(encoder=config, decoder=config)
    found = jax.jit(model.apply)({"params": params}, texts())
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


STYLES = {
    "waves": MODEL,
    "learned, untied": MODEL.clone(tied=False, positions="learned"),
    "rotary": MODEL.clone(
        encoder=Transformer(layers=1, heads=4, width=32, theta=1e4),
        decoder=Transformer(layers=2, heads=4, width=32, theta=1e4, kv_heads=2),
    ),
}


@pytest.mark.parametrize("model", STYLES.values(), ids=STYLES)
def test_cached_logits_are_those_of_the_whole(model):
    variables, (source, target) = made(model), texts()
    whole = applied(model)(variables, (source, target))
    memory = applied(model, "encode")(variables, source)
    mask, cache = Mask(keys_BxS=source.real_BxT), model.cache(B, T + 2)
    for t in range(T):
        logits, cache = applied(model, "decode")(
            variables, target[:, t : t + 1], cache, mask, memory
        )
        memory = None  # it is in the cache
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=1e-5)


def test_branches_share_the_memory_and_go_on_from_their_parents():
    variables, (source, target) = made(), texts()
    memory = applied(method="encode")(variables, source)
    mask, decode = Mask(keys_BxS=source.real_BxT), applied(method="decode")
    _, cache = decode(variables, target[:, :2], MODEL.cache(B, 5), mask, memory)
    n, random = 3, np.random.default_rng(1)
    text = np.repeat(np.asarray(target[:, :2])[:, None], n, 1)  # (B, N, 2)
    parents = np.zeros((B, n), int)
    for _ in range(3):
        cache = cache.branched(jnp.asarray(parents))
        text = np.take_along_axis(text, parents[..., None], 1)
        new = random.integers(0, V, (B, n, 1))
        text = np.concatenate([text, new], -1)
        rows = jnp.asarray(new.reshape(B * n, 1))
        logits, cache = decode(variables, rows, cache, mask)
        assert cache[0].memory[0].shape[0] == B
        each = Sequences(*(np.repeat(x, n, 0) for x in source[:2]))
        last = text.shape[-1] - 1
        padded = np.pad(text.reshape(B * n, -1), ((0, 0), (0, 4 - last)))  # one shape to compile
        whole = applied()(variables, (each, jnp.asarray(padded)))
        np.testing.assert_allclose(logits[:, 0], whole[:, last], atol=1e-5)
        parents = random.integers(0, n, (B, n))


def test_what_pads_a_source_alters_nothing():
    variables, (source, target) = made(), texts()
    other = source._replace(tokens_BxT=jnp.where(source.real_BxT, source.tokens_BxT, 9))
    longer = source._replace(tokens_BxT=jnp.pad(source.tokens_BxT, ((0, 0), (0, 4))))
    expected = applied()(variables, (source, target))
    assert not (other.tokens_BxT == source.tokens_BxT).all()
    np.testing.assert_array_equal(applied()(variables, (other, target)), expected)
    found = applied()(variables, (longer, target))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_target_sees_what_comes_after_it():
    variables, (source, target) = made(), texts()
    changed = applied()(variables, (source, target.at[:, 4].add(1)))
    expected = applied()(variables, (source, target))
    np.testing.assert_array_equal(changed[:, :4], expected[:, :4])
    assert (changed[:, 4] != expected[:, 4]).any()


def test_attention_is_over_the_real_source():
    source, target = texts()
    maps = applied(method="attention")(made(), (source, target))
    assert maps.shape == (B, CONFIG.heads, T, S) and maps.dtype == jnp.float32
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert not maps[1, :, :, 3:].any()


def test_a_tied_table_is_the_only_one():
    assert made()["params"].keys() == {"tokens", "encoding", "decoding"}
    assert made()["params"]["tokens"]["embedding"].std() == pytest.approx(32**-0.5, rel=0.05)
    untied = made(STYLES["learned, untied"])["params"]
    assert untied.keys() == {"source", "target", "head", "encoding", "decoding"}
    assert untied["decoding"]["positions"].shape == (16, 32)


@functools.cache
def on_one_device():
    # Lengths that the axes of a mesh divide.
    random = np.random.default_rng(3)
    source, target = (random.integers(0, V, (8, 8)).astype(np.int32) for _ in range(2))
    given = Sequences(source, random.integers(1, 9, 8).astype(np.int32)), target
    variables = made()
    return variables, given, jax.jit(jax.value_and_grad(squares))(variables, given)


def squares(variables, given):
    return jnp.square(MODEL.apply(variables, given)).mean()


@pytest.mark.parametrize("axes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "sequence": 2}])
def test_several_devices_are_one(axes):
    variables, given, expected = on_one_device()
    count = int(np.prod([*axes.values()]))
    mesh = make_mesh(Mesh(**{"data": 1, **axes}), jax.devices()[:count])
    placed = shard(variables, mesh, MODEL.layout.rules)
    rows = jax.tree.map(lambda _: batch_sharding(mesh), given)
    step = jit(
        jax.value_and_grad(squares),
        in_shardings=(placed, rows),
        out_shardings=(replicated(mesh), placed),
        mesh=mesh,
    )
    found = step(jax.device_put(variables, placed), jax.device_put(given, rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_what_cannot_be_is_told():
    with pytest.raises(ConfigError, match="width 16 where the encoder has 32"):
        MODEL.clone(decoder=Transformer(width=16))
    with pytest.raises(ConfigError, match="17 positions where context is 16"):
        MODEL.cache(1, 17)
    source, target = texts()
    with pytest.raises(ConfigError, match="context: 16 positions at the most; 18 tokens"):
        MODEL.apply(made(), (source, jnp.tile(target, 3)))
