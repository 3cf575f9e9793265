"""Options of XLA's compiler for CPUs."""

import functools
from typing import Any, Literal

import jax

from lsm.cpu.features import avx2_alone

Calls = Literal["one", "some", "many"]
"""How often a run calls a function: in all, once every many steps, at every step."""


@functools.cache
def compiler_options(calls: Calls) -> dict[str, Any] | None:
    """Returns the options that pay on a CPU, or None where this jaxlib does not know them.

    What is called once is not optimised much: to draw the parameters of a small CNN took 2 ms, and
    2 s to compile. The YNN library is kept to single dots, and in functions of many calls these go
    to oneDNN; XLA cannot write such a program to the persistent cache. On a processor with AVX2
    alone neither is used: Eigen, XLA's own choice of old, is faster there in products and twice so
    in the gradients of convolutions, and its programs can be kept.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if avx2_alone():
        options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    elif calls == "many":
        options |= {
            "xla_cpu_use_onednn": True,
            "xla_cpu_experimental_onednn_custom_call": True,  # else bfloat16 convolutions crawl
            "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        }
    if calls == "one":
        options["xla_backend_optimization_level"] = 1
    try:  # on a program of nothing
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options
