"""Makes an ONNX file of what a run has trained, in an environment that has jax2onnx.

In the clone of lsm:

    python -m venv onnx
    onnx/bin/pip install jax2onnx==0.17.1 "jax<0.11" onnxruntime typeguard pillow tokenizers
    onnx/bin/pip install --no-deps .
    onnx/bin/python -m lsm.export.onnx --workdir=RUN --out=FILE.onnx

An environment of its own, since jax2onnx wants an older Orbax and an older jax than lsm. The file
takes the columns that the model reads, of any number of examples, and gives what `Trained.predict`
does, by name; it is compared with that, by onnxruntime, before it is written.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.extend.core
import numpy as np
from absl import flags

import lsm
from lsm import command_line
from lsm.data.texts.encoder import LENGTH, TYPES
from lsm.errors import ConfigError, LsmError
from lsm.files import atomic_write, expanded
from lsm.train.trained import Trained

METADATA = "lsm"
"""The entry of the file's metadata that holds JSON: what `facts` returns."""

_TOLERANCE = 1e-5
_LARGEST = 2**31  # bytes of a protobuf


class DifferentAnswersError(LsmError):
    """The file does not say what the run says."""


def convert(workdir: os.PathLike | str, out: os.PathLike | str, step: Any = "best") -> float:
    """Writes the ONNX file of a run; returns how far its answers are from the run's, at most.

    Args:
      workdir: folder of the run.
      out: the file.
      step: which checkpoint, see `lsm.load`.

    Raises:
      ConfigError: jax2onnx is not here, or cannot convert this model.
      DifferentAnswersError: what it made gives other answers.
    """
    run = lsm.load(workdir, step=step, devices=jax.devices()[:1])
    columns = _columns(run)
    content = _converted(run, columns)
    apart = _apart(run, content, columns)
    if not apart <= _TOLERANCE:
        raise DifferentAnswersError(
            f"--workdir: {_kind(run)} in ONNX is {apart:.1g} from its answers; nothing is written."
        )
    atomic_write(expanded(out, "--out"), content)
    return apart


def facts(run: Trained) -> dict[str, Any]:
    """Returns what a caller must know: columns (shape and dtype of one example), labels."""
    columns = {
        name: {"shape": list(x.shape), "dtype": np.dtype(x.dtype).name}
        for name, x in _columns(run).items()
    }
    called = run.inputs_known.called(run.experiment.task)
    labels = [str(label) for label in called] if called else None
    return {"name": run.experiment.name, "step": run.step, "columns": columns, "labels": labels}


def _columns(run: Trained) -> dict[str, jax.ShapeDtypeStruct]:
    """The columns that the task's inputs are made of, of one example each."""
    known, asked = run.inputs_known, dict.fromkeys(run.columns)
    if known.encoder is not None:
        beside = [name + kind for name in asked for kind in (LENGTH, TYPES)]
        asked |= dict.fromkeys(sorted(name for name in beside if name in known.columns))
    return {name: known.columns[name] for name in asked}


def _function(run: Trained, names: Sequence[str]) -> tuple[Callable, list[str]]:
    """Returns a function of columns in order to what is predicted, in the order of its names."""
    task, spec = run.experiment.task, run.inputs_known.columns
    example = {n: jax.ShapeDtypeStruct((1, *spec[n].shape), spec[n].dtype) for n in names}
    said = sorted(jax.eval_shape(lambda b: task.predict(run.params, run.model_state, b), example))

    def predict(*columns: jax.Array) -> list[jax.Array]:
        batch = dict(zip(names, columns, strict=True))
        found = task.predict(run.params, run.model_state, batch)
        return [found[name] for name in said]

    return predict, said


def _converted(run: Trained, columns: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ConfigError(
            "lsm.export.onnx: jax2onnx is not installed; it wants an environment of its own, which "
            "`python -m lsm.export.onnx --help` says how to make."
        ) from error
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # else a line a value that has no type
    predict, said = _function(run, list(columns))
    (some,) = jax.export.symbolic_shape("batch")
    specs = [jax.ShapeDtypeStruct((some, *x.shape), x.dtype) for x in columns.values()]
    try:
        # As primitives: jax2onnx puts its own functions in the place of NumPy's while it traces.
        plain = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(predict)(*specs))
        names = {"input_names": list(columns), "output_names": said}
        model = to_onnx(lambda *x: plain(*x), specs, model_name=run.experiment.name, **names)
    except Exception as error:  # of any kind, out of whatever it did not foresee
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"--workdir: jax2onnx cannot convert {_kind(run)}: {type(error).__name__}: {reason}"
        ) from error
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(facts(run))
    if model.ByteSize() >= _LARGEST:
        raise ConfigError(
            f"--workdir: {_kind(run)} is {model.ByteSize():,} bytes; ONNX holds 2 GiB."
        )
    return model.SerializeToString()


def _apart(run: Trained, content: bytes, columns: Mapping[str, jax.ShapeDtypeStruct]) -> float:
    """Returns the largest difference of the file's answers, of one example and of several."""
    import onnxruntime

    batches = [{n: _drawn(run, n, x, rows) for n, x in columns.items()} for rows in (1, 5)]
    expected = [run.answered(batch) for batch in batches]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options)
        names = [output.name for output in session.get_outputs()]
        found = [session.run(names, batch) for batch in batches]
    except Exception as error:  # onnxruntime raises its own kinds, which have no common one
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"--workdir: onnxruntime cannot run {_kind(run)}: {reason}") from error
    apart = [
        _difference(answers[name], x)
        for answers, arrays in zip(expected, found, strict=True)
        for name, x in zip(names, arrays, strict=True)
    ]
    return float(np.max(apart))  # NaN where one is, which `max` would pass over


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest: NaN where one of both has NaN, and 0 between infinities that are equal."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(expected.astype(np.float64) - found)
    return np.where(expected == found, 0, apart).max(initial=0)


def _drawn(run: Trained, name: str, spec: jax.ShapeDtypeStruct, rows: int) -> np.ndarray:
    """Any values that a column can have."""
    rng, shape = np.random.default_rng(0), (rows, *spec.shape)
    if spec.dtype.kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    encoder = run.inputs_known.encoder
    if encoder is not None and name in encoder.columns:
        return rng.integers(0, len(encoder.names), shape, spec.dtype)
    if encoder is not None and not spec.shape:  # the lengths of texts
        return rng.integers(1, encoder.length, shape, spec.dtype, endpoint=True)
    return rng.integers(0, 256 if spec.dtype == np.uint8 else 2, shape, spec.dtype)


def _kind(run: Trained) -> str:
    return type(run.experiment.task.model).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run", given, required=True)
    flags.DEFINE_string("out", None, "the ONNX file", given, required=True)
    flags.DEFINE_string("step", "best", "its checkpoint: best, last or a step", given)
    return given


def _act(given: flags.FlagValues, words: list[str]) -> None:
    del words
    step = command_line.checkpoint(given)
    apart = convert(given.workdir, given.out, step)
    print(f"{given.out}: within {apart:.1g} of the run's answers by onnxruntime")


if __name__ == "__main__":
    sys.exit(main())
