"""What the methods of a model take."""

import inspect

import flax.linen as nn


def takes(model: nn.Module, name: str, method: str = "__call__") -> bool:
    """Returns whether a method of a model takes a keyword."""
    parameters = inspect.signature(getattr(model, method)).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return name in parameters
    if isinstance(within := getattr(model, "model", None), nn.Module):  # such as Lora hands them on
        return takes(within, name, method)
    # A Sequential hands all keywords to its first layer.
    return name in parameters or not isinstance(model, nn.Sequential)
