"""Checkpoints: atomic, asynchronous, checked before they are read back (Orbax underneath)."""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lsm import distributed
from lsm.errors import CheckpointError
from lsm.paths import path_name

_TEMPORARY = "*.orbax-checkpoint-tmp*"
_OVERHEAD = 1 << 18
"""Bytes that a checkpoint takes beside its arrays, at the most."""


class Checkpoints:
    """The checkpoints of one run, in `directory/STEP/`; the latest few and the best are kept.

    A checkpoint appears under its final name only when it is whole. Beside the arrays it holds
    `meta`: the path, shape, dtype and checksum of every leaf, and the progress of the run as JSON.
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
          checksums: compiled form of `lsm.checkpoint.checksums`.
          read_only: the directory must exist, and nothing in it is touched.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        self.directory = pathlib.Path(directory).absolute()
        self._checksums = checksums or globals()["checksums"]
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            create=not read_only,
        )
        if not read_only:
            self._remove_partial()
            distributed.wait_for_all("the opening of the checkpoints")
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=("state", "meta")
        )

    def steps(self) -> list[int]:
        """Returns the steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return max(self.steps(), default=None)

    def save(
        self, step: int, state: Any, progress: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Starts saving `state` in the background; does nothing where `step` is saved already.

        Args:
          step: name of the checkpoint.
          state: pytree of arrays; its buffers may be donated as soon as this returns.
          progress: JSON that `restore` gives back.
          score: where evaluated: higher is better; the best one is kept.

        Raises:
          CheckpointError: this save or an earlier background one could not be written.
        """
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        meta = {
            "spec": spec_of(state),
            "progress": dict(progress),
            "checksums": self._sums(state),
        }
        meta["checksum"] = _checksum_of_json(meta)
        self.wait()
        self._check_space(state)
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
                metrics=None if score is None else {"score": score},
            )

    def progress(self, step: int) -> dict[str, Any]:
        """Returns the progress saved at `step`."""
        return self._meta(step)["progress"]

    def restore(self, abstract_state: Any, step: int) -> Any:
        """Returns the state saved at `step`, placed as `abstract_state` says.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings.
          step: one of `steps()`.

        Raises:
          CheckpointError: the checkpoint is damaged, or is of another model: the first leaf that
            differs in path, shape or dtype is named.
        """
        import orbax.checkpoint as ocp

        meta = self._meta(step)
        _check_spec(meta["spec"], spec_of(abstract_state), self.directory / str(step))
        with _quiet():
            try:
                restored = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
                )
            except Exception as error:
                time.sleep(0.5)  # for the reads of other leaves to end, in the quiet
                raise self._damaged(step, error) from error
        wrong = [
            path
            for path, value in self._sums(restored["state"]).items()
            if value != meta["checksums"][path]
        ]
        if wrong:
            raise self._damaged(step, ValueError(f"the checksum of {wrong[0]!r} differs"))
        return restored["state"]

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
            if meta.pop("checksum") != _checksum_of_json(meta):
                raise ValueError("the checksum of its description differs")
            return meta
        except Exception as error:
            raise self._damaged(step, error) from error

    def _sums(self, state: Any) -> dict[str, int]:
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(self._checksums(state)))
        return {path_name(path): int(value) for path, value in leaves}

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        earlier = [s for s in self.steps() if s < step]
        way = f"continue from step {earlier[-1]}" if earlier else "start again"
        reason = " ".join(str(error).split())[:160]
        return CheckpointError(
            f"checkpoint {self.directory / str(step)} cannot be read "
            f"({type(error).__name__}: {reason}); remove that folder to {way}."
        )

    def _writing(self) -> "_Writing":
        return _Writing(self)

    def _remove_partial(self) -> None:
        if not distributed.is_first():
            return
        for partial in self.directory.glob(_TEMPORARY):
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Closes the process's stderr for a while.

    Where one leaf cannot be read, the reads of the others go on and each prints a traceback, from
    native threads, that its event loop is gone.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Writing:
    """Turns any failure to write into a CheckpointError, and removes what was half written."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception):
            self.checkpoints._remove_partial()
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"cannot save to {self.checkpoints.directory}: {reason}; "
                f"{self.checkpoints._intact()}."
            ) from error


def _local_bytes(leaf: jax.Array) -> int:
    shards = leaf.addressable_shards
    return sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)


def checksums(state: Any) -> Any:
    """Returns a uint32 for every leaf of `state`, which any single wrong bit changes.

    It is the sum, modulo 2^32, of the elements' bits times an odd weight for each place: whole
    numbers, so that any sharding and any order of adding give the same.
    """
    return jax.tree.map(_checksum, state)


def _checksum(leaf: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    place, stride = jnp.uint32(0), 1
    for dim in reversed(range(leaf.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dim) * jnp.uint32(stride)
        stride = stride * leaf.shape[dim] % 2**32
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


def _checksum_of_json(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def spec_of(state: Any) -> dict[str, list]:
    """Returns {path: [shape, dtype]} of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def _check_spec(saved: dict[str, list], wanted: dict[str, list], where: pathlib.Path) -> None:
    if saved == wanted:
        return
    missing = [path for path in wanted if path not in saved]
    extra = [path for path in saved if path not in wanted]
    changed = [path for path in wanted if path in saved and saved[path] != wanted[path]]
    parts = []
    if changed:
        (old_shape, old_dtype), (new_shape, new_dtype) = saved[changed[0]], wanted[changed[0]]
        parts.append(
            f"{changed[0]!r} is {tuple(old_shape)} {old_dtype} there and "
            f"{tuple(new_shape)} {new_dtype} here"
        )
    parts += [f"{path!r} is not in it" for path in missing[:1]]
    parts += [f"it has {path!r}, which this model has not" for path in extra[:1]]
    count = len(missing) + len(extra) + len(changed)
    raise CheckpointError(
        f"checkpoint {where} is of another model: {'; '.join(parts)} ({count} leaves differ); "
        "use its own config, or another --workdir."
    )
