"""The model card of an export, in Hugging Face's form: what it is, how good, how it is used."""

import json
import math
import pathlib

from lsm.config import schema
from lsm.errors import TrainingError
from lsm.export.artefact import PREDICT, Signature
from lsm.export.spec import shown
from lsm.models.around import Around
from lsm.models.quantised import float_shape
from lsm.models.whole_layers import SCALE
from lsm.params import flat
from lsm.run.result import Result
from lsm.tasks import (
    CONSTANTS,
    LanguageModelling,
    MaskedLanguageModelling,
    Regression,
    SequenceToSequence,
    Task,
    TextClassification,
)
from lsm.train.trained import Trained

_KINDS: dict[type[Task], str] = {
    MaskedLanguageModelling: "fill-mask",
    LanguageModelling: "text-generation",
    SequenceToSequence: "translation",
    TextClassification: "text-classification",
    Regression: "tabular-regression",
}


def card(signature: Signature, run: Trained, told: str = "") -> str:
    """Returns the text of README.md.

    Args:
      signature: of the export.
      run: the model.
      told: what is said of how good it is.
    """
    parts = [_metadata(run), f"# {run.experiment.name}", _what(run, signature)]
    parts += [told, _trained_on(run), _use(signature)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(run: Trained) -> str:
    task, inputs = run.experiment.task, run.inputs_known
    kinds = [kind for cls, kind in _KINDS.items() if isinstance(task, cls)]
    pictures = any(inputs.kind(name) == "pictures" for name in run.columns)
    kinds += ["image-classification"] if pictures and not kinds else []
    lines = ["library_name: jax", *(f"pipeline_tag: {kind}" for kind in kinds[:1])]
    lines += ["tags:", "- stablehlo", "- lsm"]
    return "\n".join(["---", *lines, "---"])


def _what(run: Trained, signature: Signature) -> str:
    task = run.experiment.task
    model, kind = task.model, type(task.model).__name__
    while isinstance(model, Around):
        model = model.model
        kind += f" {type(model).__name__}"
    return (
        f"A {kind} for {type(task).__name__} with {_parameters(run):,} parameters, after "
        f"{run.step:,} updates. Exported for {', '.join(signature.platforms)}."
    )


def _parameters(run: Trained) -> int:
    """How many numbers the model computes with, trained ones or not; without scales of others."""
    held = {"params": run.params, CONSTANTS: run.model_state.get(CONSTANTS, {})}
    arrays = flat(held)
    return sum(
        math.prod(float_shape(x)) if path + SCALE in arrays else x.size
        for path, x in arrays.items()
        if not path.endswith(SCALE)
    )


def figures(workdir: pathlib.Path, step: int) -> str:
    """Returns the figures of a run, by split; "" where it has no result.

    They are those of its last step, and left out where another is exported.
    """
    try:
        result = Result.load(workdir)
    except TrainingError:
        return ""
    rows = [
        f"| {split} | {name} | {value:.4g} |"
        for split, figures in result.metrics.items()
        for name, value in figures.items()
    ]
    if not rows:
        return ""
    if result.step != step:
        return f"The figures of the run are those of step {result.step:,}, which this is not."
    head = f"## Figures\n\nOf the run, which took {result.step:,} steps."
    return "\n".join([head, "", "| split | metric | value |", "|---|---|---|", *rows])


def _trained_on(run: Trained) -> str:
    parts = {name: getattr(run.experiment, name) for name in ("data", "train")}
    told = json.dumps({name: schema.to_json(part) for name, part in parts.items()}, indent=1)
    return f"## Trained on\n\n```json\n{told}\n```"


def _use(signature: Signature) -> str:
    function = signature.functions[PREDICT]
    takes = "\n".join(
        f"- takes `{n}`: {one.dtype} {shown(one.shape)}" for n, one in function.inputs.items()
    )
    gives = "\n".join(
        f"- gives `{n}`: {one.dtype} {shown(one.shape)}" for n, one in function.outputs.items()
    )
    arguments = ", ".join(f'"{name}": {name}' for name in function.inputs)
    lines = ["import lsm.export", "", 'model = lsm.export.load("FOLDER")']
    lines += [f"outputs = model({{{arguments}}})"]
    if signature.context:
        lines += [f"texts = model.generate([ids], max_tokens=64)  # of {signature.context} tokens"]
    made = ", ".join(f"{name} {version}" for name, version in signature.versions.items())
    code = "\n".join(["```python", *lines, "```"])
    needs = (
        "It needs jax, and lsm without what that needs "
        "(`pip install --no-deps .` in the clone of lsm):"
    )
    return "\n\n".join(["## Use", f"{takes}\n{gives}", needs, code, f"Made with {made}."])
