"""What is here for XLA's CPU back end alone, and why; docs/cpu_speed.md has the figures.

Everything in this room computes what its plain form computes, and costs an accelerator nothing: a
reshape, another order of the same work, an option that is not set there.

- `dot_rows`, `by_rows`, `as_rows`: a dense layer on (B, T, D) as one on (B x T, D). Its gradient
  would else contract two dimensions, which runs in a slow loop: a GPT is 1.6 times slower.
- `mean_of_rows`: a sum over rows as a product; XLA makes several passes of it.
- `max_pool_2x2`, `max_pool_3x3`: with gradients of their own; that of `reduce_window` takes ten
  times as long (four to eighteen).
- `conv`: a convolution whose kernel's gradient is made of products where it is large: XLA's own
  takes two to four times as long.
- `TWO_PASS`: a layer norm's variance from the centred values; one pass over x and x^2 is 8 % slower
  here (and less exact everywhere).
- `keep_memory`: glibc keeps freed memory for the next step; a fifth of the time of a small GPT.
- `compiler_options`: which library computes products, and how much a program is optimised.
- `cores`: how many there are to work with.
- `emulates_bfloat16`: whether it saves nothing here.
- `unroll_micro_batches`: a convolution in a loop is ten times slower.

In two places outside: attention keeps the queries of a group in one dimension, since products of
more dimensions are slow here, and the same elsewhere; and a barrier keeps the gradient of learned
positions apart from the sums that it is made of.
"""

from lsm.cpu.convolution import conv
from lsm.cpu.features import cores, emulates_bfloat16
from lsm.cpu.heap import keep_memory
from lsm.cpu.options import Calls, compiler_options
from lsm.cpu.pooling import max_pool_2x2, max_pool_3x3
from lsm.cpu.rows import as_rows, by_rows, dot_rows, mean_of_rows

TWO_PASS = {"use_fast_variance": False}
"""For `nn.LayerNorm`."""


def unroll_micro_batches(platform: str) -> bool:
    """Returns whether to write micro-batches out instead of looping over them."""
    return platform == "cpu"


__all__ = [
    "TWO_PASS",
    "Calls",
    "as_rows",
    "by_rows",
    "compiler_options",
    "conv",
    "cores",
    "dot_rows",
    "emulates_bfloat16",
    "keep_memory",
    "max_pool_2x2",
    "max_pool_3x3",
    "mean_of_rows",
    "unroll_micro_batches",
]
