"""Direct preference optimisation: of two answers to a prompt, the better one becomes likelier."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lsm.checks import require
from lsm.errors import ConfigError, DataError
from lsm.metrics import Weighted, weigh
from lsm.models import Lora
from lsm.tasks.base import CONSTANTS, LOSSES, Batch, ModelState, Params, Rngs, Task
from lsm.tasks.columns import column
from lsm.tasks.language import LanguageModelling
from lsm.tasks.texts import LENGTH

REFERENCE = "reference"
"""In `CONSTANTS`, the parameters that the model begins with, where it is no `Lora`."""


class Rewards(NamedTuple):
    """What the model says of pairs, more than the reference does.

    Attributes:
      chosen_B: float32, beta x the log of how much likelier it finds the better answer.
      rejected_B: likewise of the other.
    """

    chosen_B: jax.Array
    rejected_B: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectPreference(Task):
    """DPO (arXiv:2305.18290) of language models, with what the model began as for a reference.

    The loss of a pair is -log sigmoid(h), where h is the reward of the better answer less that of
    the other, and a reward is beta x (log probability of the answer - that by the reference). The
    reference of a `lsm.models.Lora` is the model without its adapters. Of any other model it is a
    copy of the parameters, in the collection "constants" under "reference", which a start fills
    too: `Start(path, rename=(("^constants/reference/", "params/"),))`.

    Attributes:
      model: as of `LanguageModelling`.
      chosen: column NAME of int tokens (B, T + 1), prompt and better answer; NAME_weight (B, T) is
        1 for each token behind the first that is of the answer. `lsm.data.Preferences` has both.
      rejected: likewise with the other answer.
      beta: how dear it is to move away from the reference.
      label_smoothing: share of pairs that may be labelled the wrong way round (conservative DPO,
        Mitchell 2023), in training only.
      chunks: as of `LanguageModelling`.
    """

    unit: ClassVar[str] = "pairs"
    chosen: str = "chosen"
    rejected: str = "rejected"
    beta: float = 0.1
    label_smoothing: float = 0.0
    chunks: int = 1

    def __post_init__(self):
        require(self, beta="(0, inf)", label_smoothing="[0, 0.5)")
        if isinstance(self.model, Lora) and self.model.trained is not None:
            raise ConfigError(
                f"task.model.trained: {self.model.trained!r} given; the reference would change "
                "with it, so that allowed is None."
            )
        _ = self._language  # which checks the rest

    @property
    def _language(self) -> LanguageModelling:
        """What gives the probabilities of tokens."""
        return LanguageModelling(model=self.model, chunks=self.chunks)

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns the tokens of both answers (2 B, T), of a pair next to each other."""
        return self._language.inputs(self._rows(batch))

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, ModelState]:
        """As `Task.init`, with the reference."""
        params, model_state = super().init(key, batch)
        if isinstance(self.model, Lora):
            return params, model_state
        constants = {**model_state.get(CONSTANTS, {}), REFERENCE: params}
        return params, {**model_state, CONSTANTS: constants}

    def forward(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs,
        train: bool,
        step: jax.Array,
    ) -> tuple[Rewards, ModelState]:
        """As `Task.forward`; the outputs are rewards."""
        frozen = {} if isinstance(self.model, Lora) else model_state[CONSTANTS][REFERENCE]
        call = (model_state, batch, rngs)
        reference_Bx2, _ = self._log_probabilities(frozen, *call, False, step)
        found_Bx2, changed = self._log_probabilities(params, *call, train, step)
        rewards_Bx2 = self.beta * (found_Bx2 - reference_Bx2)
        if LOSSES in changed:  # of both answers: one value a pair is needed
            changed = {**changed, LOSSES: jax.tree.map(_by_pair, changed[LOSSES])}
        return Rewards(rewards_Bx2[:, 0], rewards_Bx2[:, 1]), changed

    def metrics(
        self, outputs: Rewards, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss", "accuracy" (whether the better answer has the higher reward), "margin".

        The margin is the difference of the rewards, which are there too: "chosen_reward" and
        "rejected_reward". In evaluation no label is smoothed.
        """
        margin_B = outputs.chosen_B - outputs.rejected_B
        wrong = self.label_smoothing if train else 0.0
        loss_B = -(1 - wrong) * jax.nn.log_sigmoid(margin_B) - wrong * jax.nn.log_sigmoid(-margin_B)
        figures = {
            "loss": loss_B,
            "accuracy": (margin_B > 0).astype(jnp.float32),
            "margin": margin_B,
            "chosen_reward": outputs.chosen_B,
            "rejected_reward": outputs.rejected_B,
        }
        return {name: weigh(x_B, batch.get("weight")) for name, x_B in figures.items()}

    def predictions(self, outputs: Rewards, batch: Batch) -> dict[str, jax.Array]:
        """Returns "chosen_reward" and "rejected_reward" (B,) float32."""
        return {"chosen_reward": outputs.chosen_B, "rejected_reward": outputs.rejected_B}

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns, unknown tokens or too long a sequence."""
        for field in ("chosen", "rejected"):
            name = getattr(self, field)
            tokens_BxT1 = column(batch, name, f"task.{field}")
            dataclasses.replace(self._language, tokens=name).check(batch)
            weights = column(batch, f"{name}_weight", f"task.{field}")
            rows, length = tokens_BxT1.shape
            if weights.shape != (rows, length - 1):
                raise DataError(
                    f"task.{field}: column '{name}_weight' is {weights.shape}; for tokens "
                    f"{tokens_BxT1.shape} it must be {(rows, length - 1)}."
                )
        chosen, rejected = (batch[name].shape for name in (self.chosen, self.rejected))
        if chosen != rejected:
            raise DataError(
                f"task.rejected: {rejected} given; it must be as task.chosen, {chosen}."
            )

    def _rows(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Both answers as a batch of `LanguageModelling`: (2 B, ...), of a pair side by side."""

        def rows(end: str) -> jax.Array:
            both = [
                column(batch, name + end, field)
                for name, field in ((self.chosen, "task.chosen"), (self.rejected, "task.rejected"))
            ]
            # Row by row, so that on a mesh each stays where it is.
            return jnp.stack(both, axis=1).reshape(-1, *both[0].shape[1:])

        found = {"tokens": rows(""), "weight": rows("_weight")}
        if self.chosen + LENGTH in batch and self.rejected + LENGTH in batch:
            found["tokens" + LENGTH] = rows(LENGTH)
        return found

    def _log_probabilities(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs,
        train: bool,
        step: jax.Array,
    ) -> tuple[jax.Array, ModelState]:
        """Returns the log probabilities of both answers (B, 2), in nats, and what changed."""
        language, rows = self._language, self._rows(batch)
        outputs, changed = language.forward(params, model_state, rows, rngs, train, step)
        found_2BxT = language.predictions(outputs, rows)["log_probability"]
        weights_2BxT = language.weights(rows, train)
        # Where nothing is weighed, as behind the end, an infinity would become NaN.
        sums_2B = jnp.where(weights_2BxT > 0, found_2BxT * weights_2BxT, 0).sum(1)
        return sums_2B.reshape(-1, 2), changed


def _by_pair(x: jax.Array) -> jax.Array:
    return x if not x.shape else x.reshape(-1, 2, *x.shape[1:]).mean(1)
