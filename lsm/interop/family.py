"""A published architecture as a table: what its config.json says, and what its tensors are called.

One `Family` serves both ways: a config.json to a model, and a model to a config.json.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from lsm.errors import ConfigError, listed, nearest
from lsm.interop.parts import Config, Part, Settings, refused, unsaid
from lsm.interop.table import Table
from lsm.models.experts import Experts

_FREE = (
    "dropout",
    "drop_path",
    "unroll",
    "remat",
    "dtype",
    "initializer",
    "kernel_init",
    "zero_init",
)
"""Fields that are of training or of speed alone; a config.json says nothing of them."""

HARMLESS = frozenset(
    re.findall(
        r"\S+",
        """
    _name_or_path architectures attn_implementation _attn_implementation_autoset bos_token_id
    cache_implementation chunk_size_feed_forward decoder_start_token_id directionality dtype
    eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    initializer_range is_llama_config keys_to_ignore_at_inference model_type output_attentions
    output_hidden_states output_past output_router_logits pad_token_id prefix pretraining_tp
    return_dict return_dict_in_generate router_aux_loss_coef sep_token_id
    task_specific_params tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version use_cache
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty suppress_tokens temperature top_k top_p typical_p
""",
    )
)
"""Keys that tell of the file, of ids, of training or of sampling, and alter no logits."""

_UNIVERSAL = {
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False, None),
    "problem_type": (None, "single_label_classification"),
    "pruned_heads": ({}, None),
    "use_bfloat16": (False, None),
    "quantization_config": (None,),
    "auto_map": (None,),
}
"""Keys of any config.json, and the values with which they alter nothing."""


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of Hugging Face's.

    Attributes:
      architecture: its name in "architectures".
      model_type: its name in "model_type".
      model: a model of it, whose fields are those of all of them where no part tells others.
      parts: the keys of its config.json, with the fields that they stand for.
      names: settings -> the names of its tensors.
      harmless: keys beside `HARMLESS` that alter no outputs.
      told: (settings, shapes by path) -> keys that the shapes alone tell, for an export.
    """

    architecture: str
    model_type: str
    model: Any
    parts: tuple[Part, ...]
    names: Callable[[Settings], Table]
    harmless: frozenset[str] = frozenset()
    told: Callable[[Settings, Mapping[str, Any]], dict[str, Any]] = lambda settings, here: {}

    def read(self, config: Config) -> Any:
        """Returns the model that a config.json tells of.

        Raises:
          ConfigError: a key is not known, or has a value that is not expressed here.
        """
        self._check_keys(config)
        settings = flattened(self.model)
        for field in ("hidden", "head_width", "kv_heads", "query_width"):
            settings |= {field: None} if field in settings else {}
        for part in self.parts:
            settings |= part.read(config)
        return rebuilt(self.model, settings)

    def write(self, model: Any) -> dict[str, Any]:
        """Returns the config.json of a model.

        Raises:
          ConfigError: it is not of this family; names the field.
        """
        settings = filled(model)
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
        }
        for part in self.parts:
            config |= part.write(settings)
        back = filled(self.read(config))
        for field, value in settings.items():
            if field not in _FREE and not _same(value, back.get(field)):
                raise unsaid(field, value, f"{back.get(field)!r}")
        return config

    def is_of(self, model: Any) -> bool:
        """Says whether a model can be written as one of this family."""
        if _kinds(model) != _kinds(self.model):
            return False
        try:
            self.write(model)
        except ConfigError:
            return False
        return True

    def names_of(self, model: Any) -> Table:
        """Returns the names of a model's tensors."""
        return self.names(filled(model))

    def _check_keys(self, config: Config) -> None:
        known = {key for part in self.parts for key in part.keys}
        for key, value in config.items():
            if key in _UNIVERSAL and key not in known:
                if not any(value == one and type(value) is type(one) for one in _UNIVERSAL[key]):
                    raise refused(key, value, ", ".join(map(repr, _UNIVERSAL[key])))
            elif key not in known | HARMLESS | self.harmless:
                raise ConfigError(
                    f"config.json: {key}: is not known of {self.architecture}, and may alter what "
                    f"it computes; known are {listed(sorted(known), 40)}.{nearest(key, known)}"
                )


def _kinds(model: Any) -> list[type]:
    inner = getattr(model, "encoder", None)
    return [type(model), *([type(inner)] if inner is not None else [])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Experts) and isinstance(b, Experts):  # their balance is of training
        return dataclasses.replace(a, balance=b.balance) == b
    return a == b


def flattened(model: Any) -> Settings:
    """Returns the fields of a model, those of the models and blocks in it among them."""
    settings: Settings = {}
    for field in _fields(model):
        value = getattr(model, field)
        settings |= flattened(value) if field in ("transformer", "encoder") else {field: value}
    return settings


def filled(model: Any) -> Settings:
    """Returns `flattened`, with the sizes that follow from others."""
    settings = flattened(model)
    if "heads" in settings:
        heads, width = settings["heads"], settings["width"]
        settings["kv_heads"] = settings["kv_heads"] or heads
        settings["head_width"] = settings["head_width"] or width // heads
        settings["hidden"] = settings["hidden"] or 4 * width
        settings["query_width"] = settings["query_width"] or settings["head_width"]
        settings["global_theta"] = settings["global_theta"] or settings["theta"]
        settings["global_rescale"] = settings["global_rescale"] or settings["rescale"]
    return settings


def rebuilt(model: Any, settings: Mapping[str, Any]) -> Any:
    """Returns a model like `model` with such fields; undoes `flattened`."""
    values = {}
    for field in _fields(model):
        nested = field in ("transformer", "encoder")
        value = getattr(model, field)
        values[field] = rebuilt(value, settings) if nested else settings.get(field, value)
    return type(model)(**values)


def _fields(model: Any) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(model)
        if field.init and field.name not in ("parent", "name")
    ]
