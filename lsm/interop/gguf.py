"""GGUF files, as llama.cpp has them: what they tell of a model, and its tensors, dequantised.

A file becomes what a folder of Hugging Face's would be: a config.json, tensors by the names there,
and the files of the tokenizer. The library `gguf` reads and dequantises.
"""

import importlib.util
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsm.errors import CheckpointError, ConfigError, listed, nearest
from lsm.interop import gguf_tokenizer
from lsm.interop.tensors import Tensors
from lsm.models.rotary import Llama3Rescale, frequencies

_log = logging.getLogger("lsm")

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
"""Keys behind the architecture's name, and what a config.json calls them."""

_NEEDED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
_CHECKED = ("attention.value_length", "rope.dimension_count", "rope.scaling.type")
_HARMLESS = ("tensor_data_layout", "rope.scaling.original_context_length")
_TIED = ("output.weight", "lm_head.weight")
_ROPE = "rope_freqs.weight"
_PERMUTED = ("self_attn.q_proj.", "self_attn.k_proj.")


class GgufTensors(Tensors):
    """Tensors of a GGUF file by the names of Hugging Face; float32, dequantised when looked at."""

    def __init__(self, found: Mapping[str, Any], path: pathlib.Path, heads: tuple[int, int] | None):
        """Takes what `gguf.GGUFReader` read, by names there.

        Args:
          found: tensors by name.
          path: for error messages.
          heads: query and key heads, whose rows are permuted in this file; None where none are.
        """
        shapes = {name: tuple(map(int, reversed(x.shape))) for name, x in found.items()}
        self._found, self._heads = dict(found), heads
        # Views of one number each: what tells the shapes, and takes no memory.
        zero = np.zeros((), np.float32)
        super().__init__({name: np.broadcast_to(zero, x) for name, x in shapes.items()}, path)

    def view(self, name: str) -> np.ndarray:
        """See `Tensors.view`."""
        import gguf

        super().view(name)  # raises where there is none
        tensor = self._found[name]
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        x = np.asarray(x, np.float32).reshape(self.specs[name].shape)
        if self._heads and any(part in name for part in _PERMUTED):
            x = _unpermuted(x, self._heads["k_proj" in name])
        return x


def _unpermuted(x: np.ndarray, heads: int) -> np.ndarray:
    """Returns rows of heads as pairs (i, i + K/2); there pairs stand side by side."""
    pairs = x.reshape(heads, len(x) // heads // 2, 2, *x.shape[1:])
    return pairs.swapaxes(1, 2).reshape(x.shape)


def opened(path: pathlib.Path) -> tuple[Tensors, dict[str, Any], dict[str, bytes]]:
    """Returns the tensors of a GGUF file, its config.json, and the files beside it, by name.

    Raises:
      ConfigError: the architecture or one of its keys is not expressed here.
      CheckpointError: the file is missing or damaged, or the library is not installed.
    """
    reader, fields = _read(path)
    arch = fields.get("general.architecture")
    if not isinstance(arch, str) or arch not in _ARCHITECTURES:
        raise ConfigError(
            f"{path.name}: general.architecture: {arch!r} given; allowed: "
            f"{listed(_ARCHITECTURES)}.{nearest(str(arch), _ARCHITECTURES)}"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    ids = gguf_tokenizer.special(fields)
    config = _config(path.name, arch, fields, tensors)
    config |= {f"{kind}_token_id": ids[kind] for kind in ("bos", "eos") if kind in ids}
    renamed = _renamed(path, arch, config["num_hidden_layers"], tensors)
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    found = GgufTensors(renamed, path, heads if arch == "llama" else None)
    return found, config, _files(fields, ids)


def _read(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """Returns a `gguf.GGUFReader`, and the metadata by key."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError("the library gguf is not installed; pip install 'lsm[gguf]'.")
    import gguf

    if not path.is_file():
        raise CheckpointError(f"there is no file {path}.")
    try:
        reader = gguf.GGUFReader(path)
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # it trusts its input: any exception, where that is cut off
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{path} is no whole GGUF file: {reason}.") from error


def _config(name: str, arch: str, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict:
    """Returns the config.json that the keys of an architecture stand for."""
    own = {k.removeprefix(f"{arch}."): v for k, v in fields.items() if k.startswith(f"{arch}.")}
    known = {*_KEYS, *_CHECKED, *_HARMLESS}
    if unknown := [key for key in own if key not in known]:
        raise ConfigError(
            f"{name}: {arch}.{unknown[0]}: is not known, and may alter what the model computes."
        )
    config = {_KEYS[key]: value for key, value in own.items() if key in _KEYS}
    if missing := [key for key in _NEEDED if key not in own]:
        raise ConfigError(f"{name}: has no {arch}.{missing[0]}.")
    for key in _KEYS:
        if not isinstance(own.get(key, 1), int | float):  # one for each block
            raise ConfigError(f"{name}: {arch}.{key}: {own[key]!r} given; allowed: a number.")
    config = {"rope_theta": 10_000.0} | config
    for key in ("rms_norm_eps", "rope_theta"):
        # float32 there: the number that was meant is the shortest.
        config[key] = float(str(np.float32(config[key])))
    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("vocab_size", len(fields.get("tokenizer.ggml.tokens", ())))
    config.setdefault("head_dim", config["hidden_size"] // max(heads, 1))
    _check(name, arch, own, config["head_dim"])
    if arch == "qwen2":  # whose config.json has no such key
        _check_head(name, config)
    if arch == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if _ROPE in tensors:
        config["rope_scaling"] = _rescale(name, tensors[_ROPE], config)
    return {
        "architectures": [_ARCHITECTURES[arch]],
        "model_type": arch,
        "tie_word_embeddings": _TIED[0] not in tensors,
        **config,
    }


def _check(name: str, arch: str, own: Mapping[str, Any], head: int) -> None:
    allowed = dict(zip(_CHECKED, (head, head, "none"), strict=True))
    for key, value in allowed.items():
        if own.get(key, value) != value:
            raise ConfigError(f"{name}: {arch}.{key}: {own[key]!r} given; allowed: {value!r}.")


def _check_head(name: str, config: dict[str, Any]) -> None:
    head = config.pop("head_dim")
    if head * config["num_attention_heads"] != config["hidden_size"]:
        raise ConfigError(f"{name}: qwen2.attention.key_length: {head} given; width / heads is.")


def _rescale(name: str, tensor: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns Llama 3.1's rescaling, of which the file has the divisors alone."""
    divisors = np.asarray(tensor.data, np.float64).ravel()
    rescale = Llama3Rescale(factor=round(float(divisors.max()), 3))
    plain = frequencies(config["head_dim"], config["rope_theta"])
    if not np.allclose(plain / divisors, rescale.rescaled(plain), rtol=1e-4, atol=0):
        raise ConfigError(f"{name}: {_ROPE}: is not Llama 3.1's rescaling of 8,192 positions.")
    return {
        "rope_type": "llama3",
        "factor": rescale.factor,
        "low_freq_factor": rescale.low,
        "high_freq_factor": rescale.high,
        "original_max_position_embeddings": rescale.context,
    }


def _renamed(
    path: pathlib.Path, arch: str, layers: int, tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the tensors by the names of Hugging Face; what has none keeps its own."""
    import gguf

    from lsm.interop.decoders import FAMILIES  # it holds models: not where it is not needed

    family = next(x for x in FAMILIES if x.architecture == _ARCHITECTURES[arch])
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    known = gguf.get_tensor_name_map(kind, layers)
    found = {}
    for _, to in family.names_of(family.model).rows:
        for pattern in (to,) if isinstance(to, str) else to:
            for layer in range(layers if "{}" in pattern else 1):
                name = pattern.replace("{}", str(layer))
                there = known.get_name(name, try_suffixes=(".weight", ".bias"))
                if there in tensors:
                    found[name] = tensors[there]
    taken = {tensor.name for tensor in found.values()}
    rest = {name: x for name, x in tensors.items() if name not in taken and name != _ROPE}
    return found | rest


def _files(fields: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, bytes]:
    """Returns what stands beside a model, of what the file says of its tokenizer."""
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {
        f"{name}_token": fields["tokenizer.ggml.tokens"][ids[kind]]
        for name, kind in kinds.items()
        if kind in ids
    }
    template = fields.get("tokenizer.chat_template")
    config = named | ({"chat_template": template} if isinstance(template, str) else {})
    ends = dict.fromkeys(ids[kind] for kind in ("eos", "eot") if kind in ids)
    generation = {"eos_token_id": [*ends]}
    files = {"tokenizer_config.json": config, "generation_config.json": generation}
    content = {name: json.dumps(tree, indent=2).encode() for name, tree in files.items()}
    try:
        made = gguf_tokenizer.made(fields)
    except ConfigError as error:
        _log.warning("import: no tokenizer is made: %s", error)
        return content
    return content | {"tokenizer.json": made.to_str(pretty=True).encode()}
