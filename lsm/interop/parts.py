"""Parts of a config.json and the fields of a model that they stand for, both ways."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from lsm.errors import ConfigError, nearest, shortened
from lsm.models.experts import Experts

NEEDED = object()
"""Default of a key that has none."""

Config = Mapping[str, Any]
"""What a config.json holds."""

Settings = dict[str, Any]
"""Fields of a model, those of its blocks among them, by name."""


def refused(key: str, value: Any, allowed: str) -> ConfigError:
    """Returns the error of a key whose value is not expressed here."""
    return ConfigError(f"config.json: {key}: {shortened(repr(value))} given; allowed: {allowed}.")


def unsaid(field: str, value: Any, allowed: str) -> ConfigError:
    """Returns the error of a field of a model that an architecture cannot say."""
    return ConfigError(f"model.{field}: {shortened(repr(value))} given; allowed: {allowed}.")


class Part(abc.ABC):
    """Some keys of a config.json, and the fields of a model that they stand for.

    Attributes:
      keys: keys that it understands.
      fields: fields that it tells.
    """

    keys: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    @abc.abstractmethod
    def read(self, config: Config) -> Settings:
        """Returns the fields; raises ConfigError where they cannot be said here."""

    @abc.abstractmethod
    def write(self, settings: Settings) -> dict[str, Any]:
        """Returns the keys; raises ConfigError where they cannot be said there."""


class Same(Part):
    """A key whose value is that of a field."""

    def __init__(
        self, key: str, field: str, kind: type, default: Any = NEEDED, nullable: bool = False
    ):
        """Takes both names, the type, the default there, and whether it may be null."""
        self.key, self.kind, self.default, self.nullable = key, kind, default, nullable
        self.keys, self.fields = (key,), (field,)

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        if self.nullable and config.get(self.key, self.default) is None:
            return {self.fields[0]: None}
        return {self.fields[0]: typed(config, self.key, self.kind, self.default)}

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        return {self.key: settings[self.fields[0]]}


def typed(config: Config, key: str, kind: type, default: Any) -> Any:
    """Returns the value of a key, which must be of a type, or null where that is the default."""
    value = config.get(key, default)
    if value is NEEDED:
        raise ConfigError(f"config.json: has no {key!r}.{nearest(key, config)}")
    if value is None and default is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    right = whole if kind is int else isinstance(value, kind) or (kind is float and whole)
    if not right:
        raise refused(key, value, f"a value of type {kind.__name__}")
    return kind(value)


class Fixed(Part):
    """A key that may have such values alone; the first is what its absence means."""

    def __init__(self, key: str, *allowed: Any, written: bool = True):
        """Takes the key and the values; `written` says whether an export has it."""
        self.keys, self.allowed, self.written = (key,), allowed, written

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        value = config.get(self.keys[0], self.allowed[0])
        if not any(value == one and type(value) is type(one) for one in self.allowed):
            raise refused(self.keys[0], value, ", ".join(map(repr, self.allowed)))
        return {}

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        return {self.keys[0]: self.allowed[0]} if self.written else {}


class Choice(Part):
    """A key whose values have other names here."""

    def __init__(self, key: str, field: str, values: Mapping[Any, Any], default: Any):
        """Takes both names, {value there: value here} (the first of several is written), default.

        `default` is the value there that absence means.
        """
        self.values, self.default = values, default
        self.keys, self.fields = (key,), (field,)

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        value = config.get(self.keys[0], self.default)
        if not isinstance(value, str | bool | int) or value not in self.values:
            raise refused(self.keys[0], value, ", ".join(map(repr, self.values)))
        return {self.fields[0]: self.values[value]}

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        here = settings[self.fields[0]]
        for there, value in self.values.items():
            if type(value) is type(here) and value == here:
                return {self.keys[0]: there}
        raise unsaid(
            self.fields[0], here, ", ".join(map(repr, dict.fromkeys(self.values.values())))
        )


class Size(Part):
    """A key of a size that follows from other fields where it is null or absent."""

    def __init__(self, key: str, field: str, default: int | None = None):
        """Takes both names, and the default there."""
        self.default, self.keys, self.fields = default, (key,), (field,)

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        value = config.get(self.keys[0], self.default)
        if value is None:
            return {}  # `Family` fills it in
        return {self.fields[0]: typed(config, self.keys[0], int, self.default)}

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        return {self.keys[0]: settings[self.fields[0]]}


class Dropout(Part):
    """Several rates of dropout there, one here."""

    fields = ("dropout",)

    def __init__(self, default: float, *keys: str):
        """Takes the default there, and the keys."""
        self.default, self.keys = default, keys

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        rates = {key: typed(config, key, float, self.default) for key in self.keys}
        if len({*rates.values()}) > 1:
            key, value = [*rates.items()][-1]
            raise refused(key, value, f"one rate for {', '.join(self.keys)}")
        return {"dropout": next(iter(rates.values()))}

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        return dict.fromkeys(self.keys, settings["dropout"])


class Biases(Part):
    """Biases of attention, and of the MLP (Llama)."""

    keys, fields = ("attention_bias", "mlp_bias"), ("bias",)

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        attention, mlp = (typed(config, key, bool, False) for key in self.keys)
        if mlp and not attention:
            raise refused("mlp_bias", True, "false, or attention_bias true as well")
        return {"bias": mlp or ("attention" if attention else False)}

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        bias = settings["bias"]
        return {"attention_bias": bias in (True, "attention"), "mlp_bias": bias is True}


class TopK(Part):
    """A mixture of experts that drops no token."""

    keys, fields = ("num_local_experts", "num_experts_per_tok"), ("experts",)

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        count, k = (typed(config, key, int, d) for key, d in zip(self.keys, (8, 2), strict=True))
        if k == 1 < count:
            # It has the weight 1 there, and its probability here.
            raise refused("num_experts_per_tok", 1, "2 or more")
        return {"experts": Experts(count=count, top_k=k)}

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        experts = settings["experts"]
        if experts is None:
            raise unsaid("experts", None, "some")
        if experts.top_k == 1 < experts.count:
            raise unsaid("experts.top_k", 1, "2 or more")
        return dict(zip(self.keys, (experts.count, experts.top_k), strict=True))


class Stages(Part):
    """What a ResNet is made of: widths of its stages, in ratios of two."""

    keys = ("embedding_size", "hidden_sizes", "depths", "layer_type")
    fields = ("width", "depths", "bottleneck")

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        width, kind = config.get("embedding_size", 64), config.get("layer_type", "bottleneck")
        if kind not in ("basic", "bottleneck"):
            raise refused("layer_type", kind, "basic, bottleneck")
        depths = config.get("depths", [3, 4, 6, 3])
        if not isinstance(depths, list) or not all(type(x) is int for x in depths):
            raise refused("depths", depths, "a list of whole numbers")
        widths = config.get("hidden_sizes", [256, 512, 1024, 2048])
        settings = {"width": width, "depths": tuple(depths), "bottleneck": kind == "bottleneck"}
        if widths != self.write(settings)["hidden_sizes"]:
            raise refused("hidden_sizes", widths, f"{self.write(settings)['hidden_sizes']}")
        return settings

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        width, depths, bottleneck = (settings[field] for field in self.fields)
        first = 4 * width if bottleneck else width
        return {
            "embedding_size": width,
            "hidden_sizes": [first * 2**i for i in range(len(depths))],
            "depths": list(depths),
            "layer_type": "bottleneck" if bottleneck else "basic",
        }


class Labels(Part):
    """How many classes there are; what they are called is the export's to say: see `labels`."""

    keys, fields = ("num_labels", "id2label", "label2id"), ("outputs",)

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        names = config.get("id2label")
        if names:
            if not isinstance(names, dict) or {*names} != {*map(str, range(len(names)))}:
                raise refused("id2label", names, "names by number, from 0")
            return {"outputs": len(names)}
        return {"outputs": typed(config, "num_labels", int, 2)}

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        return unnamed(settings["outputs"])


def unnamed(count: int) -> dict[str, Any]:
    """Returns what a config.json says of so many classes without names."""
    return labels([f"LABEL_{i}" for i in range(count)])


def labels(names: Sequence[str]) -> dict[str, Any]:
    """Returns what a config.json says of classes of these names."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
