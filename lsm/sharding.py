"""Meshes and shardings, from outside the models: (parameter path regex -> axes) rules.

`shard` lays a rule over every leaf of a tree and checks it before anything compiles; `compile`
is the one place with `jax.jit`. The rules serve parameters and optimiser state alike, because
the paths of Adam's moments end with the paths of their parameters.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lsm.errors import ConfigError, MeshError, listed, nearest
from lsm.paths import path_name

AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Fsdp:
    """Shards the largest dimension that the axis divides; leaves small arrays whole.

    Attributes:
      axis: mesh axis to shard over.
      min_size: arrays with fewer elements are replicated: gathering them costs more than it saves.
    """

    axis: str = "fsdp"
    min_size: int = 4096

    def __call__(self, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
        """Returns the spec of an array of `shape` on `mesh`."""
        ways = mesh.shape[self.axis]
        if ways == 1 or math.prod(shape) < self.min_size:
            return PartitionSpec()
        for dim in sorted(range(len(shape)), key=lambda d: shape[d], reverse=True):
            if shape[dim] % ways == 0:
                return PartitionSpec(*[self.axis if d == dim else None for d in range(len(shape))])
        return PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where the parameters whose path matches go.

    Attributes:
      pattern: regular expression searched for in the path, such as "qkv/kernel$".
      spec: one entry a dimension (an axis, several axes, or None), or `Fsdp()`. Optimiser state
        that it does not fit (factored moments, say) is laid out by `Fsdp()`.
    """

    pattern: str
    spec: tuple[str | tuple[str, ...] | None, ...] | Fsdp = Fsdp()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices arranged along named axes; the product must be the number of devices.

    Batches are split over "data" and "fsdp" together; parameters by `rules`.

    Attributes:
      data: data-parallel ways; -1 takes the devices that are left.
      fsdp: ways that parameters and optimiser state are sharded (ZeRO-3, arXiv:1910.02054).
      rules: first match wins, and every array must match one; scalars are replicated.
    """

    data: int = -1
    fsdp: int = 1
    rules: tuple[Rule, ...] = (Rule(".*", Fsdp()),)

    def __post_init__(self):
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise ConfigError(f"mesh.{axis}: {size} given; it must be 1 or more, or -1.")
        if self.data == -1 and self.fsdp == -1:
            raise ConfigError("mesh: only one of data and fsdp can be -1.")


def make_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns a JAX mesh with the axes of `config` over `devices` (default: all).

    Raises:
      MeshError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {a: len(devices) // known if s == -1 else s for a, s in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        given = " x ".join(f"mesh.{axis}={getattr(config, axis)}" for axis in AXES)
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise MeshError(
            f"{given} does not fit {len(devices)} {devices[0].platform} device(s): the product "
            f"must be {len(devices)}; allowed sizes of an axis: {listed(map(str, divisors))}, "
            "or -1 for the rest (JAX_NUM_CPU_DEVICES=n simulates n on a CPU)."
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices,
    )


def shard(tree: Any, mesh: jax.sharding.Mesh, rules: Sequence[Rule]) -> Any:
    """Returns the NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs).

    Raises:
      MeshError: a path that no rule matches, an axis that the mesh lacks, or a dimension that
        its axes do not divide; one line that names path, dimension and axis.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(path_name(path), leaf.shape, mesh, rules)),
        tree,
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its leading axis over all data axes."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices, as global arrays."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def compile(
    function: Callable,
    *,
    in_shardings: Any,
    out_shardings: Any,
    donate: Sequence[int] = (),
    hot: bool = False,
) -> Callable:
    """Returns the jitted function. The only place with `jax.jit` in lsm.

    Args:
      function: pure function of pytrees of arrays.
      in_shardings: shardings of its arguments.
      out_shardings: shardings of its results; left open, the compiler lets gradients and with
        them the state drift to another layout.
      donate: arguments whose buffers the results may take.
      hot: called so often that a little speed is worth a compilation at every start.
    """
    platform = jax.tree.leaves(out_shardings)[0].mesh.devices.flat[0].platform
    return jax.jit(
        function,
        in_shardings=in_shardings,
        out_shardings=out_shardings,
        donate_argnums=tuple(donate),
        compiler_options=compiler_options(platform, hot),
    )


@functools.cache
def compiler_options(platform: str, hot: bool) -> dict[str, Any] | None:
    """Returns the XLA options that pay on `platform`, or None; docs/cpu_speed.md has the figures.

    On a CPU the YNN library is kept to single dots, and in hot functions these go to oneDNN; XLA
    cannot write such a program to the persistent cache. A jaxlib that does not know these options
    does without.
    """
    if platform != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if hot:
        options |= {
            "xla_cpu_use_onednn": True,
            "xla_cpu_experimental_onednn_custom_call": True,  # else bfloat16 convolutions crawl
            "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        }
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def table(tree: Any, shardings: Any) -> list[tuple[str, tuple[int, ...], str, str, int]]:
    """Returns a row (path, shape, dtype, spec, bytes on each device) for every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    rows = []
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        local = math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        spec = ", ".join(map(str, sharding.spec)) or "replicated"
        rows.append((path_name(path), leaf.shape, str(leaf.dtype), spec, local))
    return rows


def _spec(
    path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: Sequence[Rule]
) -> PartitionSpec:
    if not shape:
        return PartitionSpec()
    rule = next((rule for rule in rules if re.search(rule.pattern, path)), None)
    if rule is None:
        patterns = listed(repr(rule.pattern) for rule in rules)
        raise MeshError(f"mesh.rules: no rule matches {path!r}; the patterns are {patterns}.")
    if isinstance(rule.spec, Fsdp):
        return rule.spec(shape, mesh)
    try:
        _check_spec(rule, path, shape, mesh)
    except MeshError:
        if not path.startswith("opt_state"):
            raise
        return Fsdp()(shape, mesh)
    return PartitionSpec(*rule.spec)


def _check_spec(rule: Rule, path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> None:
    if len(rule.spec) != len(shape):
        raise MeshError(
            f"mesh.rules: {rule.pattern!r} has {len(rule.spec)} entries, but {path!r} has shape "
            f"{shape}; give one entry a dimension."
        )
    for dim, entry in enumerate(rule.spec):
        _check_dimension(path, shape, dim, entry, mesh)


def _check_dimension(
    path: str, shape: tuple[int, ...], dim: int, entry: Any, mesh: jax.sharding.Mesh
) -> None:
    axes = () if entry is None else (entry,) if isinstance(entry, str) else entry
    for axis in axes:
        if axis not in mesh.shape:
            raise MeshError(
                f"mesh.rules: axis {axis!r} for {path!r} is not in the mesh; its axes are "
                f"{listed(mesh.shape)}.{nearest(axis, mesh.shape)}"
            )
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if shape[dim] % ways:
        raise MeshError(
            f"mesh.rules: dimension {dim} of {path!r} {shape} is {shape[dim]}, which "
            f"{' x '.join(axes)} = {ways} does not divide; use another axis, or None to replicate."
        )
