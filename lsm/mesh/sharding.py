"""Meshes and shardings, from outside the models: (parameter path regex -> axes) rules.

`shard` lays a rule over every leaf of a tree and checks it before anything compiles. The rules
serve parameters and optimiser state alike, because the paths of Adam's moments end with the paths
of their parameters.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lsm.errors import ConfigError, MeshError, listed, nearest
from lsm.mesh.axes import AXES, BATCH_AXES, Entry, axis_names, product
from lsm.mesh.rules import Fsdp, Layout, Rule
from lsm.params import path_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices arranged along named axes; the product must be the number of devices.

    Rows of a batch are split over data, fsdp and expert together; parameters by `rules`.

    Attributes:
      data: data-parallel ways; -1 takes the devices that are left.
      fsdp: ways that parameters and optimiser state are sharded (ZeRO-3, arXiv:1910.02054).
      tensor: ways that every matrix product is split (Megatron-LM, arXiv:1909.08053).
      sequence: ways that sequences are split; attention gathers keys and values (context
        parallelism as in Llama 3, arXiv:2407.21783).
      expert: ways that the experts of a mixture are split (GShard, arXiv:2006.16668).
      pipeline: ways that the layers are split into stages (GPipe, arXiv:1811.06965).
      across_slices: the axis that spans several TPU slices, whose network is slower; the slices
        must divide its size.
      offload: keep the optimiser state in the hosts' memory, and move it for every update.
      rules: first match wins, and every array must match one; scalars are replicated. None takes
        the rules of the model.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    expert: int = 1
    pipeline: int = 1
    across_slices: Literal["data", "fsdp", "pipeline"] = "data"
    offload: bool = False
    rules: tuple[Rule, ...] | None = None

    def __post_init__(self):
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise ConfigError(f"mesh.{axis}: {size} given; it must be 1 or more, or -1.")
        free = [axis for axis in AXES if getattr(self, axis) == -1]
        if len(free) > 1:
            raise ConfigError(f"mesh: only one axis can be -1; {listed(free)} are.")


def make_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns a JAX mesh with the axes of `config` over `devices` (default: all).

    The devices of several TPU slices are arranged so that only `config.across_slices` leaves a
    slice.

    Raises:
      MeshError: the axes do not multiply to the number of devices, or the slices do not fit.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _sizes(config, devices)
    # CPUs have no `slice_index`; all are one slice then.
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    # Sizes of the axes within a slice, and over slices.
    inner, outer = list(sizes.values()), [1] * len(AXES)
    place = AXES.index(config.across_slices)
    if inner[place] % slices:
        raise MeshError(
            f"mesh.{config.across_slices}: {inner[place]} does not divide over the {slices} "
            "slices that it spans; see mesh.across_slices."
        )
    inner[place], outer[place] = inner[place] // slices, slices
    # Physical axes may be split, so that tensor=2 fits a torus of 4 x 4.
    if slices > 1:
        arranged = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    else:
        arranged = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    # Auto: the compiler lays out what nobody constrains. `jax.make_mesh` defaults to Explicit,
    # where every operation must know the sharding of its result.
    return jax.sharding.Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(config: Mesh, devices: Sequence[jax.Device]) -> dict[str, int]:
    """Returns the size of every axis, -1 filled in."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    # Rounded down where they do not divide, which the product then shows.
    sizes = {a: len(devices) // known if s == -1 else s for a, s in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        named = [axis for axis in AXES if getattr(config, axis) != 1]
        given = " x ".join(f"mesh.{axis}={getattr(config, axis)}" for axis in named or ["data"])
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise MeshError(
            f"{given} does not fit {len(devices)} {devices[0].platform} device(s): the product "
            f"must be {len(devices)}; allowed sizes of an axis: {listed(map(str, divisors))}, "
            "or -1 for the rest (JAX_NUM_CPU_DEVICES=n simulates n on a CPU)."
        )
    return sizes


def used_axes(rules: Sequence[Rule], layout: Layout) -> set[str]:
    """Returns the axes that a model uses or its parameters lie over, `BATCH_AXES` or others."""
    used = set(layout.axes)
    for spec in (spec for rule in rules for spec in (rule.spec, rule.otherwise or ())):
        entries = (spec.axis,) if isinstance(spec, Fsdp) else spec
        used.update(axis for entry in entries for axis in axis_names(entry))
    return used


def check_axes(mesh: jax.sharding.Mesh, rules: Sequence[Rule], layout: Layout, model: str) -> None:
    """Raises MeshError where an axis has several ways that neither the model nor `rules` use."""
    # Rows are split over these whatever the model is.
    used = {*BATCH_AXES, *used_axes(rules, layout)}
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in used:
            able = [name for name in AXES if name in used]
            raise MeshError(
                f"mesh.{axis}: {size} given, but {model} makes nothing of this axis; "
                f"it can use {listed(able)}."
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


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def table(tree: Any, shardings: Any) -> list[tuple[str, tuple[int, ...], str, str, int]]:
    """Returns a row (path, shape, dtype, spec, bytes on each device) for every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    rows = []
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        spec = _spelled(sharding.spec, sharding.mesh)
        rows.append(
            (path_name(path), leaf.shape, str(leaf.dtype), spec, local_bytes(leaf, sharding))
        )
    return rows


def local_bytes(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> int:
    """Returns the bytes of an array, or of the shape of one, on each device."""
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _spelled(spec: PartitionSpec, mesh: jax.sharding.Mesh) -> str:
    """The axes of more than one way, dimension by dimension: "None, fsdp, tensor"."""
    entries = [
        " x ".join(axis for axis in axis_names(entry) if mesh.shape[axis] > 1) for entry in spec
    ]
    return ", ".join(entry or "None" for entry in entries) if any(entries) else "replicated"


def _spec(
    path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: Sequence[Rule]
) -> PartitionSpec:
    # Counters and scales, for which nobody writes a rule.
    if not shape:
        return PartitionSpec()
    rule = next((rule for rule in rules if re.search(rule.pattern, path)), None)
    if rule is None:
        patterns = listed(repr(rule.pattern) for rule in rules)
        raise MeshError(f"mesh.rules: no rule matches {path!r}; the patterns are {patterns}.")
    # A state leaf has its parameter's path, but not always its shape (Adafactor, Shampoo).
    state = path.startswith("opt_state")
    # What does not divide goes where the rule says; state that is no copy of its parameter, to
    # Fsdp; and what is left is checked, for a parameter has to fit.
    specs = [rule.spec, *([Fsdp()] if state else [])]
    if rule.otherwise is not None and not isinstance(rule.spec, Fsdp):
        specs[1:1] = [rule.otherwise] if len(rule.spec) == len(shape) else []
    spec = next((spec for spec in specs if _fits(spec, shape, mesh)), specs[-1])
    if isinstance(spec, Fsdp):
        return spec(shape, mesh)
    _check_spec(rule.pattern, spec, path, shape, mesh)
    return PartitionSpec(*spec)


def _fits(spec: tuple[Entry, ...] | Fsdp, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> bool:
    if isinstance(spec, Fsdp):
        return True
    ways = [math.prod(mesh.shape.get(a, 1) for a in axis_names(entry)) for entry in spec]
    return len(ways) == len(shape) and not any(
        size % way for size, way in zip(shape, ways, strict=True)
    )


def _check_spec(
    pattern: str,
    spec: tuple[Entry, ...],
    path: str,
    shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> None:
    if len(spec) != len(shape):
        raise MeshError(
            f"mesh.rules: {pattern!r} has {len(spec)} entries, but {path!r} has shape "
            f"{shape}; give one entry a dimension."
        )
    for dim, entry in enumerate(spec):
        _check_dimension(path, shape, dim, entry, mesh)


def _check_dimension(
    path: str, shape: tuple[int, ...], dim: int, entry: Entry, mesh: jax.sharding.Mesh
) -> None:
    axes = axis_names(entry)
    for axis in axes:
        if axis not in mesh.shape:
            raise MeshError(
                f"mesh.rules: axis {axis!r} for {path!r} is not in the mesh; its axes are "
                f"{listed(mesh.shape)}.{nearest(axis, mesh.shape)}"
            )
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if shape[dim] % ways:
        size = shape[dim]
        fitting = math.gcd(size, ways)
        raise MeshError(
            f"mesh: {product(axes, mesh.shape)} does not divide dimension {dim} of {path!r} "
            f"{shape}, which is {size}; {fitting} ways would, or a size of "
            f"{-(-size // ways) * ways}, or a rule with None there."
        )
