"""Checkpoints: atomic, asynchronous, checked before they are read back (Orbax underneath)."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from lsm import processes
from lsm.errors import CheckpointError, shortened
from lsm.files import silent_stderr
from lsm.mesh import jit, replicated
from lsm.params import flat, nested, path_name
from lsm.run import saved
from lsm.run.saved import IN_STATE, TAUGHT_BY, spec_of
from lsm.tasks import CONSTANTS

_TEMPORARY = "*.orbax-checkpoint-tmp*"
_OVERHEAD = 1 << 18
"""Bytes that a checkpoint takes beside its arrays, at the most."""


class Checkpoints:
    """The checkpoints of one run, in `directory/STEP/`; the latest few and the best are kept.

    A checkpoint appears under its final name only when it is whole. Beside the arrays it holds
    `meta`: the path, shape, dtype and checksum of every leaf, and the progress of the run as JSON.
    What is under "model_state/constants" is the same in all of them: it is saved once, in
    `directory/constants/DIGEST/`, and `meta` names the digest. A teacher there is not saved at all;
    its checksums are.
    """

    def __init__(
        self,
        directory: os.PathLike | str,
        keep: int = 2,
        *,
        checksums: Callable[[Any], Any] | None = None,
        read_only: bool = False,
    ):
        """Opens or makes `directory`; removes what an interrupted save left behind.

        Args:
          directory: of this run's checkpoints.
          keep: how many of the latest are kept.
          checksums: compiled form of `lsm.run.saved.checksums`.
          read_only: the directory must exist, and nothing in it is touched.
        """
        # Orbax takes seconds to import: only where it is needed.
        import orbax.checkpoint as ocp

        _hush()
        self.directory = pathlib.Path(directory).absolute()
        self._checksums = checksums or saved.checksums
        self._kept = _Kept(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=self._kept, create=not read_only)
        if not read_only:
            self._remove_partial()
            # The manager looks what is there: not while process 0 still removes.
            processes.wait_for_all("the opening of the checkpoints")
        # Parameters and moments are almost random bits: zstd, Orbax's default, takes 8 % off them,
        # for more CPU time than all the rest of a save or a restore.
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "meta": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def steps(self) -> list[int]:
        """Returns the steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return max(self.steps(), default=None)

    def chosen(self) -> int | None:
        """Returns the best step where one was chosen and is kept, else the newest, or None."""
        latest = self.latest()
        if latest is None:
            return None
        best = self.progress(latest).get("best_step")
        return best if best in self.steps() else latest

    def spec(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns path -> shape and dtype of every leaf saved at `step`, but for random keys.

        What a student was taught by is not among them.
        """
        return {
            path: jax.ShapeDtypeStruct(tuple(shape), dtype)
            for path, (shape, dtype) in self._meta(step)["spec"].items()
            if not (dtype.startswith("key<") or path.startswith(TAUGHT_BY))
        }

    def empties(self, step: int) -> list[str]:
        """Returns the paths of empty dicts in the state saved at `step`."""
        return [p for p in self._meta(step).get("empty", []) if not p.startswith(TAUGHT_BY)]

    def save(self, step: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Starts saving `state` in the background; does nothing where `step` is saved already.

        Args:
          step: name of the checkpoint.
          state: pytree of arrays; its buffers may be donated as soon as this returns.
          progress: JSON that `progress` gives back; its "best_step" is kept.

        Raises:
          CheckpointError: this save or an earlier background one could not be written.
        """
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        meta = {
            "step": step,
            "spec": spec_of(state),
            "empty": saved.empties(state),
            "progress": dict(progress),
            "checksums": self._sums(state),
        }
        state, constants = saved.apart(state)
        if constants:
            meta[CONSTANTS] = saved.digest(meta)
            folder = self.directory / CONSTANTS / meta[CONSTANTS]
            # Process 0 says whether they are new, as a save needs all processes or none.
            new = processes.share("the constants", not folder.exists())
            constants = constants if new else None
        # Last, over all the rest of the description.
        meta["checksum"] = saved.checksum_of_json(meta)
        # An earlier save, in the background, takes space too; and here its error is told.
        self.wait()
        self._check_space((state, constants))
        self._kept.best = progress.get("best_step")
        with self._writing():
            # Waited for, unlike the state: a step must never name constants that are not whole.
            if constants:
                with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
                    checkpointer.save(folder, constants)
            kept = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )
        if not kept:
            raise CheckpointError(
                f"cannot save step {step} to {self.directory}: there is a later step, "
                f"{self.latest()}, which is not of this run; remove that folder."
            )

    def progress(self, step: int) -> dict[str, Any]:
        """Returns the progress saved at `step`."""
        return self._meta(step)["progress"]

    def restore(self, abstract_state: Any, step: int, teacher: Any = None) -> Any:
        """Returns the state saved at `step`, placed as `abstract_state` says.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings.
          step: one of `steps()`.
          teacher: the arrays of the teacher, where the state has one.

        Raises:
          CheckpointError: the checkpoint is damaged, or is of another model: the first leaf that
            differs in path, shape or dtype is named. Or the teacher is not the one it had.
        """
        import orbax.checkpoint as ocp

        meta = self._meta(step)
        saved.check_spec(meta["spec"], spec_of(abstract_state), self.directory / str(step))
        self._kept.best = meta["progress"].get("best_step")  # before anything new is saved
        abstract_state, constants = saved.apart(abstract_state)
        with self._reading(step):
            placed = jax.tree.map(_placed, abstract_state)
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(abstract_state, placed))
            state = self._manager.restore(step, args=args)["state"]
        if constants:
            constants = nested(self._read(step, CONSTANTS, meta, flat(constants)))
        if constants or teacher is not None:
            state = saved.together(state, constants, teacher)
        self._check_sums(step, meta, self._sums(state))
        return state

    def read(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Returns some of the leaves saved at `step`, by path; the others are not read.

        Args:
          step: one of `steps()`.
          wanted: path -> shape and dtype as `spec` says them, with a sharding.

        Raises:
          CheckpointError: the checkpoint is damaged.
        """
        if not wanted:
            return {}
        meta, found = self._meta(step), {}
        for item, constant in (("state", False), (CONSTANTS, True)):
            part = {p: x for p, x in wanted.items() if p.startswith(IN_STATE) == constant}
            if part:
                found |= self._read(step, item, meta, part)
        shardings = {path: leaf.sharding for path, leaf in wanted.items()}
        # Replicated, so that every process can read every sum.
        whole = replicated(next(iter(shardings.values())).mesh)
        sums = jit(saved.checksums, in_shardings=(shardings,), out_shardings=whole)(found)
        self._check_sums(step, meta, jax.device_get(sums))
        return found

    def wait(self) -> None:
        """Waits for background saves, and raises CheckpointError where one failed."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits, then frees the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _check_space(self, state: Any) -> None:
        """Refuses before anything is written: a disk that fills up meanwhile is told less well."""
        needed = sum(_local_bytes(leaf) for leaf in jax.tree.leaves(state)) + _OVERHEAD
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise CheckpointError(
                f"cannot save to {self.directory}: no space left on the disk, {needed:,} bytes are "
                f"needed and {free:,} are free; {self._intact()}."
            )

    def _intact(self) -> str:
        steps = self.steps()
        return f"step {steps[-1]} is intact" if steps else "there is no earlier checkpoint"

    def _meta(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        try:
            meta = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )["meta"]
            if meta.pop("checksum") != saved.checksum_of_json(meta):
                raise ValueError("the checksum of its description differs")
            # Not said by those of earlier versions.
            if meta.get("step", step) != step:
                raise ValueError(f"it is a copy of step {meta['step']}")
            return meta
        except Exception as error:
            raise self._damaged(step, error) from error

    def _read(
        self,
        step: int,
        item: str,
        meta: Mapping[str, Any],
        wanted: Mapping[str, jax.ShapeDtypeStruct],
    ) -> dict[str, jax.Array]:
        """Reads leaves, by path, of the item "state" or "constants"."""
        import orbax.checkpoint as ocp

        folder = self.directory / str(step) / item
        if item == CONSTANTS:
            folder = self.directory / CONSTANTS / meta[CONSTANTS]
        with self._reading(step, item), ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(folder).item_metadata
            if metadata is None:
                raise FileNotFoundError("files are missing")
            tree = metadata.tree
            # Orbax does not read what is a placeholder.
            tree = jax.tree_util.tree_map_with_path(
                lambda path, _: wanted.get(path_name(path), ocp.PLACEHOLDER), tree
            )
            restored = checkpointer.restore(
                folder,
                args=ocp.args.PyTreeRestore(tree, jax.tree.map(_placed, tree)),
            )
            return {path: leaf for path, leaf in flat(restored).items() if path in wanted}

    @contextlib.contextmanager
    def _reading(self, step: int, item: str = "state") -> Iterator[None]:
        """Turns any failure to read into one CheckpointError, and keeps native threads quiet."""
        # Where one leaf cannot be read, native threads print a traceback for each of the others.
        with silent_stderr():
            try:
                yield
            except Exception as error:
                time.sleep(0.5)  # for the reads of other leaves to end, in the quiet
                raise self._damaged(step, error, item) from error

    def _check_sums(self, step: int, meta: Mapping[str, Any], sums: Mapping[str, int]) -> None:
        wrong = [path for path, value in sums.items() if value != meta["checksums"][path]]
        if wrong and wrong[0].startswith(TAUGHT_BY[0]):
            path = wrong[0].removeprefix(TAUGHT_BY[0])
            raise CheckpointError(
                f"task.teacher: it has changed since step {step} of {self.directory} ({path!r} "
                "differs); give the one of before, or another --workdir."
            )
        if wrong:
            item = CONSTANTS if wrong[0].startswith(IN_STATE) else "state"
            raise self._damaged(step, ValueError(f"the checksum of {wrong[0]!r} differs"), item)

    def _sums(self, state: Any) -> dict[str, int]:
        return {path: int(x) for path, x in flat(jax.device_get(self._checksums(state))).items()}

    def _damaged(self, step: int, error: Exception, item: str = "state") -> CheckpointError:
        earlier = [s for s in self.steps() if s < step]
        way = f"continue from step {earlier[-1]}" if earlier else "start again"
        folder, remedy = self.directory / str(step), f"remove that folder to {way}"
        if item == CONSTANTS:
            folder = self.directory / CONSTANTS
            remedy = "every step needs it: restore it from elsewhere, or start again"
        reason = shortened(" ".join(str(error).split()), 240)
        return CheckpointError(
            f"checkpoint {folder} cannot be read ({type(error).__name__}: {reason}); {remedy}."
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns any failure to write into a CheckpointError, and removes what was half written."""
        try:
            yield
        except Exception as error:
            self._remove_partial()
            reason = shortened(" ".join(str(error).split()), 240)
            raise CheckpointError(
                f"cannot save to {self.directory}: {reason}; {self._intact()}."
            ) from error

    def _remove_partial(self) -> None:
        if not processes.is_first():
            return
        for folder in (self.directory, self.directory / CONSTANTS):
            for partial in folder.glob(_TEMPORARY):
                shutil.rmtree(partial, ignore_errors=True)


@functools.cache
def _hush() -> None:
    """Keeps Orbax from telling, in hundreds of lines, of failures that it raises as well.

    Its background threads log each of them, and TensorStore's find their event loop gone.
    """
    for name in ("absl", "asyncio"):  # asyncio tells of a read that failed after another had
        logging.getLogger(name).addFilter(_is_no_failure_of_orbax)
    hook = sys.unraisablehook

    def other_than_a_closed_loop(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = other_than_a_closed_loop


def _is_no_failure_of_orbax(record: logging.LogRecord) -> bool:
    said = record.pathname + record.getMessage()
    # TensorStore's own errors name no file of Orbax, but the specification of the array.
    return record.levelno < logging.ERROR or not ("orbax" in said or "tensorstore_spec" in said)


@dataclasses.dataclass
class _Kept:
    """Orbax's `PreservationPolicy`: the latest few, and the best, which the run's progress names.

    Orbax's own `BestN` forgets, when a run goes on, which one that was.
    """

    latest: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Says of each checkpoint, oldest first, whether it stays."""
        first = len(checkpoints) - self.latest
        return [i >= first or info.step == self.best for i, info in enumerate(checkpoints)]


def _placed(leaf: Any) -> Any:
    """Returns how Orbax is to restore a leaf, which is a ShapeDtypeStruct or its placeholder."""
    import orbax.checkpoint as ocp

    if leaf is ocp.PLACEHOLDER:
        return ocp.RestoreArgs()
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _local_bytes(leaf: jax.Array) -> int:
    # Of the copies of a shard only the first is written.
    shards = leaf.addressable_shards
    return sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
