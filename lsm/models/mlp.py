"""Multi-layer perceptron."""

from typing import ClassVar

import flax.linen as nn
import jax

from lsm.checks import require, require_sizes
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models.initializers import LECUN
from lsm.models.layers import Activation, Dtype, Initializer


class MLP(nn.Module):
    """Dense layers with an activation between them; inputs are flattened.

    Attributes:
      widths: units of each hidden layer.
      outputs: units of the last layer.
      activation: applied after every hidden layer.
      output_activation: applied to the outputs; None gives logits.
      dropout: share of hidden units dropped while training.
      kernel_init: initialiser of the kernels; biases start at 0.
      dtype: dtype of the computation.
    """

    layout: ClassVar[Layout] = Layout(
        # Columns, then rows, and so on: one all-reduce for each pair of layers.
        rules=(
            Rule(r"Dense_\d*[02468]/kernel$", ("fsdp", "tensor"), otherwise=Fsdp()),
            Rule(r"Dense_\d*[13579]/kernel$", ("tensor", "fsdp"), otherwise=Fsdp()),
            Rule(".*", Fsdp()),
        ),
        axes=("tensor",),
    )

    widths: tuple[int, ...] = (128,)
    outputs: int = 10
    activation: Activation = nn.relu
    output_activation: Activation | None = None
    dropout: float = 0.0
    kernel_init: Initializer = LECUN
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "widths", "outputs")
        require(self, dropout="[0, 1)")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, ...) to (B, outputs)."""
        x_BxD = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x_BxD = self._dense(width)(x_BxD)
            x_BxD = self.activation(x_BxD)
            x_BxD = nn.Dropout(self.dropout, deterministic=not train)(x_BxD)
        y_BxK = self._dense(self.outputs)(x_BxD)
        return self.output_activation(y_BxK) if self.output_activation else y_BxK

    def _dense(self, width: int) -> nn.Dense:
        return nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)
