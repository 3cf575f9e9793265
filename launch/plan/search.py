"""The fastest plan that fits: mesh, rematerialisation and accumulation, at the recipe's batch.

The batch and everything else that changes what is learnt stay as they are. Candidates are ranked
by `launch.plan.partitioned`, and for TPUs the best few of them compiled.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from launch.plan import compiled, partitioned
from launch.plan.report import Plan
from launch.plan.request import Request
from launch.plan.sections import amount, duration
from launch.plan.topology import PlanError, Topology
from lsm.config import Experiment, flags
from lsm.errors import ConfigError, LsmError, MeshError
from lsm.mesh import AXES, BATCH_AXES, Fsdp, Layout, axis_names

COMPILED = 4
"""Candidates compiled, at most."""

CLOSE = 1.1
"""Once a compiled plan fits, others are compiled that are estimated to be at most so much slower
than the first."""

MARGIN = 0.03
"""What an axis beside data and fsdp has to gain; less is within the error of an estimate."""

_REMAT, _ACCUMULATION = "task.model.transformer.remat", "train.accumulation"
_SPLITS = (1, 2, 4, 8)
"""Ways tried of the axes that split single layers or the stack of them."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate and what came of it.

    Attributes:
      changes: what it sets, {"mesh.fsdp": "4", ...}.
      plan: its plan, estimated or compiled.
    """

    changes: Mapping[str, str]
    plan: Plan

    @property
    def seconds(self) -> float:
        """The geometric middle of the projected step; infinite where it does not fit."""
        ends = self.plan.projection
        return math.sqrt(math.prod(ends.step_seconds)) if ends and self.plan.fits else math.inf

    @property
    def rank(self) -> float:
        """`seconds`, and `MARGIN` more for every axis that splits layers: plain meshes first."""
        split = sum(n > 1 for axis, n in self.plan.run.mesh.items() if axis not in ("data", "fsdp"))
        return self.seconds * (1 + MARGIN * split)

    @property
    def needed(self) -> float:
        """Bytes that it needs on each device; infinite where the compiler does not say."""
        plan = self.plan
        return plan.memory.total if plan.memory else plan.refusal.needed or math.inf

    @property
    def mesh(self) -> str:
        """Its axes of several ways, "fsdp=4 x tensor=2"."""
        ways = self.plan.run.mesh.items()
        return " x ".join(f"{axis}={n}" for axis, n in ways if n > 1) or "one device"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a search found.

    Attributes:
      best: the fastest that fits; compiled where there is a compiler.
      tried: every candidate, fastest first; the compiled ones in place of their estimates.
      flags: what to add to the command, ("--config.mesh.fsdp=4", ...).
    """

    best: Trial
    tried: tuple[Trial, ...]
    flags: tuple[str, ...]


def search(request: Request, topology: Topology, say: Callable[[str], None]) -> Choice:
    """Returns the fastest plan that fits; what `request.overrides` sets stays as it is.

    Args:
      request: what to plan.
      topology: on what; on GPUs nothing is compiled.
      say: takes a line of progress at a time.

    Raises:
      PlanError: nothing fits.
      MeshError: no mesh suits the model and the batch.
    """
    trials = _estimates(request, topology, say)
    ranked = sorted((one for one in trials if one.plan.fits), key=lambda one: one.rank)
    done = ranked[:1] if topology.gpus else _compiled(request, topology, ranked, say)
    fitting = [one for one in done if one.plan.fits]
    if not fitting:
        raise PlanError(_nothing_fits(done or trials, topology))
    best = min(fitting, key=lambda one: one.rank)
    given = {tuple(one.changes.items()): one for one in done}
    tried = [given.get(tuple(one.changes.items()), one) for one in trials]
    tried.sort(key=lambda one: (one is not best, one.plan.basis == "analytic", one.rank))
    return Choice(best, tuple(tried), tuple(_flags(request.experiment, best.changes)))


def _flags(experiment: Experiment, changes: Mapping[str, str]) -> Iterator[str]:
    """The flags that make the experiment the changed one; what it says already is left out."""
    for path, text in changes.items():
        now = experiment
        for name in path.split("."):
            now = getattr(now, name)
        if str(now) != text:
            yield f"--config.{path}={text}"


def table_of(choice: Choice, most: int = 20) -> str:
    """Returns the candidates, fastest first, and the flags of the best."""
    row = "  {:34}{:>8}{:>6}{:>12}  {:4}{:>10}{:>8}  {}"
    heads = ("mesh", "remat", "parts", "memory", "fits", "step", "MFU", "by")
    lines = ["Plans tried, the best first", row.format(*heads)]
    for one in choice.tried[:most]:
        plan, ends = one.plan, one.plan.projection
        cells = (
            one.mesh,
            one.changes.get(_REMAT, "-"),
            plan.run.accumulation,
            amount(one.needed) if one.needed < math.inf else "-",
            "yes" if plan.fits else "no",
            duration(math.sqrt(math.prod(ends.step_seconds))) if ends else "-",
            f"{math.sqrt(math.prod(ends.mfu)):.1%}" if ends else "-",
            "compiler" if plan.basis == "compiled" else "estimate",
        )
        lines.append(row.format(*cells))
    if len(choice.tried) > most:
        lines.append(f"  and {len(choice.tried) - most} more")
    lines.append("Add to the command: " + (" ".join(choice.flags) or "nothing, it is the best"))
    return "\n".join(lines) + "\n"


def _estimates(request: Request, topology: Topology, say: Callable[[str], None]) -> list[Trial]:
    """Estimates of all meshes and policies, each with the fewest micro-batches that fit.

    The host's memory is tried only where nothing else fits.
    """
    meshes, trials = list(_meshes(request, topology)), []
    error: LsmError = MeshError("mesh: no mesh suits the model and the batch.")
    policies: tuple[str | None, ...] = (None,)
    if hasattr(request.experiment.task.model, "transformer") and _REMAT not in request.overrides:
        policies = ("none", "dots", "full")
    for attempt in (policies, ("offload",) if policies[0] else ()):
        for i, mesh in enumerate(meshes):
            sizes = " x ".join(f"{k[5:]}={v}" for k, v in mesh.items() if v != "1")
            say(f"estimating mesh {i + 1} of {len(meshes)}: {sizes or 'one device'}")
            try:
                _try_policies(request, topology, mesh, attempt, trials)
            except (MeshError, ConfigError) as failed:
                error = failed
        if any(one.plan.fits for one in trials):
            break
    if not trials:
        raise error
    return trials


def _try_policies(
    request: Request,
    topology: Topology,
    mesh: Mapping[str, str],
    policies: tuple[str | None, ...],
    trials: list[Trial],
) -> None:
    """Adds to `trials` the plans of a mesh, until the next policy would only compute more."""
    for policy in policies:
        changes = {**mesh, **({_REMAT: policy} if policy else {})}
        trial = _fewest_parts(request, topology, changes, trials)
        trials.append(trial)
        memory, whole = trial.plan.memory, trial.plan.run.accumulation == 1
        if memory.arguments > memory.available:  # whatever is kept of the activations
            break
        if trial.plan.fits and (whole or policy == "dots"):
            break


def _fewest_parts(
    request: Request, topology: Topology, changes: dict[str, str], known: list[Trial]
) -> Trial:
    """The plan with the fewest micro-batches that fit, where any number does; else with the most.

    Memory grows with the rows of a micro-batch, at most in proportion: fewer need not be tried.
    """
    flops = next((one.plan.flops.model for one in known if one.plan.flops), None)

    def trial(parts: int | None = None) -> Trial:
        new = changes if parts is None else {**changes, _ACCUMULATION: str(parts)}
        return Trial(new, partitioned.plan(_changed(request, new), topology, flops))

    if _ACCUMULATION in request.overrides:
        return trial()
    ways = math.prod(int(changes[f"mesh.{axis}"]) for axis in BATCH_AXES)
    batch = request.experiment.train.batch_size
    if batch % ways:
        raise MeshError(f"train.batch_size: {batch} does not divide over {ways} devices.")
    parts, n = [n for n in range(1, batch // ways + 1) if (batch // ways) % n == 0], 1
    while True:
        best = trial(n)
        memory = best.plan.memory
        room = memory.available - memory.total + memory.temporaries
        if best.plan.fits or n == parts[-1] or room <= 0:
            return best
        least = n * memory.temporaries / room
        n = next((more for more in parts if more > n and more >= least), parts[-1])


def _changed(request: Request, changes: Mapping[str, str]) -> Request:
    return dataclasses.replace(
        request,
        experiment=flags.override(request.experiment, changes),
        overrides={**request.overrides, **changes},
    )


def _meshes(request: Request, topology: Topology) -> Iterator[dict[str, str]]:
    """Meshes worth a look, as changes: one axis beside data and fsdp splits layers, or none."""
    devices, usable = len(topology.devices), _usable(request.experiment)
    given = {axis: request.overrides.get(f"mesh.{axis}", "-1") for axis in AXES}
    fixed = {axis: int(text) for axis, text in given.items() if text != "-1"}
    choices = {
        axis: (fixed[axis],) if axis in fixed else _SPLITS if axis in usable else (1,)
        for axis in ("pipeline", "expert", "sequence", "tensor")
    }
    seen = set()
    for sizes in itertools.product(*choices.values()):
        split = dict(zip(choices, sizes, strict=True))
        free = [n for axis, n in split.items() if n > 1 and axis not in fixed]
        rest, left = divmod(devices, math.prod(sizes))
        if len(free) > 1 or left:
            continue
        node = math.gcd(rest, topology.chip.devices_per_host)
        for fsdp in (fixed["fsdp"],) if "fsdp" in fixed else sorted({1, node, rest}):
            mesh = {**split, "fsdp": fsdp, "data": rest // fsdp}
            changes = {f"mesh.{axis}": str(mesh[axis]) for axis in AXES}
            known = all(mesh[axis] == n for axis, n in fixed.items())
            if rest % fsdp == 0 and known and tuple(changes.values()) not in seen:
                seen.add(tuple(changes.values()))
                yield changes


def _usable(experiment: Experiment) -> set[str]:
    """Axes beside data and fsdp that the model makes something of."""
    model = experiment.task.model
    layout = getattr(model, "layout", Layout())
    used = set(layout.axes)
    for rule in experiment.mesh.rules or layout.rules:
        if not isinstance(rule.spec, Fsdp):
            used.update(axis for entry in rule.spec for axis in axis_names(entry))
    if not getattr(getattr(model, "transformer", None), "experts", None):
        used.discard("expert")
    return used


def _compiled(
    request: Request, topology: Topology, ranked: list[Trial], say: Callable[[str], None]
) -> list[Trial]:
    """Compiles the best, one after the other, until none that is left is likely to be faster."""
    done: list[Trial] = []
    for one in ranked:
        best = min((trial.seconds for trial in done), default=math.inf)
        slower = one.rank > CLOSE * ranked[0].rank or one.plan.projection.step_seconds[0] >= best
        if len(done) == COMPILED or (best < math.inf and slower):
            break
        remat = one.changes.get(_REMAT, "as given")
        parts = one.plan.run.accumulation
        say(f"compiling {len(done) + 1}: {one.mesh}, remat {remat}, {parts} micro-batches")
        done.append(Trial(one.changes, compiled.plan(_changed(request, one.changes), topology)))
    return done


def _nothing_fits(trials: list[Trial], topology: Topology) -> str:
    closest = min(trials, key=lambda one: one.needed)
    over = closest.needed - topology.available
    shown = ", ".join(f"{k}={v}" for k, v in closest.changes.items() if v != "1")
    offload = "" if topology.gpus else "mesh.offload=True, "
    return (
        f"--fit: none of {len(trials)} plans fits {topology.name}; the closest ({shown}) needs "
        f"{amount(over)} more on each device. More chips would help, or {offload}"
        "train.params=bfloat16, or a smaller train.batch_size."
    )
