"""A trained model as a folder that needs jax alone: StableHLO, safetensors, JSON, a model card.

    python -m lsm.export --workdir=RUN --out=DIR       # or lsm.export.export(RUN, DIR)
    model = lsm.export.load(DIR)
    model({"image": image_BxHxWxC})                    # {"label": ..., "probability": ...}

What loads it (this module and all that it imports) needs no package but jax and those that jax
needs; what exports needs all of lsm, and is imported where it is asked for. See docs/export.md.
"""

from typing import TYPE_CHECKING, Any

from lsm.export.model import Model, load

if TYPE_CHECKING:
    from lsm.export.write import export

__all__ = ["Model", "export", "load"]


def __getattr__(name: str) -> Any:
    if name != "export":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lsm.export.write import export

    return export
