"""Parts of a config.json that say what a block sees, and where: windows, rotary positions."""

from typing import Any

from lsm.interop.parts import NEEDED, Config, Part, Settings, refused, typed, unsaid
from lsm.models.rotary import LinearRescale, Llama3Rescale


class Windows(Part):
    """Which blocks see a window of the text, and which see all."""

    fields = ("window", "global_every")

    def __init__(self, every: int = 0, switched: bool = False, default: int | None = None):
        """Takes how a config without `layer_types` is meant.

        Args:
          every: every so many-th block sees all; 0 for none.
          switched: whether `use_sliding_window` says whether there is one, of blocks from
            `max_window_layers` on (Qwen).
          default: width of the window.
        """
        self.every, self.switched, self.default = every, switched, default
        more = ("use_sliding_window", "max_window_layers") if switched else ()
        patterns = ("sliding_window_pattern", "_sliding_window_pattern") if every else ()
        self.keys = ("sliding_window", "layer_types", *more, *patterns)

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        window = config.get("sliding_window", self.default)
        if window is not None:
            window = typed(config, "sliding_window", int, self.default)
        if self.switched and not typed(config, "use_sliding_window", bool, False):
            window = None
        if self.every and window is None:
            raise refused("sliding_window", None, "a number")
        wide = self._wide(config, config.get("num_hidden_layers", 0), window is not None)
        if all(wide):
            return {"window": None, "global_every": 0}
        if window is None:
            raise refused("sliding_window", None, "a number, as layer_types have windows")
        every = wide.index(True) + 1 if True in wide else 0
        if wide != [every and (i + 1) % every == 0 for i in range(len(wide))]:
            raise refused(
                "layer_types" if "layer_types" in config else "max_window_layers",
                config.get("layer_types", config.get("max_window_layers")),
                "windows everywhere, or every n-th block, the n-th first, without one",
            )
        return {"window": window, "global_every": every}

    def _wide(self, config: Config, layers: int, windows: bool) -> list[bool]:
        """Says of each block whether it sees all."""
        if (types := config.get("layer_types")) is not None:
            known = {"full_attention": True, "sliding_attention": False}
            if not isinstance(types, list) or len(types) != layers or not {*types} <= {*known}:
                raise refused("layer_types", types, f"{' or '.join(known)} of {layers} layers")
            return [known[kind] for kind in types]
        if not windows:
            return [True] * layers
        if self.switched:
            first = typed(config, "max_window_layers", int, 28)
            return [i < first for i in range(layers)]
        every = self.every
        for key in self.keys[2:]:
            every = typed(config, key, int, every) if every else 0
        return [bool(every) and (i + 1) % every == 0 for i in range(layers)]

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`."""
        window, every, layers = (settings[x] for x in ("window", "global_every", "layers"))
        config = {"sliding_window": window or self.default}
        if self.switched:
            config |= {"use_sliding_window": window is not None, "max_window_layers": layers}
        if window is not None and self.switched:
            config["max_window_layers"] = 0
        if self.every or self.switched:
            wide = [window is None or (every and (i + 1) % every == 0) for i in range(layers)]
            config["layer_types"] = [f"{'full' if x else 'sliding'}_attention" for x in wide]
        elif every:
            raise unsaid("global_every", every, "0")
        return config


class Rotary(Part):
    """The base of rotary frequencies, and how they are rescaled; of global blocks too (Gemma 3)."""

    def __init__(self, theta: float, local: float | None = None):
        """Takes the default base there, and of blocks with a window, where that is another."""
        self.theta, self.local = theta, local
        self.keys = ("rope_theta", "rope_scaling", "rope_parameters")
        self.fields = ("theta", "rescale")
        if local is not None:
            self.keys += ("rope_local_base_freq",)
            self.fields += ("global_theta", "global_rescale")

    def read(self, config: Config) -> Settings:
        """See `Part.read`."""
        given, rescaling = (config.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
        if not isinstance(given, dict):
            raise refused("rope_parameters", given, "an object")
        if given and rescaling:
            raise refused("rope_scaling", rescaling, "null, as rope_parameters are there")
        theta = typed(config, "rope_theta", float, self.theta)
        if self.local is None:
            theta, rescale = _rope(given or rescaling, theta)
            return {"theta": theta, "rescale": rescale}
        kinds = {"full_attention", "sliding_attention"}
        if unknown := [key for key in given if key not in kinds]:
            raise refused("rope_parameters", unknown[0], " and ".join(sorted(kinds)))
        local = typed(config, "rope_local_base_freq", float, self.local)
        theta, rescale = _rope(given.get("full_attention") or rescaling, theta)
        local, local_rescale = _rope(given.get("sliding_attention") or {}, local)
        if local_rescale is not None:
            raise refused("rope_parameters", given, "no rescaling of sliding_attention")
        if "sliding_attention" not in (config.get("layer_types") or ["sliding_attention"]):
            local, local_rescale = theta, rescale  # no block has a window: all are as global ones
        return {
            "theta": local,
            "rescale": local_rescale,
            "global_theta": theta,
            "global_rescale": rescale,
        }

    def write(self, settings: Settings) -> dict[str, Any]:
        """See `Part.write`; in the form that older versions of transformers read too."""
        if settings["theta"] is None:
            raise unsaid("theta", None, "a number")
        if self.local is None:
            return {
                "rope_theta": settings["theta"],
                "rope_scaling": _rope_scaling(settings["rescale"]),
            }
        everywhere = settings["theta"], settings["rescale"]
        if settings["window"] is not None:
            everywhere = settings["global_theta"], settings["global_rescale"]
            if settings["rescale"] is not None:
                raise unsaid("rescale", settings["rescale"], "None")
        return {
            "rope_theta": everywhere[0],
            "rope_local_base_freq": settings["theta"],
            "rope_scaling": _rope_scaling(everywhere[1]),
        }


_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "context",
}


def _rope(given: Any, theta: float) -> tuple[float, LinearRescale | Llama3Rescale | None]:
    """Returns the base and the rescaling that an object of rotary parameters tells."""
    if not isinstance(given, dict):
        raise refused("rope_scaling", given, "an object or null")
    kind = given.get("rope_type", given.get("type", "default"))
    theta = typed(given, "rope_theta", float, theta)
    keys = {"default": (), "linear": ("factor",), "llama3": tuple(_LLAMA3)}
    if kind not in keys:
        raise refused("rope_scaling.rope_type", kind, ", ".join(keys))
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise refused("partial_rotary_factor", given["partial_rotary_factor"], "1.0")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *keys[kind]}
    if unknown := [key for key in given if key not in known]:
        raise refused(f"rope_scaling.{unknown[0]}", given[unknown[0]], f"{sorted(known)}")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearRescale(factor=typed(given, "factor", float, NEEDED))
    kinds = {key: int if key.startswith("original") else float for key in _LLAMA3}
    values = {_LLAMA3[key]: typed(given, key, of, NEEDED) for key, of in kinds.items()}
    return theta, Llama3Rescale(**values)


def _rope_scaling(rescale: LinearRescale | Llama3Rescale | None) -> dict[str, Any] | None:
    if rescale is None:
        return None
    if isinstance(rescale, LinearRescale):
        return {"rope_type": "linear", "factor": rescale.factor}
    values = {key: getattr(rescale, field) for key, field in _LLAMA3.items()}
    return {"rope_type": "llama3", **values}
