"""How fast lsm's tokenizing command is against its library called directly, and its memory.

    python -m benchmarks.tokenize_speed --tokenizer=DIR --data_dir=DIR [--megabytes=8] [--rss=100]

The text is tiny Shakespeare, repeated. `library` is `encode_batch_fast` of the `tokenizers` library
on the same text in pieces of the same size, all in memory, with ids to NumPy, by one thread; `lsm`
reads a file and writes, syncs and checksums a shard. All take turns, and the shortest time of each
counts, since other work on the machine only ever adds. Peak memory is that of the command in a
process of its own, for 1 MB of input and for `--rss` MB.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from lsm.data import Tfds, documents
from lsm.data.tokenize import Packing, tokenize
from lsm.data.tokenizer import Tokenizer

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


def speeds(arguments: argparse.Namespace, folder: pathlib.Path) -> dict[str, float]:
    """Returns tokens per second of each contender, the best of the turns."""
    path = shakespeare(folder / "speed.txt", arguments.data_dir, arguments.megabytes)
    tokenizer, text = Tokenizer(arguments.tokenizer), path.read_text()
    contenders: dict[str, Callable[[str], int]] = {"library": lambda turn: library(tokenizer, text)}
    for workers in _WORKERS:
        packing = Packing(arguments.tokenizer, workers=workers)
        contenders[f"lsm, {workers} workers"] = lambda turn, packing=packing: (
            tokenize([str(path)], folder / f"{turn}-{packing.workers}", packing).tokens
        )
    best = dict.fromkeys(contenders, 0.0)
    for turn in range(arguments.turns):
        for name, contender in contenders.items():
            start = time.perf_counter()
            best[name] = max(best[name], contender(str(turn)) / (time.perf_counter() - start))
    return best


def peak(arguments: argparse.Namespace, folder: pathlib.Path, megabytes: int) -> float:
    """Returns the most MB that the command, or one before it, had in memory."""
    path = shakespeare(folder / f"{megabytes}.txt", arguments.data_dir, megabytes)
    command = [sys.executable, "-m", "lsm.data.tokenize", str(path), f"--split=of{megabytes}"]
    command += [f"--tokenizer={arguments.tokenizer}", f"--out={folder}", "--workers=2"]
    subprocess.run(command, check=True)
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return kilobytes * 1024 / 1e6


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", required=True, help="folder or file of the tokenizer")
    parser.add_argument("--data_dir", help="where tiny_shakespeare is")
    parser.add_argument("--megabytes", type=int, default=8, help="text for the speeds")
    parser.add_argument("--turns", type=int, default=5, help="of each contender")
    parser.add_argument("--rss", type=int, default=100, help="MB of text for the memory; 0: none")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # Memory first: a child's peak begins with what its parent had when it was forked.
        for megabytes in (1, arguments.rss) if arguments.rss else ():
            print(f"{megabytes} MB of text: peak {peak(arguments, folder, megabytes):.0f} MB")
        best = speeds(arguments, folder)
        for contender, speed in best.items():
            print(f"{contender}: {speed / 1e6:.3f} M tokens/s, x {speed / best['library']:.2f}")
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
