"""BERT, ViT and ResNet as Hugging Face has them: a table for each."""

from collections.abc import Iterator, Mapping
from typing import Any

from lsm.interop.family import Family
from lsm.interop.parts import Choice, Dropout, Fixed, Labels, Same, Settings, Stages
from lsm.interop.table import Row, Table
from lsm.models import MaskedLM, ResNet, TokenClassifier, families
from lsm.models.bert import BERT, Classifier

_GELU = {
    "gelu": "gelu_exact",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh"), "gelu"),
    "relu": "relu",
}


def _both(path: str, name: str, kernel: str = "kernel") -> tuple[Row, ...]:
    """Rows of a layer with a kernel, or a norm with a scale, and a bias."""
    return (f"{path}/{kernel}", f"{name}.weight"), (f"{path}/bias", f"{name}.bias")


def _qkv(name: str) -> tuple[Row, ...]:
    return tuple(
        (f"params/blocks/qkv/{array}", tuple(f"{name}.{x}.{of}" for x in ("query", "key", "value")))
        for array, of in (("kernel", "weight"), ("bias", "bias"))
    )


_LAYER = "bert.encoder.layer.{}"
_BERT: tuple[Row, ...] = (
    ("params/tokens/embedding", "bert.embeddings.word_embeddings.weight"),
    ("params/segments/embedding", "bert.embeddings.token_type_embeddings.weight"),
    ("params/positions", "bert.embeddings.position_embeddings.weight"),
    *_both("params/norm", "bert.embeddings.LayerNorm", "scale"),
    *_qkv(f"{_LAYER}.attention.self"),
    *_both("params/blocks/out", f"{_LAYER}.attention.output.dense"),
    *_both("params/blocks/norm_1", f"{_LAYER}.attention.output.LayerNorm", "scale"),
    *_both("params/blocks/up", f"{_LAYER}.intermediate.dense"),
    *_both("params/blocks/down", f"{_LAYER}.output.dense"),
    *_both("params/blocks/norm_2", f"{_LAYER}.output.LayerNorm", "scale"),
)
_POOLER = _both("params/pooler", "bert.pooler.dense")
_CLASSES = _both("params/head", "classifier")
_HIDDEN: tuple[Row, ...] = (
    *_both("params/transform", "cls.predictions.transform.dense"),
    *_both("params/transform_norm", "cls.predictions.transform.LayerNorm", "scale"),
    ("params/output_bias", "cls.predictions.bias"),
)
_BERT_PARTS = (
    Same("vocab_size", "vocabulary", int, 30522),
    Same("hidden_size", "width", int, 768),
    Same("num_hidden_layers", "layers", int, 12),
    Same("num_attention_heads", "heads", int, 12),
    Same("intermediate_size", "hidden", int, 3072),
    Same("max_position_embeddings", "context", int, 512),
    Same("type_vocab_size", "types", int, 2),
    Same("layer_norm_eps", "epsilon", float, 1e-12),
    Choice("hidden_act", "mlp", _GELU, "gelu"),
    Dropout(0.1, "hidden_dropout_prob", "attention_probs_dropout_prob"),
    Fixed("classifier_dropout", None),
    Fixed("position_embedding_type", "absolute", written=False),
    Fixed("tie_word_embeddings", True),
)


_BERT_HARMLESS = frozenset(
    f"pooler_{x}"
    for x in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")
)


def _bert(architecture: str, model: Any, rows: tuple[Row, ...], *parts: Any) -> Family:
    spare = r"embeddings\.position_ids$|(^|\.)pooler\.|^cls\.seq_relationship\."
    spare += r"|^cls\.predictions\.decoder\."

    def names(settings: Settings) -> Table:
        heads = settings["heads"]
        every = (*_BERT, *rows)
        return Table(rows=every, heads=heads, key_heads=heads, prefix="bert.", ignored=spare)

    return Family(architecture, "bert", model, (*_BERT_PARTS, *parts), names, _BERT_HARMLESS)


_VIT_LAYER = "vit.encoder.layer.{}"
_VIT: tuple[Row, ...] = (
    ("params/cls", "vit.embeddings.cls_token"),
    ("params/positions", "vit.embeddings.position_embeddings"),
    *_both("params/patches", "vit.embeddings.patch_embeddings.projection"),
    *_qkv(f"{_VIT_LAYER}.attention.attention"),
    *_both("params/blocks/out", f"{_VIT_LAYER}.attention.output.dense"),
    *_both("params/blocks/norm_1", f"{_VIT_LAYER}.layernorm_before", "scale"),
    *_both("params/blocks/up", f"{_VIT_LAYER}.intermediate.dense"),
    *_both("params/blocks/down", f"{_VIT_LAYER}.output.dense"),
    *_both("params/blocks/norm_2", f"{_VIT_LAYER}.layernorm_after", "scale"),
    *_both("params/norm_f", "vit.layernorm", "scale"),
    *_CLASSES,
)


def _vit_names(settings: Settings) -> Table:
    heads, ones = settings["heads"], (("params/cls", 2), ("params/positions", 1))
    pooler = r"^vit\.pooler\."
    return Table(rows=_VIT, heads=heads, key_heads=heads, leading=ones, ignored=pooler)


def _side(settings: Settings, here: Mapping[str, Any]) -> dict[str, Any]:
    """The side of a ViT's pictures: its positions tell."""
    patches = here["params/positions"].shape[0] - 1
    return {"image_size": round(patches**0.5) * settings["stem"]}


def _resnet_rows(settings: Settings) -> Iterator[Row]:
    def normalised(conv: str, norm: str, there: str) -> Iterator[Row]:
        yield f"params/{conv}/kernel", f"{there}.convolution.weight"
        yield from _both(f"params/{norm}", f"{there}.normalization", "scale")
        yield f"batch_stats/{norm}/mean", f"{there}.normalization.running_mean"
        yield f"batch_stats/{norm}/var", f"{there}.normalization.running_var"

    yield from normalised("conv", "norm", "resnet.embedder.embedder")
    for stage, depth in enumerate(settings["depths"]):
        for block in range(depth):
            here = f"stage_{stage + 1}_block_{block}"
            there = f"resnet.encoder.stages.{stage}.layers.{block}"
            for k in range(3 if settings["bottleneck"] else 2):
                names = f"{here}/conv_{k + 1}", f"{here}/norm_{k + 1}", f"{there}.layer.{k}"
                yield from normalised(*names)
            shortcut = f"{here}/shortcut", f"{here}/shortcut_norm", f"{there}.shortcut"
            yield from normalised(*shortcut)
    yield from _both("params/head", "classifier.1")


def _resnet_names(settings: Settings) -> Table:
    return Table(rows=tuple(_resnet_rows(settings)), ignored=r"\.num_batches_tracked$")


_BASE = families.bert_base()
FAMILIES = (
    _bert("BertModel", BERT(), ()),
    _bert("BertForMaskedLM", MaskedLM(_BASE), _HIDDEN),
    _bert("BertForPreTraining", MaskedLM(_BASE), _HIDDEN),
    _bert("BertForSequenceClassification", Classifier(_BASE), (*_POOLER, *_CLASSES), Labels()),
    _bert("BertForTokenClassification", TokenClassifier(_BASE), _CLASSES, Labels()),
    Family(
        "ViTForImageClassification",
        "vit",
        families.vit_b(),
        (
            Same("hidden_size", "width", int, 768),
            Same("num_hidden_layers", "layers", int, 12),
            Same("num_attention_heads", "heads", int, 12),
            Same("intermediate_size", "hidden", int, 3072),
            Same("patch_size", "stem", int, 16),
            Same("layer_norm_eps", "epsilon", float, 1e-12),
            Choice("hidden_act", "mlp", _GELU, "gelu"),
            Dropout(0.0, "hidden_dropout_prob", "attention_probs_dropout_prob"),
            Fixed("qkv_bias", True),
            Fixed("num_channels", 3),
            Labels(),
        ),
        _vit_names,
        frozenset(["image_size", "encoder_stride", "pooler_output_size", "pooler_act"]),
        _side,
    ),
    Family(
        "ResNetForImageClassification",
        "resnet",
        ResNet(),
        (
            Stages(),
            Fixed("hidden_act", "relu"),
            Fixed("num_channels", 3),
            Fixed("downsample_in_first_stage", False),
            Fixed("downsample_in_bottleneck", False),
            Labels(),
        ),
        _resnet_names,
        frozenset(["stage_names", "out_features", "out_indices"]),
    ),
)
"""The encoders of texts and of pictures."""
