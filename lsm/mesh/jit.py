"""`jax.jit` of the programs of a run, whose arrays lie on a mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lsm import cpu


def jit(
    function: Callable,
    *,
    in_shardings: Any,
    out_shardings: Any,
    donate: Sequence[int] = (),
    calls: cpu.Calls = "some",
    mesh: jax.sharding.Mesh | None = None,
) -> Callable:
    """Returns `function` compiled for a mesh.

    Args:
      function: pure function of pytrees of arrays.
      in_shardings: shardings of its arguments.
      out_shardings: shardings of its results; left open, the compiler lets gradients and with
        them the state drift to another layout.
      donate: arguments whose buffers the results may take.
      calls: how often a run calls it; see `lsm.cpu.compiler_options`.
      mesh: ambient mesh of the trace, which constraints inside models refer to.
    """
    # Not the default back end: `launch.plan` compiles for TPUs on a CPU.
    platform = jax.tree.leaves(out_shardings)[0].mesh.devices.flat[0].platform
    return jax.jit(
        function if mesh is None else _under(mesh, function),
        in_shardings=in_shardings,
        out_shardings=out_shardings,
        donate_argnums=tuple(donate),
        compiler_options=cpu.compiler_options(calls) if platform == "cpu" else None,
    )


def _under(mesh: jax.sharding.Mesh, function: Callable) -> Callable:
    @functools.wraps(function)
    def under(*args):
        # Set inside, since jax traces at the first call and not here.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return under
