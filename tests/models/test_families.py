"""The families of decoders against Hugging Face's implementations, with the same random weights."""

import jax
import numpy as np
import pytest

from lsm.models import families
from lsm.models.experts import Experts

SIZES = {"vocabulary": 97, "width": 32, "hidden": 48, "heads": 4, "kv_heads": 2, "context": 64}
HF_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def hugging_face(name, **options):
    """Returns a model with random weights in double the usual deviation, and its weights by name."""
    torch = pytest.importorskip("torch", reason="PyTorch runs the reference")
    transformers = pytest.importorskip("transformers", reason="Hugging Face is the reference")
    config = getattr(transformers, name + ("TextConfig" if name == "Gemma3" else "Config"))
    model_class = name + ("LMHeadModel" if name == "GPT2" else "ForCausalLM")
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(
        config(**options, attn_implementation="eager", pad_token_id=0)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {k: v.numpy().astype(np.float32) for k, v in model.state_dict().items()}
    return model, weights


def grouped(parts, groups):
    """Queries, keys and values [(..., heads x K)] as the columns of one kernel, group by group."""
    by_group = [x.reshape(*x.shape[:-1], groups, -1) for x in parts]
    return np.concatenate(by_group, axis=-1).reshape(*parts[0].shape[:-1], -1)


def llama_block(w, prefix, groups, gemma):
    """Converts a block; one of Gemma has four norms."""

    def linear(name):
        return w[f"{prefix}{name}.weight"].T

    def norm(name):
        return {"scale": w[f"{prefix}{name}.weight"]}

    attention = [f"self_attn.{x}_proj" for x in "qkv"]
    block = {
        "qkv": {"kernel": grouped([linear(name) for name in attention], groups)},
        "out": {"kernel": linear("self_attn.o_proj")},
        "norm_1": norm("input_layernorm"),
        "norm_2": norm("pre_feedforward_layernorm" if gemma else "post_attention_layernorm"),
    }
    if gemma:
        block["post_norm_1"] = norm("post_attention_layernorm")
        block["post_norm_2"] = norm("post_feedforward_layernorm")
    if f"{prefix}self_attn.q_proj.bias" in w:
        biases = [w[f"{prefix}{name}.bias"] for name in attention]
        block["qkv"]["bias"] = grouped(biases, groups)
    if f"{prefix}self_attn.q_norm.weight" in w:
        block |= {f"{x}_norm": norm(f"self_attn.{x}_norm") for x in "qk"}
    if f"{prefix}mlp.experts.down_proj" in w:
        gate_up = w[f"{prefix}mlp.experts.gate_up_proj"].swapaxes(1, 2)
        gate, up = np.split(gate_up, 2, axis=-1)
        down = w[f"{prefix}mlp.experts.down_proj"].swapaxes(1, 2)
        experts = {"gate": gate, "up": up, "down": down}
        block |= {f"experts_{name}": {"kernel": kernel} for name, kernel in experts.items()}
        block["router"] = {"kernel": linear("mlp.gate")}
    else:
        block |= {name: {"kernel": linear(f"mlp.{name}_proj")} for name in ("gate", "up", "down")}
    return block


def llama_params(w, layers, groups=2, gemma=False):
    blocks = [llama_block(w, f"model.layers.{i}.", groups, gemma) for i in range(layers)]
    params = {
        "tokens": {"embedding": w["model.embed_tokens.weight"]},
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "norm_f": {"scale": w["model.norm.weight"]},
    }
    return params


def gpt2_params(w, layers):
    def dense(name):
        return {"kernel": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}

    def norm(name):
        return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}

    def block(h):
        qkv = {
            k: grouped(np.split(v, 3, -1), groups=4) for k, v in dense(f"{h}attn.c_attn").items()
        }
        return {
            "qkv": qkv,
            "out": dense(f"{h}attn.c_proj"),
            "up": dense(f"{h}mlp.c_fc"),
            "down": dense(f"{h}mlp.c_proj"),
            "norm_1": norm(f"{h}ln_1"),
            "norm_2": norm(f"{h}ln_2"),
        }

    blocks = [block(f"transformer.h.{i}.") for i in range(layers)]
    return {
        "tokens": {"embedding": w["transformer.wte.weight"]},
        "positions": w["transformer.wpe.weight"],
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "norm_f": norm("transformer.ln_f"),
    }


def assert_same_logits(model, params, reference):
    import torch

    tokens_BxT = np.random.default_rng(0).integers(1, 97, (2, 12))
    with torch.no_grad():
        expected = reference(torch.tensor(tokens_BxT)).logits.numpy()
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens_BxT)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    logits = jax.jit(model.apply)({"params": params}, tokens_BxT)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=2e-4)


def test_gpt2():
    reference, w = hugging_face(
        "GPT2", vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64
    )
    model = families.gpt2(vocabulary=97, width=32, layers=2, heads=4, context=64)
    assert_same_logits(model, gpt2_params(w, 2), reference)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mixtral"])
def test_llama_and_its_kin(name):
    special = {
        "Llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "Qwen2": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
        },
        "Qwen3": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
            "head_dim": 16,
        },
        "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    }
    epsilon = 1e-6 if name.startswith("Qwen") else 1e-5
    options = HF_SIZES | special[name] | {"num_hidden_layers": 2, "rms_norm_eps": epsilon}
    reference, w = hugging_face(name, **options)
    extra = {
        "Qwen3": {"head_width": 16},
        "Mixtral": {"experts": Experts(count=4, top_k=2)},
    }
    model = getattr(families, name.lower())(**SIZES, layers=2, **extra.get(name, {}))
    params = llama_params(w, 2)
    if not model.tied:
        params["head"] = {"kernel": w["lm_head.weight"].T}
    assert_same_logits(model, params, reference)


@pytest.mark.parametrize(("name", "layers"), [("Gemma2", 2), ("Gemma3", 6)])
def test_gemma_with_local_and_global_layers(name, layers):
    options = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
    reference, w = hugging_face(name, **HF_SIZES, **options, num_hidden_layers=layers)
    model = getattr(families, name.lower())(**SIZES, layers=layers, head_width=8, window=4)
    assert_same_logits(model, llama_params(w, layers, gemma=True), reference)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (families.gpt2(), 124.4),  # Radford et al.; with 50,257 tokens and learned positions
        (families.llama(), 8030),  # Llama 3 8B
        (families.mixtral(), 46703),  # 46.7 B
        (families.qwen2(), 494.0),  # 0.49 B
        (families.qwen3(), 596.0),  # 0.6 B
        (families.gemma2(), 2614),  # 2.6 B
        (families.gemma3(), 1000),  # 1 B
    ],
    ids=["gpt2", "llama", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3"],
)
def test_defaults_have_the_published_number_of_parameters(model, millions):
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), int))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert count / 1e6 == pytest.approx(millions, rel=5e-4)
