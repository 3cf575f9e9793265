"""How the inputs of several requests become those of one call, and its outputs theirs again."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from launch.serve.models import Servable, batch_symbol
from lsm.data.texts.encoder import LENGTH

Arrays = dict[str, np.ndarray]

_SHORTEST = 16


def buckets(largest: int, smallest: int = 1) -> Iterator[int]:
    """Yields `smallest` times 1, 2, 4, ... below `largest`, and `largest`: what is compiled."""
    size = smallest
    while size < largest:
        yield size
        size *= 2
    yield largest


class Joiner:
    """Joins along the batch; pads rows, and lengths of which the model is told.

    Attributes:
      symbol: of the batch; None where the model has none, and nothing is joined.
    """

    def __init__(self, servable: Servable):
        self._servable, signature = servable, servable.signature
        self.symbol = batch_symbol(signature)
        self._lengths = _padded(servable, self.symbol)

    def rows(self, inputs: Arrays) -> int:
        """Returns how many rows `inputs` have; 1 without a batch."""
        return len(next(iter(inputs.values()))) if self.symbol else 1

    def sizes(self, inputs: Arrays) -> tuple[tuple[int, ...], ...]:
        """Returns the sizes of each input without the batch, lengths as they will be padded.

        Inputs for which they are the same can be joined.
        """
        skip = 1 if self.symbol else 0
        return tuple(
            tuple(
                self._length(symbol, size) if symbol in self._lengths else size
                for size, symbol in zip(inputs[name].shape[skip:], tensor.shape[skip:], strict=True)
            )
            for name, tensor in self._servable.signature.inputs.items()
        )

    def call(self, parts: Sequence[Arrays], bucket: int) -> list[Arrays]:
        """Computes `parts`, which have the same `sizes`, as one batch of `bucket` rows.

        Returns:
          The outputs of each, as if it had been alone.
        """
        sizes = dict(zip(self._servable.signature.inputs, self.sizes(parts[0]), strict=True))
        joined = {name: self._join(parts, name, bucket, rest) for name, rest in sizes.items()}
        outputs = {name: np.asarray(array) for name, array in self._servable(joined).items()}
        if not self.symbol:
            return [outputs]
        ends = np.cumsum([self.rows(part) for part in parts])
        return [
            self._own(outputs, part, end - self.rows(part))
            for part, end in zip(parts, ends, strict=True)
        ]

    def lengths(self) -> Iterator[dict[str, int]]:
        """Yields every choice of the lengths that inputs are padded to, where they end."""
        choices = [
            [(symbol, size) for size in buckets(self._most(symbol), _SHORTEST)]
            for symbol in sorted(self._lengths)
            if self._servable.signature.symbols[symbol].most is not None
        ]
        yield from map(dict, itertools.product(*choices))

    def _most(self, symbol: str) -> int:
        return self._servable.signature.symbols[symbol].most or 1 << 62

    def _length(self, symbol: str, size: int) -> int:
        most = self._most(symbol)
        return next(bucket for bucket in buckets(most, _SHORTEST) if bucket >= min(size, most))

    def _join(
        self, parts: Sequence[Arrays], name: str, bucket: int, rest: tuple[int, ...]
    ) -> np.ndarray:
        arrays = [part[name] for part in parts]
        if not self.symbol or (len(arrays) == 1 and arrays[0].shape == (bucket, *rest)):
            return arrays[0]
        joined = np.zeros((bucket, *rest), arrays[0].dtype)
        start = 0
        for array in arrays:
            place = (slice(start, start + len(array)), *(slice(size) for size in array.shape[1:]))
            joined[place] = array
            start += len(array)
        joined[start:] = joined[0]  # rows that any model can take, as it takes this one
        return joined

    def _own(self, outputs: Arrays, part: Arrays, start: int) -> Arrays:
        own = {
            symbol: size
            for name, tensor in self._servable.signature.inputs.items()
            for symbol, size in zip(tensor.shape, part[name].shape, strict=True)
        }
        # Copies: a slice would hold the whole batch for as long as the slowest client takes.
        return {
            name: outputs[name][
                (
                    slice(start, start + self.rows(part)),
                    *(slice(own.get(s) if s in self._lengths else None) for s in tensor.shape[1:]),
                )
            ].copy()
            for name, tensor in self._servable.signature.outputs.items()
        }


def _padded(servable: Servable, batch: str | None) -> frozenset[str]:
    """Returns the symbols that may be padded: of texts NAME (B, T) with a NAME_length (B,)."""
    inputs, outputs = servable.signature.inputs, servable.signature.outputs
    told = {
        tensor.shape[1]
        for name, tensor in inputs.items()
        if name + LENGTH in inputs and len(tensor.shape) > 1 and isinstance(tensor.shape[1], str)
    }
    known = {size for tensor in inputs.values() for size in tensor.shape}
    made = {size for tensor in outputs.values() for size in tensor.shape}
    # Of an expression, such as "length - 1", nobody knows what belongs to the padding.
    expressions = {size for size in made - known if isinstance(size, str)}
    return frozenset(() if expressions or batch is None else told - {batch})
