"""How fast lsm's tokenizing command is against its library called directly, and its memory.

    python -m benchmarks.tokenize_speed --tokenizer=DIR --data_dir=DIR [--megabytes=8] [--rss=100]

The text is tiny Shakespeare, repeated. `library` is `encode_batch_fast` of the `tokenizers` library
on the same text in pieces of the same size, all in memory, with ids to NumPy, by one thread; `lsm`
reads a file and writes, syncs and checksums a shard. All take turns, and the shortest time of each
counts, since other work on the machine only ever adds. Peak memory is that of the command in a
process of its own, for 1 MB of input and for `--rss` MB.
"""

import functools
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from lsm import command_line
from lsm.data import Tfds, documents
from lsm.data.texts.tokenizer import Tokenizer
from lsm.data.tokenize import Packing, tokenize

_WORKERS = (1, 2)


def shakespeare(path: pathlib.Path, data_dir: str, megabytes: int) -> pathlib.Path:
    """Writes `megabytes` of tiny Shakespeare to `path`."""
    text = Tfds("tiny_shakespeare").open("train", data_dir).take(np.arange(1))["text"][0]
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(text[:1_000_000])
    return path


def library(tokenizer: Tokenizer, text: str) -> int:
    """Encodes `text`, a piece after the other; returns the number of tokens."""
    starts = range(0, len(text), documents.PIECE)
    pieces = [text[start : start + documents.PIECE] for start in starts]
    return sum(len(tokenizer.encode([piece])[0]) for piece in pieces)


def speeds(given: flags.FlagValues, folder: pathlib.Path) -> dict[str, float]:
    """Returns tokens per second of each contender, the best of the turns."""
    path = shakespeare(folder / "speed.txt", given.data_dir, given.megabytes)
    tokenizer, text = Tokenizer(given.tokenizer), path.read_text()
    contenders: dict[str, Callable[[str], int]] = {"library": lambda turn: library(tokenizer, text)}
    for workers in _WORKERS:
        packing = Packing(given.tokenizer, workers=workers)
        contenders[f"lsm, {workers} workers"] = lambda turn, packing=packing: (
            tokenize([str(path)], folder / f"{turn}-{packing.workers}", packing).tokens
        )
    best = dict.fromkeys(contenders, 0.0)
    for turn in range(given.turns):
        for name, contender in contenders.items():
            start = time.perf_counter()
            best[name] = max(best[name], contender(str(turn)) / (time.perf_counter() - start))
    return best


def peak(given: flags.FlagValues, folder: pathlib.Path, megabytes: int) -> float:
    """Returns the most MB that the command, or one before it, had in memory."""
    path = shakespeare(folder / f"{megabytes}.txt", given.data_dir, megabytes)
    command = [sys.executable, "-m", "lsm.data.tokenize", str(path), f"--split=of{megabytes}"]
    command += [f"--tokenizer={given.tokenizer}", f"--out={folder}", "--workers=2"]
    subprocess.run(command, check=True)
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return kilobytes * 1024 / 1e6


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the figures; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    integer = functools.partial(flags.DEFINE_integer, flag_values=given)
    tokenizer = "folder or file of the tokenizer"
    flags.DEFINE_string("tokenizer", None, tokenizer, given, required=True)
    flags.DEFINE_string("data_dir", None, "where tiny_shakespeare is", given)
    integer("megabytes", 8, "text for the speeds", lower_bound=1)
    integer("turns", 5, "of each contender", lower_bound=1)
    integer("rss", 100, "MB of text for the memory; 0: none", lower_bound=0)
    return given


def _act(given: flags.FlagValues, _: list[str]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # Memory first: a child's peak begins with what its parent had when it was forked.
        for megabytes in (1, given.rss) if given.rss else ():
            print(f"{megabytes} MB of text: peak {peak(given, folder, megabytes):.0f} MB")
        best = speeds(given, folder)
        for contender, speed in best.items():
            print(f"{contender}: {speed / 1e6:.3f} M tokens/s, x {speed / best['library']:.2f}")
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    sys.exit(main())
