"""Published architectures against `transformers`: logits, and round trips to the bit."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lsm.interop import open_model
from lsm.interop.export import exported
from lsm.models import GPT, Sequences
from lsm.models.bert import BERT
from lsm.params import flat, nested
from lsm.run.weights import FileWeights, NamedWeights

torch = pytest.importorskip("torch", reason="PyTorch runs the reference")
transformers = pytest.importorskip("transformers", reason="Hugging Face is the reference")

V, T = 23, 12
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 6}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
}
GEMMA = GROUPED | {"query_pre_attn_scalar": 10, "sliding_window": 4}
VIT = {k: SIZES[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
VIT |= {"intermediate_size": 24, "image_size": 8, "patch_size": 4, "num_labels": 3}
ENCODER = SIZES | {"num_labels": 3}

CASES = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4}),
    "gpt2-untied": (
        "GPT2LMHeadModel",
        {"vocab_size": V, "n_embd": 16, "n_layer": 1, "n_head": 4, "tie_word_embeddings": False},
    ),
    "llama": ("LlamaForCausalLM", GROUPED),
    "llama-tied": ("LlamaForCausalLM", SIZES | {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", GROUPED | {"attention_bias": True}),
    "llama-3.1": ("LlamaForCausalLM", GROUPED | {"rope_parameters": LLAMA3}),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", SIZES | {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA | {"final_logit_softcapping": 3.0}),
    "gemma3": (
        "Gemma3ForCausalLM",
        GEMMA | {"num_hidden_layers": 7, "rope_parameters": GEMMA3},
    ),
    "gemma3-global": (
        "Gemma3ForCausalLM",
        GEMMA | {"layer_types": ["full_attention"] * 2, "rope_parameters": GEMMA3},
    ),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}),
    "bert": ("BertModel", SIZES),
    "bert-classes": ("BertForSequenceClassification", ENCODER),
    "bert-masked": ("BertForMaskedLM", SIZES),
    "bert-masked-relu": ("BertForMaskedLM", SIZES | {"hidden_act": "relu"}),
    "bert-tokens": ("BertForTokenClassification", ENCODER),
    "vit": ("ViTForImageClassification", VIT),
    "resnet-basic": (
        "ResNetForImageClassification",
        {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 2], "layer_type": "basic"},
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 4, "hidden_sizes": [16, 32], "depths": [1, 2]},
    ),
}


def drawn(name, folder, dtype="float32"):
    """Returns a model of random weights, saved in `folder`."""
    kind, options = CASES[name]
    cls = getattr(transformers, kind)
    config = cls.config_class(**options)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = cls(config).eval()
    buffers = [pair for pair in model.named_buffers() if "running" in pair[0]]
    for key, x in [*model.named_parameters(), *buffers]:
        x.data.normal_(std=0.4)
        if key.endswith("running_var"):
            x.data.abs_().add_(0.5)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return model


def inputs(model):
    random = np.random.default_rng(0)
    tokens = random.integers(0, V, (2, T)).astype(np.int32)
    inner = getattr(model, "encoder", model)
    if isinstance(model, GPT):
        return tokens
    if isinstance(inner, BERT):
        return Sequences(tokens, np.array([T, 5], np.int32), (tokens % 2).astype(np.int32))
    side = 8 if hasattr(model, "transformer") else 32
    return random.normal(size=(2, side, side, 3)).astype(np.float32)


def said(reference, given):
    with torch.no_grad():
        if isinstance(given, Sequences):
            mask = np.arange(T) < given.lengths_B[:, None]
            y = reference(
                torch.tensor(given.tokens_BxT).long(),
                attention_mask=torch.tensor(mask),
                token_type_ids=torch.tensor(given.types_BxT).long(),
            )
        elif given.ndim == 4:
            y = reference(torch.tensor(given.transpose(0, 3, 1, 2)))
        else:
            y = reference(torch.tensor(given).long())
    return (y["logits"] if "logits" in y else y["last_hidden_state"]).numpy()


def variables(published):
    """Returns the variables of an opened model, on one device."""
    here = flat(jax.eval_shape(published.model.init, jax.random.key(0), inputs(published.model)))
    weights = NamedWeights(FileWeights(published.tensors, published.path), published.names, here)
    assert weights.spec.keys() == here.keys()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return here, nested(weights.read(dict.fromkeys(here, one)))


@pytest.mark.parametrize("name", CASES)
def test_logits_and_round_trips(name, tmp_path):
    reference = drawn(name, tmp_path / "there")
    published = open_model(tmp_path / "there")
    here, arrays = variables(published)
    given = inputs(published.model)
    ours, theirs = jax.jit(published.model.apply)(arrays, given), said(reference, given)
    real = np.ones(theirs.shape[:2], bool)
    if isinstance(given, Sequences) and theirs.ndim == 3:
        real = np.arange(T) < given.lengths_B[:, None]
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], atol=1e-4)

    leaves = flat(arrays)
    out = tmp_path / "back"
    dtypes = {name: str(spec.dtype) for name, spec in published.tensors.specs.items()}
    kept = {"config": published.config, "dtypes": dtypes}
    exported(published.model, here, lambda path: np.asarray(leaves[path]), out, origin=kept)
    assert_same_files(tmp_path / "there", out)

    # Of a model whose config is not known, such as one trained here.
    exported(published.model, here, lambda path: np.asarray(leaves[path]), tmp_path / "anew")
    loaded = type(reference).from_pretrained(tmp_path / "anew", attn_implementation="eager")
    np.testing.assert_allclose(said(loaded.eval(), given), theirs, atol=1e-5)


def assert_same_files(there, back):
    old, new = (load_file(folder / "model.safetensors") for folder in (there, back))
    spare = {name for name in old if name.endswith("num_batches_tracked") or "pooler" in name}
    assert old.keys() - spare == new.keys() - spare
    for name, x in new.items():
        assert x.dtype == old[name].dtype
        assert x.tobytes() == old[name].tobytes(), name
    configs = (json.loads((folder / "config.json").read_text()) for folder in (there, back))
    first, second = configs
    assert first == second
