"""Many requests at once on one decoder: tokens a second, and time to the first token of each.

    python -m benchmarks.slots [--workdir=DIR] [--slots=16] [--length=512] [--prompt_tokens=64]
        [--tokens=64] [--turns=2]

Requests of random prompts ask for the likeliest tokens, in float32, on all cores of a CPU. 1, 4
and all slots of them come at once; what they take together is told beside what they take one
after the other, each alone (`lsm.generate.write`). The last column is a request that comes while
all the others write. The shortest time of the turns counts. The model is a Llama of
SmolLM2-135M's shape with random weights, unless a run is given.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import lsm
from benchmarks.generate import SMOLLM2
from benchmarks.step_time_tables import markdown
from lsm import command_line
from lsm.cpu import cores, keep_memory
from lsm.generate import GREEDY, Decoder, Engine, Request, Slots, Stop, collected, write
from lsm.models.families import llama


def random_decoder() -> Decoder:
    """Returns a model of SmolLM2-135M's shape with random weights."""
    model = llama(**SMOLLM2)
    return Decoder(model, dict(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))))


def _text(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


@dataclasses.dataclass
class Arrivals:
    """When the tokens of a request came, in seconds of `time.perf_counter`."""

    begun: float
    times: list[float] = dataclasses.field(default_factory=list)

    def __call__(self, _) -> None:
        """Takes a piece."""
        self.times.append(time.perf_counter())

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.begun


def submit(engine: Engine, request: Request) -> Arrivals:
    """Returns the times of a request that is submitted now."""
    engine.submit(request, arrivals := Arrivals(time.perf_counter()))
    return arrivals


def at_once(engine: Engine, given: Sequence[Request]) -> tuple[float, float]:
    """Returns the seconds that requests take together, and to their first tokens on average."""
    begun = time.perf_counter()
    arrivals = [submit(engine, request) for request in given]
    while engine.busy:
        engine.step()
    return time.perf_counter() - begun, float(np.mean([one.first for one in arrivals]))


def joining(engine: Engine, given: Sequence[Request]) -> float:
    """Returns the seconds to the first token of the last request, while all others write."""
    others = [submit(engine, request) for request in given[:-1]]
    while not all(one.times for one in others):
        engine.step()
    last = submit(engine, given[-1])
    while engine.busy:
        engine.step()
    return last.first


def alone(decoder: Decoder, request: Request) -> float:
    """Returns the seconds that a request takes by itself."""
    begun = time.perf_counter()
    collected(write(decoder, [request.prompt], _text, request.stop, request.sampling), 1)
    return time.perf_counter() - begun


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its table; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "run of a language model; random without", given)
    flags.DEFINE_integer("slots", 16, "slots of the cache", 2, flag_values=given)
    flags.DEFINE_integer("length", 512, "positions of a slot", 8, flag_values=given)
    flags.DEFINE_integer("prompt_tokens", 64, "tokens of each prompt", 1, flag_values=given)
    flags.DEFINE_integer("tokens", 64, "tokens that are written", 8, flag_values=given)
    flags.DEFINE_integer("turns", 2, "times that each is timed", 1, flag_values=given)
    return given


def _act(given: flags.FlagValues, _: list[str]) -> None:
    keep_memory()
    decoder = lsm.load(given.workdir).decoder if given.workdir else random_decoder()
    slots = Slots(decoder, given.slots, given.length)
    slots.compile()
    draw, stop = np.random.default_rng(0), Stop(longest=given.tokens)

    def requests(count: int) -> list[Request]:
        prompts = draw.integers(100, 1000, (count, given.prompt_tokens))
        return [Request(prompt=prompt, stop=stop, sampling=GREEDY) for prompt in prompts]

    alone(decoder, *requests(1))  # compiles
    engine, rows = Engine(slots, _text), []
    for count in (1, 4, given.slots):
        turns = [(*at_once(engine, requests(count)), joining(engine, requests(count)),
                  alone(decoder, *requests(1))) for _ in range(given.turns)]  # fmt: skip
        whole, first, join, single = map(min, zip(*turns, strict=True))
        rate = count * given.tokens / whole
        figures = f"{rate:.1f}", f"{rate * single / given.tokens:.2f}"
        rows.append([str(count), *figures, f"{first * 1e3:.0f}", f"{join * 1e3:.0f}"])
    head = ["at once", "tokens/s", "of one after the other", "first token, ms", "joining, ms"]
    print(
        f"{cores()} CPUs, {given.slots} slots of {given.length}, prompts of "
        f"{given.prompt_tokens} tokens, {given.tokens} written, float32; alone "
        f"{given.tokens / single:.1f} tokens/s\n"
    )
    print(markdown([head, *rows]))


if __name__ == "__main__":
    sys.exit(main())
