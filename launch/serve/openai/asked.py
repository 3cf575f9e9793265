"""What a request for texts asks for."""

import dataclasses
import secrets
from typing import Any

import numpy as np

from launch.serve.openai.errors import Wrong
from launch.serve.openai.fields import Fields
from lsm.errors import shortened
from lsm.generate import Sampling
from lsm.generate.slots import LIKELIEST

_MOST_TOKENS = 1 << 30
_MOST_TEXTS = 128
_STOPS = 4

Prompt = str | list[int] | list[dict[str, str]]
"""A text, its ids, or a conversation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for texts.

    Attributes:
      model: its name.
      prompts: what texts come after.
      chat: whether these are conversations.
      texts: for each prompt.
      longest: tokens of a text, at the most; None is what there is room for.
      sampling: how tokens are drawn.
      stop: strings that end a text.
      seed: of all that is drawn.
      logprobs: whether to tell the log-probabilities of tokens.
      likeliest: and of how many others at each place.
      stream: whether pieces are sent as they come.
      usage: whether the last of them counts tokens.
      echo: whether a text begins with its prompt.
    """

    model: str
    prompts: list[Prompt]
    chat: bool
    texts: int
    longest: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    seed: int
    logprobs: bool
    likeliest: int
    stream: bool
    usage: bool
    echo: bool = False

    def seeds(self) -> list[int]:
        """Returns a seed for each text, prompt by prompt: those of `Trained.generate`."""
        return [
            int(np.random.SeedSequence((self.seed, number, sample)).generate_state(1)[0])
            for number in range(len(self.prompts))
            for sample in range(self.texts)
        ]


def chat(body: dict[str, Any]) -> Asked:
    """Returns what a body of /v1/chat/completions asks for. Raises Refused."""
    fields = Fields(body)
    common = _common(fields)
    most = fields.whole("max_completion_tokens", 1, _MOST_TOKENS)
    longest = fields.whole("max_tokens", 1, _MOST_TOKENS)  # the older name
    logprobs, likeliest = fields.flag("logprobs"), fields.whole("top_logprobs", 0, LIKELIEST)
    if likeliest is not None and not logprobs:
        raise fields.wrong("top_logprobs", likeliest, "logprobs has to be true with it")
    messages = _messages(fields)
    fields.refuse({
        "audio": (), "function_call": ("none", "auto"), "functions": ([],), "logit_bias": ({},),
        "modalities": (["text"],), "prediction": (), "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},), "tool_choice": ("none", "auto"), "tools": ([],),
        "verbosity": ("medium",), "web_search_options": (),
    })  # fmt: skip
    fields.done()
    longest = longest if most is None else most
    tokens = {"longest": longest, "logprobs": logprobs, "likeliest": likeliest or 0}
    return Asked(prompts=[messages], chat=True, **tokens, **common)


def completion(body: dict[str, Any]) -> Asked:
    """Returns what a body of /v1/completions asks for. Raises Refused."""
    fields = Fields(body)
    common = _common(fields)
    longest = fields.whole("max_tokens", 1, _MOST_TOKENS, 16)
    likeliest, echo = fields.whole("logprobs", 0, LIKELIEST), fields.flag("echo")
    if echo and likeliest is not None:
        raise fields.wrong("echo", echo, "not offered here with logprobs, which a prompt has none")
    fields.refuse({"best_of": (common["texts"],), "logit_bias": ({},), "suffix": ("",)})
    prompts = _prompts(fields)
    fields.done()
    tokens = {"longest": longest, "logprobs": likeliest is not None, "likeliest": likeliest or 0}
    return Asked(prompts=prompts, chat=False, echo=echo, **tokens, **common)


def _common(fields: Fields) -> dict[str, Any]:
    model = fields.text("model")
    if model is None:
        raise Wrong("model", "model: a name is needed.")
    sampling = Sampling(
        temperature=fields.number("temperature", 0, 2, 1),
        top_p=fields.number("top_p", 0, 1, 1, above=True),
        top_k=fields.whole("top_k", 1, _MOST_TOKENS),
        min_p=fields.number("min_p", 0, 1, 0),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100, 1),
    )
    fields.refuse({"presence_penalty": (0,), "frequency_penalty": (0,)})
    seed = fields.whole("seed", -(1 << 63), (1 << 63) - 1)
    stream, options = fields.flag("stream"), fields.inner("stream_options")
    if options is not None and not stream:
        raise Wrong("stream_options", "stream_options: only with stream: true.")
    usage = options is not None and options.flag("include_usage")
    if options is not None:
        options.flag("include_obfuscation")  # which nothing here needs
        options.done()
    return {
        "model": model,
        "sampling": sampling,
        "texts": fields.whole("n", 1, _MOST_TEXTS, 1),
        "seed": secrets.randbits(63) if seed is None else seed % (1 << 64),
        "stop": _stop(fields),
        "stream": stream,
        "usage": usage,
    }


def _stop(fields: Fields) -> tuple[str, ...]:
    given = fields.take("stop", [])
    strings = [given] if isinstance(given, str) else given
    texts = isinstance(strings, list) and all(isinstance(one, str) and one for one in strings)
    if not texts or len(strings) > _STOPS:
        raise fields.wrong("stop", given, f"a text or up to {_STOPS}, none empty, are allowed")
    return tuple(strings)


def _prompts(fields: Fields) -> list[Prompt]:
    given = fields.take("prompt")
    if isinstance(given, str) or are_ids(given):
        return [given]
    lists = isinstance(given, list) and given
    if not lists or not (all(isinstance(x, str) for x in given) or all(map(are_ids, given))):
        needed = "a text, ids of its tokens, or a list of either is needed"
        raise fields.wrong("prompt", given, needed)
    if len(given) > _MOST_TEXTS:
        raise fields.wrong("prompt", given, f"at most {_MOST_TEXTS} prompts are allowed")
    return given


def are_ids(given: Any) -> bool:
    """Whether it is a list of whole numbers, one at least."""
    return isinstance(given, list) and bool(given) and all(type(x) is int for x in given)


def _messages(fields: Fields) -> list[dict[str, str]]:
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", given, "a list of messages is needed")
    return [_message(one, f"messages[{number}]") for number, one in enumerate(given)]


_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""What templates call those who speak; "developer" is a newer name of "system"."""


def _message(given: Any, where: str) -> dict[str, str]:
    if not isinstance(given, dict):
        raise Wrong(where, f"{where}: {shortened(repr(given))} given; an object is needed.")
    fields = Fields(given, f"{where}.")
    role = fields.take("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise fields.wrong("role", role, f"one of {', '.join(_ROLES)} is needed")
    content = fields.take("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{k}]") for k, part in enumerate(content))
    if not isinstance(content, str):
        raise fields.wrong("content", content, "a text, or a list of parts that are, is needed")
    # What a client sends back of an answer, as it got it.
    fields.refuse({
        "annotations": ([],), "audio": (), "function_call": (), "refusal": ("",),
        "tool_calls": ([],), "tool_call_id": (),
    })  # fmt: skip
    name = fields.text("name")
    fields.done()
    return {"role": _ROLES[role], "content": content} | ({"name": name} if name else {})


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else part
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise Wrong(where, f"{where}: {shortened(repr(kind))} given; texts alone are read here.")
    return text
