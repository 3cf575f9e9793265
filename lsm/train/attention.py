"""Pictures of what a translation looks at in its source."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from lsm.errors import ConfigError
from lsm.evaluate.drawing import draw_attention
from lsm.files import atomic_write, expanded
from lsm.tasks import Batch, SequenceToSequence
from lsm.tasks.texts import sequences
from lsm.train.trained import Trained


def attention_maps(
    trained: Trained, given: str | Sequence[str] | Batch, folder: os.PathLike | str
) -> list[pathlib.Path]:
    """Draws the attention of each text's translation to the text: `attention_1.png`, ...

    Rows are the tokens that the search found, columns those of the source. A row shows the weights
    with which the decoder's last block read the source to choose its token, as means over heads.

    Args:
      trained: of the task `lsm.tasks.SequenceToSequence`.
      given: source texts; or the source's columns as the model reads them.
      folder: where the pictures go, such as the workdir.

    Raises:
      ConfigError: the run is of another task.
      DataError: texts cannot be read.
      TrainingError: a picture cannot be written.
    """
    task = trained.experiment.task
    if not isinstance(task, SequenceToSequence):
        raise ConfigError(
            f"attention_maps: the task is {type(task).__name__}; SequenceToSequence is needed."
        )
    if not isinstance(given, Mapping):
        given, _ = trained.inputs_known.asked(task.source, given)
    found = trained.answered(given)
    written_BxT, source = found["tokens"], sequences(given, task.source, "task.source")
    # What the decoder had read when it chose: the begin token, and each token but the last.
    read_BxT = np.roll(written_BxT, 1, axis=1)
    read_BxT[:, 0] = task.begin
    variables = {"params": trained.params, **trained.model_state}
    weigh = jax.jit(lambda variables, texts: task.model.apply(variables, texts, method="attention"))
    weights_BxTxS = np.asarray(weigh(variables, (source, read_BxT)).mean(1))
    names = trained.inputs and trained.inputs.called(task)

    def named(tokens_T: np.ndarray) -> list[str]:
        return [names[k] if names else str(k) for k in tokens_T.tolist()]

    paths = []
    for row, (s, t) in enumerate(zip(source.lengths_B, found["length"], strict=True)):
        told = (named(np.asarray(source.tokens_BxT)[row, :s]), named(written_BxT[row, :t]))
        paths.append(expanded(folder, "folder") / f"attention_{row + 1}.png")
        atomic_write(paths[-1], draw_attention(weights_BxTxS[row, :t, :s], *told))
    return paths
