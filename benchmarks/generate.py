"""Tokens a second and time to the first token: lsm against transformers and CTranslate2.

    python -m benchmarks.generate [--model=FOLDER] [--peer_python=PATH] [--batch_sizes=1,8]
        [--prompt_tokens=64] [--tokens=64] [--turns=3]
    python -m benchmarks.generate write docs/generation.md
    python -m benchmarks.generate check docs/generation.md

All write the same number of the likeliest tokens after the same prompts, in float32, on all cores
of a CPU, in turns; the shortest time of each counts. Weights are read once a token, at least: the
last columns are how many GB a second that is, and its share of what the machine can read at most,
measured in the same run. lsm does so with kernels of whole numbers, too (`lsm.compress.quantise`),
which are fewer bytes. The model is a Llama of SmolLM2-135M's shape, with random weights unless
a folder of Hugging Face's is given. The peers are optional, and may live in another interpreter.
The record is `benchmarks/generate.json`.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import lsm
from benchmarks.compare import version_of
from benchmarks.documents import between, keep, kept, origin, wrote_or_checked
from benchmarks.step_time_tables import markdown
from lsm import command_line
from lsm.compress import quantise
from lsm.cpu import keep_memory
from lsm.errors import ConfigError, DataError, LsmError
from lsm.generate import GREEDY, Draws
from lsm.interop import save_model
from lsm.models.families import llama
from lsm.models.quantised import Bits
from lsm.run.result import git_revision, hardware, versions
from lsm.train.imported import import_model

RECORD = Path(__file__).with_suffix(".json")
PEERS = {"transformers": "generate_torch.py", "CTranslate2": "generate_ctranslate2.py"}
SMOLLM2 = {"vocabulary": 49152, "layers": 30, "heads": 9, "kv_heads": 3, "width": 576}
SMOLLM2 |= {"hidden": 1536, "theta": 1e5, "context": 2048, "tied": True}


class PeerEndedError(LsmError):
    """A peer's process ended; its own words are on stderr."""


class Peer:
    """A library in a process of its own: a script beside this file."""

    def __init__(self, python: str, script: str, folder: Path, prompts: np.ndarray):
        place = Path(__file__).with_name(script)
        words = [python, place, folder, json.dumps(prompts.tolist())]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)

    def run(self, tokens: int) -> tuple[float, list[list[int]]]:
        """Returns the seconds that so many tokens took, and them (B, tokens)."""
        try:
            print(tokens, file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise PeerEndedError(f"ended with {self._process.wait()}") from None
        return answer["seconds"], answer["tokens"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


class Ours:
    """lsm's decoder of the same folder, with its kernels as they are or as whole numbers."""

    def __init__(self, folder: Path, prompts: np.ndarray, weights: Bits | None = None):
        with tempfile.TemporaryDirectory() as workdir:
            import_model(folder, workdir)
            if weights:
                quantise(workdir, f"{workdir}/{weights}", weights=weights)
                workdir = f"{workdir}/{weights}"
            self._decoder = lsm.load(workdir).decoder
        self._prompts = list(prompts)
        self.bytes = sum(x.nbytes for x in jax.tree.leaves(self._decoder.variables))

    def run(self, tokens: int) -> tuple[float, list[list[int]]]:
        """See `Peer.run`."""
        start, count = time.perf_counter(), len(self._prompts)
        state, drawn = self._decoder.start(
            self._prompts, tokens, Draws.of([GREEDY] * count, [0] * count)
        )
        found = [drawn.token_B]
        for _ in range(tokens - 1):
            state, drawn = self._decoder.step(state, drawn)
            found.append(drawn.token_B)
        written = np.stack(jax.device_get(found), 1)
        return time.perf_counter() - start, written.tolist()

    def close(self) -> None:
        """Does nothing."""


def bandwidth() -> float:
    """Returns the bytes a second that are read of 512 MiB, at most: two ways, six times each."""
    x = jnp.ones((2**17, 1024))
    seconds = []
    for reduce in (jnp.sum, lambda x: x.max(1)):
        read = jax.jit(reduce)
        read(x).block_until_ready()
        for _ in range(6):
            start = time.perf_counter()
            read(x).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return x.nbytes / min(seconds)


def random_model(folder: Path) -> None:
    """Writes a model of SmolLM2-135M's shape with random weights."""
    model = llama(**SMOLLM2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    save_model(model, variables, folder)


def measure(folder: Path, prompts: np.ndarray, tokens: int, turns: int, python: str) -> dict:
    """Returns (seconds to the first token, seconds a token after it) of each contender."""
    ours = {"lsm": Ours(folder, prompts)}
    ours |= {f"lsm, {weights}": Ours(folder, prompts, weights) for weights in ("int8", "int4")}
    contenders: dict[str, Any] = dict(ours)
    for name, script in PEERS.items():
        contenders[name] = Peer(python, script, folder, prompts)
    first, all_, texts = {}, {}, {}
    for turn in range(turns + 1):
        for name, contender in list(contenders.items()):
            try:
                begun, _ = contender.run(1)
                whole, texts[name] = contender.run(tokens)
            except PeerEndedError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                del contenders[name]
                continue
            if turn:  # the first compiles
                first.setdefault(name, []).append(begun)
                all_.setdefault(name, []).append(whole)
    for contender in contenders.values():
        contender.close()
    _check_same({name: texts[name] for name in contenders if name not in [*ours][1:]})
    return {
        name: (
            min(first[name]),
            (min(all_[name]) - min(first[name])) / (tokens - 1),
            ours.get(name, ours["lsm"]).bytes,
        )
        for name in contenders
    }


def _check_same(texts: dict[str, list[list[int]]]) -> None:
    """Raises DataError where a peer has written other tokens early on: it is another model.

    Later on, one near tie decided by rounding changes all that follows.
    """
    ours = np.array(texts["lsm"])[:, :4]
    for name, theirs in texts.items():
        if not np.array_equal(ours, np.array(theirs)[:, :4]):
            raise DataError(f"generate: {name} writes other tokens than lsm; not the same model.")


def tables(record: Mapping[str, Any]) -> str:
    """Returns a record as Markdown."""
    asked, most = record["asked"], record["most"]
    head = "first token, ms", "tokens/s", "lsm's rate / it", "GB/s of weights", "of the most"
    rows = [["batch", "", *head]]
    for batch, contenders in record["batches"].items():
        for name, (first, each, size) in contenders.items():
            rate = f"{int(batch) / each:.1f}", f"{each / contenders['lsm'][1]:.2f}"
            read = f"{size / each / 1e9:.1f}", f"{size / each / most:.0%}".replace("%", " %")
            rows.append([batch, name, f"{first * 1e3:.0f}", *rate, *read])
    return (
        f"{asked['model']}; prompts of {asked['prompt_tokens']} tokens, {asked['tokens']} written, "
        f"float32; {most / 1e9:.1f} GB/s are read at most. {origin(record)}.\n\n{markdown(rows)}"
    )


def filled(document: Path) -> str:
    """Returns the text of `document` with the table as the record has it now."""
    return between(document, "generate", tables(kept(RECORD)))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and keeps the record, or does `write` or `check`; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("model", None, "folder; random weights without", given)
    flags.DEFINE_string("peer_python", sys.executable, "interpreter with the peers", given)
    flags.DEFINE_list("batch_sizes", ["1", "8"], "prompts at a time", given)
    flags.DEFINE_integer("prompt_tokens", 64, "tokens of each prompt", 1, flag_values=given)
    flags.DEFINE_integer("tokens", 64, "tokens that are written", 8, flag_values=given)
    flags.DEFINE_integer("turns", 3, "times that each is timed", 1, flag_values=given)
    return given


def _act(given: flags.FlagValues, words: list[str]) -> None:
    if wrote_or_checked(words, filled):
        return
    made = _measured(given, _sizes(given.batch_sizes))
    print(tables(made))
    keep(RECORD, made)


def _sizes(given: Sequence[str]) -> list[int]:
    if not all(size.isdigit() and int(size) for size in given):
        raise ConfigError(f"--batch_sizes: {','.join(given)} given; numbers from 1 are needed.")
    return list(map(int, given))


def _measured(given: flags.FlagValues, sizes: Sequence[int]) -> dict[str, Any]:
    keep_memory()
    python, batches = given.peer_python, {}
    peers = {name: version_of(python, name.lower()) for name in PEERS}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(given.model or made)
        if not given.model:
            random_model(folder)
        for size in sizes:
            prompts = np.random.default_rng(0).integers(100, 1000, (size, given.prompt_tokens))
            batches[str(size)] = measure(folder, prompts, given.tokens, given.turns, python)
    model = folder.name if given.model else "A Llama of SmolLM2-135M's shape"
    return {
        "asked": {"model": model, "prompt_tokens": given.prompt_tokens, "tokens": given.tokens},
        "hardware": hardware(),
        "versions": {"jax": versions()["jax"]} | {n: v for n, v in peers.items() if v},
        "git_revision": git_revision(),
        "most": bandwidth(),
        "batches": batches,
    }


if __name__ == "__main__":
    sys.exit(main())
