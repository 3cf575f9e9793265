"""The fastest plan that fits: mesh, rematerialisation and accumulation, at the recipe's batch.

The batch and everything else that changes what is learnt stay as they are. Candidates are ranked
by `launch.plan.analytic`, and the best few of them compiled.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from launch.plan import analytic, compile
from launch.plan.compile import Request
from launch.plan.report import Plan
from launch.plan.text import amount, duration
from launch.plan.topology import PlanError, Topology
from lsm.config import Experiment, flags
from lsm.errors import ConfigError, LsmError, MeshError
from lsm.mesh import AXES, BATCH_AXES, Layout, used_axes

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
      plan: its plan, analytic or compiled.
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


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
      best: the fastest that fits; compiled where there is a compiler.
      tried: every candidate, fastest first; the compiled ones in place of their estimates.
      flags: what to add to the command, ("--config.mesh.fsdp=4", ...).
    """

    best: Trial
    tried: tuple[Trial, ...]
    flags: tuple[str, ...]


def fit(request: Request, topology: Topology, say: Callable[[str], None]) -> Search:
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
    if not ranked:
        raise PlanError(_nothing_fits(trials, topology))
    gpu = analytic.is_gpu(topology.name)
    done = ranked[:1] if gpu else _compiled(request, topology, ranked, say)
    fitting = [one for one in done if one.plan.fits]
    if not fitting:
        raise PlanError(_nothing_fits(done, topology))
    best = min(fitting, key=lambda one: one.rank)
    given = {tuple(one.changes.items()): one for one in done}
    tried = [given.get(tuple(one.changes.items()), one) for one in trials]
    order = sorted(tried, key=lambda one: (one is not best, one.plan.basis == "analytic", one.rank))
    return Search(best, tuple(order), tuple(_flags(request.experiment, best.changes)))


def _flags(experiment: Experiment, changes: Mapping[str, str]) -> Iterator[str]:
    """The flags that make the experiment the changed one; what it says already is left out."""
    for path, text in changes.items():
        now = experiment
        for name in path.split("."):
            now = getattr(now, name)
        if str(now) != text:
            yield f"--config.{path}={text}"


def table_of(search: Search, most: int = 20) -> str:
    """Returns the candidates, fastest first, and the flags of the best."""
    lines = ["Plans tried, the best first"]
    row = "  {:34}{:>8}{:>6}{:>12}  {:4}{:>10}{:>8}  {}"
    lines.append(row.format("mesh", "remat", "parts", "memory", "fits", "step", "MFU", "by"))
    for one in search.tried[:most]:
        plan = one.plan
        memory = plan.memory.total if plan.memory else plan.refusal.needed
        ends = plan.projection
        cells = (
            _mesh(plan),
            one.changes.get(_REMAT, "-"),
            plan.run.accumulation,
            amount(memory) if memory else "-",
            "yes" if plan.fits else "no",
            duration(math.sqrt(math.prod(ends.step_seconds))) if ends else "-",
            f"{math.sqrt(math.prod(ends.mfu)):.1%}" if ends else "-",
            "compiler" if plan.basis == "compiled" else "estimate",
        )
        lines.append(row.format(*cells))
    if len(search.tried) > most:
        lines.append(f"  and {len(search.tried) - most} more")
    lines.append("Add to the command: " + (" ".join(search.flags) or "nothing, it is the best"))
    return "\n".join(lines) + "\n"


def _mesh(plan: Plan) -> str:
    return " x ".join(f"{a}={n}" for a, n in plan.run.mesh.items() if n > 1) or "one device"


def _estimates(request: Request, topology: Topology, say: Callable[[str], None]) -> list[Trial]:
    """Analytic plans of all meshes and policies, each with the fewest micro-batches that fit."""
    meshes = list(_meshes(request, topology))
    trials: list[Trial] = []
    error: LsmError | None = None
    policies = _policies(request, ("none", "dots", "full"))
    for attempt in (policies, _policies(request, ("offload",))):
        for i, mesh in enumerate(meshes):
            sizes = " x ".join(f"{k[5:]}={v}" for k, v in mesh.items() if v != "1")
            say(f"estimating mesh {i + 1} of {len(meshes)}: {sizes or 'one device'}")
            for policy in attempt:
                try:
                    trial = _fewest_parts(request, topology, {**mesh, **policy}, trials)
                except (MeshError, ConfigError) as failed:
                    error = failed
                    break
                trials.append(trial)
                memory = trial.plan.memory
                if memory.arguments > memory.available:
                    break  # whatever is kept of the activations
                whole = trial.plan.run.accumulation == 1
                if trial.plan.fits and (whole or policy.get(_REMAT) == "dots"):
                    break  # the next policy computes more
        if any(one.plan.fits for one in trials) or _REMAT in request.overrides or not policies[0]:
            break
    if not trials:
        raise error or MeshError("mesh: no mesh suits the model and the batch.")
    return trials


def _policies(request: Request, names: tuple[str, ...]) -> list[dict[str, str]]:
    if not hasattr(request.experiment.task.model, "transformer") or _REMAT in request.overrides:
        return [{}]
    return [{_REMAT: name} for name in names]


def _fewest_parts(
    request: Request, topology: Topology, changes: dict[str, str], known: list[Trial]
) -> Trial:
    """The plan with the fewest micro-batches that fit, where any number does; else with the most.

    Memory grows with the rows of a micro-batch, less than in proportion.
    """
    model = known[0].plan.flops.model if known else None
    if _ACCUMULATION in request.overrides:
        return _trial(request, topology, changes, model)
    ways = math.prod(int(changes[f"mesh.{axis}"]) for axis in BATCH_AXES)
    batch = request.experiment.train.batch_size
    if batch % ways:
        raise MeshError(f"train.batch_size: {batch} does not divide over {ways} devices.")
    parts = [n for n in range(1, batch // ways + 1) if (batch // ways) % n == 0]
    best = _trial(request, topology, {**changes, _ACCUMULATION: str(parts[-1])}, model)
    guess = parts[-1]
    while best.plan.fits and guess > 1:
        memory = best.plan.memory
        room = (memory.available - memory.total + memory.temporaries) / max(memory.temporaries, 1)
        fewer = [n for n in parts if guess / room <= n < guess]
        if not fewer:
            break
        guess = fewer[0]
        more = _trial(request, topology, {**changes, _ACCUMULATION: str(guess)}, model)
        if not more.plan.fits:
            break
        best = more
    return best


def _trial(
    request: Request, topology: Topology, changes: dict[str, str], model: float | None
) -> Trial:
    return Trial(changes, analytic.plan(_changed(request, changes), topology, model))


def _changed(request: Request, changes: Mapping[str, str]) -> Request:
    return dataclasses.replace(
        request,
        experiment=flags.override(request.experiment, changes),
        overrides={**request.overrides, **changes},
    )


def _meshes(request: Request, topology: Topology) -> Iterator[dict[str, str]]:
    """Meshes worth a look, as changes: one axis beside data and fsdp splits layers, or two."""
    experiment, devices = request.experiment, len(topology.devices)
    fixed = {
        axis: int(request.overrides[f"mesh.{axis}"])
        for axis in AXES
        if f"mesh.{axis}" in request.overrides and request.overrides[f"mesh.{axis}"] != "-1"
    }
    usable = _usable(experiment)
    choices = {
        axis: (fixed[axis],) if axis in fixed else _SPLITS if axis in usable else (1,)
        for axis in ("pipeline", "expert", "sequence", "tensor")
    }
    seen = set()
    for sizes in itertools.product(*choices.values()):
        split = dict(zip(choices, sizes, strict=True))
        free = [n for axis, n in split.items() if n > 1 and axis not in fixed]
        if len(free) > 1 or devices % math.prod(sizes):
            continue
        rest = devices // math.prod(sizes)
        node = math.gcd(rest, topology.chip.devices_per_host)
        for fsdp in (fixed["fsdp"],) if "fsdp" in fixed else sorted({1, node, rest}):
            mesh = {**split, "fsdp": fsdp, "data": rest // fsdp}
            known = all(mesh[axis] == n for axis, n in fixed.items())
            key = tuple(mesh[axis] for axis in AXES)
            if rest % fsdp == 0 and known and key not in seen:
                seen.add(key)
                yield {f"mesh.{axis}": str(mesh[axis]) for axis in AXES}


def _usable(experiment: Experiment) -> set[str]:
    """Axes beside data and fsdp that the model makes something of."""
    model = experiment.task.model
    layout = getattr(model, "layout", Layout())
    used = used_axes(experiment.mesh.rules or layout.rules, layout)
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
        say(f"compiling {len(done) + 1}: {_mesh(one.plan)}, remat {remat}, {parts} micro-batches")
        done.append(Trial(one.changes, compile.plan(_changed(request, one.changes), topology)))
    return done


def _nothing_fits(trials: list[Trial], topology: Topology) -> str:
    def needed(one: Trial) -> float:
        plan = one.plan
        return plan.memory.total if plan.memory else plan.refusal.needed or math.inf

    closest = min(trials, key=needed)
    over = needed(closest) - topology.available
    shown = ", ".join(f"{k}={v}" for k, v in closest.changes.items() if v != "1")
    offload = "" if analytic.is_gpu(topology.name) else "mesh.offload=True, "
    return (
        f"--fit: none of {len(trials)} plans fits {topology.name}; the closest ({shown}) needs "
        f"{amount(over)} more on each device. More chips would help, or {offload}"
        "train.params=bfloat16, or a smaller train.batch_size."
    )
