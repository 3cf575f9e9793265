"""Folders of published models: what is refused, and in which words."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lsm import Start
from lsm.config import schema
from lsm.errors import CheckpointError, ConfigError
from lsm.interop import open_model, open_tensors
from lsm.interop.decoders import FAMILIES
from lsm.interop.export import exported, family_for
from lsm.interop.family import filled
from lsm.models import MLP, Classifier, ResNet, Sequences, families
from lsm.models.experts import Experts
from lsm.models.rotary import LinearRescale, Llama3Rescale
from lsm.params import flat
from lsm.run.weights import FileWeights, NamedWeights

SMALL = {"vocabulary": 20, "layers": 4, "heads": 4, "width": 16, "hidden": 24, "context": 32}
GROUPED = SMALL | {"kv_heads": 2}
MODELS = {
    "gpt2": families.gpt2(**SMALL, dropout=0.1),
    "llama": families.llama(**GROUPED),
    "llama-3.1": families.llama(**GROUPED, rescale=Llama3Rescale(factor=8.0)),
    "llama-linear": families.llama(**GROUPED, rescale=LinearRescale(factor=2.0), bias="attention"),
    "mistral": families.llama(**GROUPED, window=8),
    "qwen2": families.qwen2(**GROUPED),
    "qwen2-window": families.qwen2(**GROUPED, window=8),
    "qwen3": families.qwen3(**GROUPED),
    "gemma2": families.gemma2(**GROUPED, window=8, query_width=9),
    "gemma3": families.gemma3(
        **GROUPED, window=8, global_every=2, global_rescale=LinearRescale(factor=8.0)
    ),
    "mixtral": families.mixtral(**GROUPED, experts=Experts(count=4, top_k=2)),
    "bert": Classifier(families.bert_base(**SMALL), outputs=3),
    "vit": families.vit_ti(outputs=3, layers=2, heads=2, width=8, hidden=12, stem=4),
    "resnet": ResNet(depths=(1, 1), width=4, bottleneck=True, outputs=3),
}
ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "llama-3.1": "LlamaForCausalLM",
    "llama-linear": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2-window": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "bert": "BertForSequenceClassification",
    "vit": "ViTForImageClassification",
    "resnet": "ResNetForImageClassification",
}


def family(name):
    from lsm.interop.opened import families as tables

    return next(one for one in tables() if one.is_of(MODELS[name]))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_what_its_config_says(name):
    model = MODELS[name]
    config = json.loads(json.dumps(family(name).write(model)))
    assert config["architectures"] == [ARCHITECTURES[name]]
    settings = filled(family(name).read(config))
    apart = {key for key, value in filled(model).items() if settings[key] != value}
    assert apart <= {"initializer", "zero_init", "kernel_init"}
    # The word itself, not what was read of it again.
    assert config["model_type"] == family(name).model_type


def llama(**changes):
    config = next(x for x in FAMILIES if x.model_type == "llama").write(MODELS["llama"])
    return {key: value for key, value in (config | changes).items() if value != "(absent)"}


def written(folder, config):
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    if not (folder / "model.safetensors").exists():
        save_file({"x": np.zeros(1, "f4")}, folder / "model.safetensors")
    return folder


def test_the_window_of_a_qwen_that_has_one_is_published_without_its_width():
    config = next(x for x in FAMILIES if x.model_type == "qwen2").write(MODELS["qwen2-window"])
    del config["sliding_window"]
    assert family("qwen2").read(config).transformer.window == 4096
    assert family("qwen2").read(config | {"sliding_window": 8}).transformer.window == 8


YARN = {"rope_type": "yarn", "factor": 4.0}
DYNAMIC = {"type": "dynamic", "factor": 2.0}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": "(absent)"}
QWEN |= {"attention_bias": "(absent)", "mlp_bias": "(absent)"}
SOME = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["LamaForCausalLM"]}, r"'LamaForCausalLM'\] given.*Did you mean 'Llama"),
        ({"architectures": "(absent)", "model_type": "lama"}, "model_type: 'lama'.*mean 'llama'"),
        ({"rope_scaling": YARN}, "rope_scaling.rope_type: 'yarn' given; allowed: default, linear"),
        ({"rope_scaling": DYNAMIC}, "rope_scaling.rope_type: 'dynamic' given"),
        ({"rope_scaling": {"type": "linear"}}, "has no 'factor'"),
        ({"rope_scaling": {"rope_type": "default", "mscale": 2}}, "rope_scaling.mscale: 2 given"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5 given"),
        (
            {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": YARN},
            "rope_scaling: .* given; allowed: null, as rope_parameters are there",
        ),
        ({"rope_interleaved": True}, "rope_interleaved: True given; allowed: False"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' given; allowed: 'silu', 'swish'"),
        ({"mlp_bias": True}, "mlp_bias: True given; allowed: false, or attention_bias true"),
        ({"attention_dropout": 0.1}, "attention_dropout: 0.1 given; allowed: 0.0"),
        ({"hidden_size": "16"}, "hidden_size: '16' given; allowed: a value of type int"),
        ({"hidden_size": "(absent)"}, "has no 'hidden_size'"),
        ({"hiden_size": 16}, "hiden_size: is not known of Llama.*Did you mean 'hidden_size'"),
        ({"residual_multiplier": 2.0}, "residual_multiplier: is not known of LlamaForCausalLM"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: .* given; allowed: None"),
        ({"num_key_value_heads": 3}, "kv_heads: 3 does not divide heads 4"),
        (QWEN | SOME, "max_window_layers: 2 given; allowed: windows everywhere, or every n-th"),
        (QWEN | {"layer_types": ["full_attention"]}, "layer_types: .* given; allowed: full_att"),
    ],
)
def test_what_is_not_expressed_is_refused_by_its_key(changes, told, tmp_path):
    with pytest.raises(ConfigError, match=told) as error:
        open_model(written(tmp_path, llama(**changes)))
    assert "\n" not in str(error.value)


def test_classes_of_which_several_hold_and_numbers_are_refused():
    config = family("bert").write(MODELS["bert"])
    for kind in (None, "single_label_classification"):
        assert family("bert").read(config | {"problem_type": kind}).outputs == 3
    for kind in ("multi_label_classification", "regression"):
        with pytest.raises(ConfigError, match=f"problem_type: '{kind}' given; allowed: None, 'si"):
            family("bert").read(config | {"problem_type": kind})


def test_a_head_of_gpt_2_is_that_of_a_linear_layer(tmp_path):
    model = families.gpt2(**SMALL, tied=False)
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32)))
    exported(model, shapes, lambda path: np.zeros(shapes[path].shape, "f4"), tmp_path / "a")
    tensors = load_file(tmp_path / "a/model.safetensors")
    assert tensors["lm_head.weight"].shape == (20, 16)
    assert tensors["transformer.h.0.mlp.c_fc.weight"].shape == (16, 24)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{", "config.json is damaged: Expecting property name"),
        ("[" * 100_000, "config.json is damaged: brackets within brackets"),
        ("[1]", "config.json is damaged: it is no object"),
    ],
)
def test_damaged_json_is_told(config, told, tmp_path):
    with pytest.raises(CheckpointError, match=told):
        open_model(written(tmp_path, config))


def test_a_damaged_tokenizer_config_and_a_folder_of_something_else(tmp_path):
    written(tmp_path, llama())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is damaged"):
        open_model(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"other has no config\.json; it has notes\.txt"):
        open_model(tmp_path / "other")


@pytest.fixture(scope="module")
def arrays():
    model = MODELS["llama"]
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32))
    random = np.random.default_rng(0)
    return {path: random.normal(size=x.shape).astype("f4") for path, x in flat(shapes).items()}


def test_several_files_with_an_index(arrays, tmp_path):
    exported(MODELS["llama"], arrays, arrays.get, tmp_path / "one")
    exported(MODELS["llama"], arrays, arrays.get, tmp_path / "many", shard=4000)
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    one, many = (open_tensors(tmp_path / name) for name in ("one", "many"))
    assert one.specs == many.specs
    for name in one.specs:
        np.testing.assert_array_equal(one.read(name), many.read(name))
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in arrays.values())
    (tmp_path / "many" / names[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"names '{names[1]}', and there is no such file"):
        open_model(tmp_path / "many")
    file = tmp_path / "one/model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        open_model(tmp_path / "one")


def test_an_export_says_what_no_architecture_has(arrays, tmp_path):
    model = families.llama(**GROUPED, norm="layer")
    with pytest.raises(ConfigError, match=r"no published architecture.*Llama.*norm: 'layer' given"):
        exported(model, arrays, arrays.get, tmp_path / "a")
    with pytest.raises(ConfigError, match="no published architecture has a MLP like this"):
        exported(MLP(), {}, arrays.get, tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/x").write_text("")
    with pytest.raises(ConfigError, match="--out: .* is there already"):
        exported(MODELS["llama"], arrays, arrays.get, tmp_path / "c")


def test_what_an_export_would_alter_is_refused(arrays, tmp_path):
    model = families.mixtral(**GROUPED, experts=Experts(count=4, top_k=2, capacity=1.0))
    with pytest.raises(ConfigError, match=r"MixtralForCausalLM: model\.experts: .*capacity=1\.0"):
        exported(model, arrays, arrays.get, tmp_path / "a")
    model = families.mixtral(**GROUPED, experts=Experts(count=4, top_k=1))
    with pytest.raises(ConfigError, match=r"model\.experts\.top_k: 1 given; allowed: 2 or more"):
        exported(model, arrays, arrays.get, tmp_path / "a")
    # Dropout, the balance of experts and rematerialisation are of training alone.
    tuned = Experts(count=4, top_k=2, balance=0.5)
    found = family_for(families.mixtral(**GROUPED, experts=tuned, dropout=0.1, remat="full"))
    assert found.architecture == "MixtralForCausalLM"


def test_names_are_kept_in_the_config_of_a_run(arrays, tmp_path):
    exported(MODELS["llama"], arrays, arrays.get, tmp_path / "there")
    start = Start(path="there", names=open_model(tmp_path / "there").names)
    again = json.loads(json.dumps(schema.to_json(start)))
    assert schema.from_json(again, Start) == start


@pytest.mark.parametrize(
    ("name", "spelled", "spare"),
    [
        ("gpt2", (r"^transformer\.", ""), ("h.0.attn.bias", "h.0.attn.masked_bias")),
        ("gpt2", ("^$", ""), ("lm_head.weight",)),
        ("bert", (r"LayerNorm\.weight$", "LayerNorm.gamma"), ("bert.embeddings.position_ids",)),
    ],
)
def test_older_files_are_spelled_otherwise(name, spelled, spare, tmp_path):
    model = MODELS[name]
    given = np.zeros((1, 2), np.int32)
    given = Sequences(given, np.ones(1, np.int32)) if name == "bert" else given
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), given))
    exported(model, shapes, lambda path: np.zeros(shapes[path].shape, "f4"), tmp_path / "a")
    tensors = load_file(tmp_path / "a/model.safetensors")
    tensors = {re.sub(*spelled, name): x for name, x in tensors.items()}
    if name == "bert":
        tensors = {re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", k): x for k, x in tensors.items()}
    tensors |= {name: np.zeros(3, "f4") for name in spare}
    save_file(tensors, tmp_path / "a/model.safetensors")
    published = open_model(tmp_path / "a")
    weights = FileWeights(published.tensors, published.path)
    found = NamedWeights(weights, published.names, shapes).spec
    assert {path: x.shape for path, x in found.items()} == {k: x.shape for k, x in shapes.items()}


def test_every_family_refuses_what_it_does_not_know():
    from lsm.interop.opened import families as tables

    for one in tables():
        with pytest.raises(ConfigError, match=re.escape(f"not known of {one.architecture}")):
            one.read({"alibi": True})
