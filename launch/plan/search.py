"""The fastest plan that fits: mesh, rematerialisation and accumulation, at the recipe's batch.

The batch and everything else that changes what is learnt stay as they are. Candidates are compiled
without optimisation and compared with each other; the best that then fits is compiled in full.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

import jax

from launch.plan import compiled
from launch.plan.compiled import Request
from launch.plan.report import Plan
from launch.plan.sections import Section, amount, duration
from launch.plan.topology import PlanError, Topology
from lsm.config import flags
from lsm.errors import ConfigError, LsmError, MeshError
from lsm.mesh import AXES, BATCH_AXES, Layout, make_mesh, used_axes
from lsm.train import abstract_batch

COMPILED = 4  # candidates compiled in full, at most
MARGIN = 0.03  # what other axes than data and fsdp have to gain; less is within the error

_REMAT, _ACCUMULATION = "task.model.transformer.remat", "train.accumulation"
# Axes that split single layers or the stack of them; 2, 4 and 8 ways are tried.
_SPLITTING = ("tensor", "sequence", "pipeline", "expert")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate and what came of it."""

    changes: Mapping[str, str]  # what it sets, {"mesh.fsdp": "4", ...}
    plan: Plan

    @property
    def rank(self) -> float:
        """Middle of the projected step, `MARGIN` more for every axis that splits layers.

        Infinite where it does not fit.
        """
        if not self.plan.fits:
            return math.inf
        split = sum(self.plan.run.mesh[axis] > 1 for axis in _SPLITTING)
        return _middle(self.plan.projection.step_seconds) * (1 + MARGIN * split)

    @property
    def needed(self) -> float:
        """Bytes that it needs on each device; infinite where the compiler does not say."""
        plan = self.plan
        return plan.memory.total if plan.memory else plan.refusal.needed or math.inf

    @property
    def name(self) -> str:
        """What it is, in words."""
        run = self.plan.run
        mesh = " x ".join(f"{axis}={n}" for axis, n in run.mesh.items() if n > 1) or "one device"
        return f"{mesh}, remat {self.changes.get(_REMAT, 'as given')}, {run.accumulation} parts"

    @property
    def row(self) -> tuple[str, ...]:
        """What it is, memory, whether it fits, time of a step, MFU: as words."""
        size = amount(self.needed) if self.needed < math.inf else "-"
        ends, fits = self.plan.projection, "yes" if self.plan.fits else "no"
        step = duration(_middle(ends.step_seconds)) if ends else "-"
        return self.name, size, fits, step, f"{_middle(ends.mfu):.1%}" if ends else "-"


def _middle(ends: tuple[float, float]) -> float:
    return math.sqrt(math.prod(ends))


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a search found."""

    best: Trial  # the fastest that fits, compiled in full
    tried: tuple[Trial, ...]  # every candidate, compiled quickly, fastest first
    flags: tuple[str, ...]  # what to add to the command, ("--config.mesh.fsdp=4", ...)

    def table(self) -> Section:
        """Returns the candidates, fastest first, and the flags of the best."""
        told = "Add to the command: " + (" ".join(self.flags) or "nothing, it is the best")
        columns, rows = ("plan", "memory", "fits", "step", "MFU"), [one.row for one in self.tried]
        return Section("Plans tried, the best first", columns, rows, [told])


def search(request: Request, topology: Topology, say: Callable[[str], None]) -> Choice:
    """Returns the fastest plan that fits; what `request.overrides` sets stays as it is.

    `say` takes a line of progress at a time.

    Raises:
      PlanError: nothing fits.
      MeshError: no mesh suits the model and the batch.
    """
    trials = sorted(_Search(request, topology, say).all(), key=lambda one: (one.rank, one.needed))
    whole = []
    for one in [one for one in trials if one.plan.fits][:COMPILED]:
        say(f"compiling {one.name}")
        best = Trial(one.changes, compiled.plan(_changed(request, one.changes), topology))
        whole.append(best)
        if best.plan.fits:
            now = {path: str(attrgetter(path)(request.experiment)) for path in one.changes}
            new = {path: text for path, text in one.changes.items() if text != now[path]}
            return Choice(best, tuple(trials), tuple(f"--config.{k}={v}" for k, v in new.items()))
    raise PlanError(_nothing_fits(len(trials), whole or trials, topology))


def _changed(request: Request, changes: Mapping[str, str]) -> Request:
    overrides = {**request.overrides, **changes}
    experiment = flags.override(request.experiment, changes)
    return dataclasses.replace(request, experiment=experiment, overrides=overrides)


def _nothing_fits(count: int, trials: list[Trial], topology: Topology) -> str:
    closest = min(trials, key=lambda one: one.needed)
    shown = ", ".join(f"{k}={v}" for k, v in closest.changes.items() if v != "1")
    over = f" is {shown}"
    if closest.needed < math.inf:
        over = f" ({shown}) needs {amount(closest.needed - topology.available)} more on each device"
    several = f"{topology.slices} slices of " if topology.slices > 1 else ""
    return (
        f"--fit: none of {count} plans fits {several}{topology.name}; the closest{over}. More "
        "chips would help, or mesh.offload=True, train.params=bfloat16, or a smaller "
        "train.batch_size."
    )


def _has_batch_norm(request: Request) -> bool:
    """Whether the model keeps statistics of its batches."""
    task = request.experiment.task
    batch, _ = abstract_batch(request.experiment, request.data_dir)
    _, model_state = jax.eval_shape(task.init, jax.random.key(0), batch)
    return "batch_stats" in model_state


class _Search:
    """The candidates of a request, one after the other."""

    def __init__(self, request: Request, topology: Topology, say: Callable[[str], None]):
        self.request, self.topology, self.say = request, topology, say
        given = {axis: getattr(request.experiment.mesh, axis) for axis in AXES}
        on_line = [axis for axis in AXES if f"mesh.{axis}" in request.overrides]
        self.fixed = {axis: given[axis] for axis in on_line if given[axis] != -1}
        # More micro-batches are other statistics of a batch norm, so another run.
        self.parts_fixed = _ACCUMULATION in request.overrides or _has_batch_norm(request)
        self.trials: list[Trial] = []
        self.error: LsmError = MeshError("mesh: no mesh suits the model and the batch.")

    def all(self) -> list[Trial]:
        """Plain meshes with every policy that is worth it, then axes that split the best of them.

        An axis gets more ways as long as that gains, or nothing fits. The host's memory is tried
        only where nothing else fits.
        """
        model = self.request.experiment.task.model
        free = hasattr(model, "transformer") and _REMAT not in self.request.overrides
        # Of data and fsdp: over all devices, those of a slice, of a node, or one.
        slice_size = self.topology.size // self.topology.slices
        most = self.topology.size, slice_size, self.topology.chip.devices_per_host, 1
        plain = [*{str(mesh): mesh for mesh in (self._mesh(self.fixed, n) for n in most)}.values()]
        self._try_meshes(plain, ("none", "dots", "full") if free else (None,))
        best = min(self.trials, key=lambda one: (one.rank, one.needed), default=None)
        policy = best.changes.get(_REMAT) if best else "full" if free else None
        for axis in self._usable():
            least = best.rank if best else math.inf
            whole = best.plan.run.mesh["fsdp"] if best else slice_size
            for ways in (2, 4, 8):
                mesh = self._mesh({**self.fixed, axis: ways}, max(whole // ways, 1))
                rank = self._try_meshes([mesh], (policy,))
                if rank >= least and least < math.inf:
                    break
                least = rank
        if free and not any(one.plan.fits for one in self.trials):
            self._try_meshes(plain, ("offload",))
        if not self.trials:
            make_mesh(self.request.experiment.mesh, self.topology.devices)  # says what is wrong
            raise self.error
        return self.trials

    def _mesh(self, split: Mapping[str, int], most: int) -> dict[str, int]:
        """The mesh with so many ways of other axes, and of fsdp what is set, or `most`."""
        mesh = dict.fromkeys(AXES, 1) | split
        rest = self.topology.size // math.prod(mesh[axis] for axis in _SPLITTING)
        left = rest // self.fixed["data"] if "data" in self.fixed else math.gcd(rest, most)
        fsdp = self.fixed.get("fsdp", left) or 1
        return {**mesh, "fsdp": fsdp, "data": rest // fsdp}

    def _usable(self) -> list[str]:
        """Axes that split layers, which the model makes something of and nobody has set."""
        model = self.request.experiment.task.model
        layout = getattr(model, "layout", Layout())
        used = used_axes(self.request.experiment.mesh.rules or layout.rules, layout)
        if not getattr(getattr(model, "transformer", None), "experts", None):
            used.discard("expert")
        return [axis for axis in _SPLITTING if axis in used and axis not in self.fixed]

    def _try_meshes(
        self, meshes: Iterable[dict[str, int]], policies: tuple[str | None, ...]
    ) -> float:
        """Tries policies on each mesh, until the next would only compute more.

        Returns the least rank of these; keeps why a mesh was none, if one was.
        """
        before = len(self.trials)
        for mesh in meshes:
            as_set = all(mesh[axis] == n for axis, n in self.fixed.items())
            if not as_set or math.prod(mesh.values()) != self.topology.size:
                continue
            changes = {f"mesh.{axis}": str(mesh[axis]) for axis in AXES}
            try:
                for policy in policies:
                    plan = self._fewest_parts(changes | ({_REMAT: policy} if policy else {}))
                    whole = plan.fits and plan.run.accumulation == 1
                    if whole or (plan.refusal and plan.refusal.program == "state"):
                        break
            except (MeshError, ConfigError) as failed:
                self.error = failed
        return min((one.rank for one in self.trials[before:]), default=math.inf)

    def _fewest_parts(self, changes: dict[str, str]) -> Plan:
        """The plan with the fewest micro-batches that fit, judged by that with the most.

        Memory grows with the rows of a micro-batch, at most in proportion.
        """
        ways = math.prod(int(changes[f"mesh.{axis}"]) for axis in BATCH_AXES)
        rows, odd = divmod(self.request.experiment.train.batch_size, ways)
        if self.parts_fixed or odd or not rows:  # of a batch that does not divide it is an error
            return self._try(changes)
        most = self._try({**changes, _ACCUMULATION: str(rows)})
        if not most.fits:
            return most
        room = most.memory.available - most.memory.total + most.memory.temporaries
        least = math.ceil(rows * most.memory.temporaries / room)
        parts = next(n for n in range(max(least, 1), rows + 1) if rows % n == 0)
        more = most if parts == rows else self._try({**changes, _ACCUMULATION: str(parts)})
        return more if more.fits else most

    def _try(self, changes: Mapping[str, str]) -> Plan:
        plan = compiled.plan(_changed(self.request, changes), self.topology, quick=True)
        self.trials.append(Trial(changes, plan))
        name, size, fits, step, mfu = self.trials[-1].row
        self.say(f"{len(self.trials):3}. {name}: {size}, fits: {fits}, step {step}, MFU {mfu}")
        return plan
