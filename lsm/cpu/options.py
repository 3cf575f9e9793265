"""Options of XLA's compiler for CPUs."""

import functools
from typing import Any

import jax


@functools.cache
def compiler_options(hot: bool) -> dict[str, Any] | None:
    """Returns the options that pay on a CPU, or None where this jaxlib does not know them.

    The YNN library is kept to single dots, and in hot functions these go to oneDNN; XLA cannot
    write such a program to the persistent cache.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if hot:
        options |= {
            "xla_cpu_use_onednn": True,
            "xla_cpu_experimental_onednn_custom_call": True,  # else bfloat16 convolutions crawl
            "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        }
    try:  # on a program of nothing
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options
