"""Options of XLA's compiler for CPUs."""

import functools
from typing import Any

import jax

from lsm.cpu.features import avx2_alone


@functools.cache
def compiler_options(hot: bool) -> dict[str, Any] | None:
    """Returns the options that pay on a CPU, or None where this jaxlib does not know them.

    The YNN library is kept to single dots, and in hot functions these go to oneDNN; XLA cannot
    write such a program to the persistent cache. On a processor with AVX2 alone neither is used:
    Eigen, XLA's own choice of old, is faster there in products and twice so in the gradients of
    convolutions, and its programs can be kept.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if avx2_alone():
        options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    elif hot:
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
