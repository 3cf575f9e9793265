"""An encoder and an encoder-decoder made of the public parts, against Hugging Face and PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.models import Mask, Stack, Transformer

B, T, S, V, D, H, L = 2, 6, 9, 37, 24, 4, 2


class Encoder(nn.Module):
    """BERT without its pooler (arXiv:1810.04805): embeddings, a norm, and post-norm blocks."""

    config: Transformer

    @nn.compact
    def __call__(self, tokens_BxT, kinds_BxT, keys_BxS):
        d = self.config.width
        x_BxTxD = nn.Embed(V, d, name="tokens")(tokens_BxT)
        x_BxTxD += nn.Embed(2, d, name="kinds")(kinds_BxT)
        x_BxTxD += nn.Embed(64, d, name="positions")(jnp.arange(tokens_BxT.shape[1]))
        x_BxTxD = self.config.normalise("norm")(x_BxTxD)
        stack = Stack(self.config, name="stack")
        return stack(x_BxTxD, Mask(keys_BxS=keys_BxS), maps=True)


class Translator(nn.Module):
    """The Transformer of arXiv:1706.03762 between its embeddings and its output layer."""

    config: Transformer

    def setup(self):
        self.encoder, self.decoder = Stack(self.config), Stack(self.config)
        self.norm_encoder, self.norm_decoder = self.config.normalise(), self.config.normalise()

    def __call__(self, source_BxSxD, target_BxTxD, keys_BxS):
        padding = Mask(keys_BxS=keys_BxS)
        memory_BxSxD = self.norm_encoder(self.encoder(source_BxSxD, padding).x_BxTxD)
        decoded = self.decoder(
            target_BxTxD, Mask(causal=True), memory_BxSxD=memory_BxSxD, memory_mask=padding
        )
        return self.norm_decoder(decoded.x_BxTxD)


def by_head(parts):
    """Kernels (D, H x K), or biases, of queries, keys and values as one, head by head."""
    parts = [x.reshape(*x.shape[:-1], H, -1) for x in parts]
    return np.concatenate(parts, axis=-1).reshape(*parts[0].shape[:-2], -1)


def stacked(blocks):
    return {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


def randomly(module):
    """Gives a PyTorch module random weights; returns them by name."""
    import torch

    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return {k: v.numpy().astype(np.float32) for k, v in module.state_dict().items()}


def dense(w, name):
    return {"kernel": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}


def norm(w, name):
    return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def bert_block(w, p):
    qkv = [dense(w, f"{p}.attention.self.{name}") for name in ("query", "key", "value")]
    return {
        "qkv": {kind: by_head([part[kind] for part in qkv]) for kind in ("kernel", "bias")},
        "out": dense(w, f"{p}.attention.output.dense"),
        "norm_1": norm(w, f"{p}.attention.output.LayerNorm"),
        "up": dense(w, f"{p}.intermediate.dense"),
        "down": dense(w, f"{p}.output.dense"),
        "norm_2": norm(w, f"{p}.output.LayerNorm"),
    }


def test_bert_is_hugging_faces():
    torch = pytest.importorskip("torch", reason="PyTorch runs the reference")
    transformers = pytest.importorskip("transformers", reason="Hugging Face is the reference")
    sizes = {"num_hidden_layers": L, "num_attention_heads": H, "intermediate_size": 40}
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=D,
        max_position_embeddings=64,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
        **sizes,
    )
    reference = transformers.BertModel(config, add_pooling_layer=False).eval()
    w = randomly(reference)
    random = np.random.default_rng(0)
    tokens, kinds = random.integers(0, V, (B, S)), random.integers(0, 2, (B, S))
    keys = np.arange(S) < np.array([[S], [5]])
    with torch.no_grad():
        expected = reference(
            torch.tensor(tokens),
            attention_mask=torch.tensor(keys),
            token_type_ids=torch.tensor(kinds),
            output_attentions=True,
        )
    names = {"tokens": "word", "kinds": "token_type", "positions": "position"}
    params = {
        name: {"embedding": w[f"embeddings.{theirs}_embeddings.weight"]}
        for name, theirs in names.items()
    }
    params["norm"] = norm(w, "embeddings.LayerNorm")
    params["stack"] = stacked([bert_block(w, f"encoder.layer.{i}") for i in range(L)])
    ours = Transformer(
        layers=L,
        heads=H,
        width=D,
        hidden=40,
        bias=True,
        norm_position="post",
        mlp="gelu_exact",
    )
    found = jax.jit(Encoder(ours).apply)({"params": params}, tokens, kinds, keys)
    last = expected.last_hidden_state.numpy()
    assert np.ptp(last) > 1
    np.testing.assert_allclose(found.x_BxTxD, last, rtol=1e-4, atol=1e-4)
    for layer, theirs in enumerate(expected.attentions):
        np.testing.assert_allclose(found.maps_BxHxTxS[layer], theirs.numpy(), atol=1e-5)


def torch_attention(w, p):
    kernels = np.split(w[f"{p}.in_proj_weight"].T, 3, axis=1)
    biases = np.split(w[f"{p}.in_proj_bias"], 3)
    return kernels, biases, dense(w, f"{p}.out_proj")


def torch_block(w, p, cross):
    kernels, biases, out = torch_attention(w, f"{p}.self_attn")
    block = {
        "qkv": {"kernel": by_head(kernels), "bias": by_head(biases)},
        "out": out,
        "norm_1": norm(w, f"{p}.norm1"),
        "up": dense(w, f"{p}.linear1"),
        "down": dense(w, f"{p}.linear2"),
        "norm_2": norm(w, f"{p}.norm{3 if cross else 2}"),
    }
    if cross:
        kernels, biases, out = torch_attention(w, f"{p}.multihead_attn")
        block |= {
            "cross_q": {"kernel": kernels[0], "bias": biases[0]},
            "cross_kv": {"kernel": by_head(kernels[1:]), "bias": by_head(biases[1:])},
            "cross_out": out,
            "norm_cross": norm(w, f"{p}.norm2"),
        }
    return block


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_translator_is_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    reference = torch.nn.Transformer(D, H, L, L, 40, dropout=0.0, batch_first=True).eval()
    w = randomly(reference)
    random = np.random.default_rng(0)
    source, target = (random.normal(size=(B, n, D)).astype(np.float32) for n in (S, T))
    keys = np.arange(S) < np.array([[S], [5]])
    padding = torch.tensor(~keys)
    with torch.no_grad():
        expected = reference(
            torch.tensor(source),
            torch.tensor(target),
            tgt_mask=torch.tensor(~np.tri(T, dtype=bool)),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        ).numpy()
    params = {
        side: stacked([torch_block(w, f"{side}.layers.{i}", side == "decoder") for i in range(L)])
        for side in ("encoder", "decoder")
    }
    params |= {f"norm_{side}": norm(w, f"{side}.norm") for side in ("encoder", "decoder")}
    ours = Transformer(
        layers=L,
        heads=H,
        width=D,
        hidden=40,
        bias=True,
        epsilon=1e-5,
        norm_position="post",
        mlp="relu",
    )
    found = jax.jit(Translator(ours).apply)({"params": params}, source, target, keys)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
