"""Chat templates: how a model has learnt to read a conversation, written in Jinja."""

import dataclasses
import datetime
import functools
import importlib.util
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lsm.data.dataset import PathLike
from lsm.errors import DataError, listed
from lsm.files import expanded, parsed_json

JINJA, CONFIG, MAP = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"
"""Files beside a tokenizer.json: the template, or what holds it; names of special tokens."""

Message = Mapping[str, Any]
"""What one of a conversation says: its "role" and its "content", and what the template knows."""

ASSISTANT = "assistant"
"""The role whose messages are answers."""

DATE = datetime.datetime(2024, 7, 26)
"""Today for a template of data, whose tokens must not depend on the day: the date that templates of
Llama 3 have where they are told none."""

_BEGIN, _END = "\0<generation>", "\0</generation>"
_MARKS = re.compile("\0</?generation>")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template, and the special tokens that it may name.

    It is rendered as `transformers` does: in Jinja's immutable sandbox, as it comes with a model
    from anywhere, with `raise_exception`, `strftime_now`, `tojson` and the tag `generation`.
    `strftime_now` says the day it is in `render`, and `DATE` in `answers`.

    Attributes:
      source: in Jinja.
      tokens: special tokens by their names there, such as "eos_token".
    """

    source: str
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, folder: PathLike, field: str = "Chats.tokenizer") -> "ChatTemplate":
        """Reads chat_template.jinja, or tokenizer_config.json, of the folder of a tokenizer.

        Args:
          folder: of the tokenizer.
          field: what names it in an error.

        Raises:
          DataError: there is no template, or a file is damaged.
        """
        folder = expanded(folder, field)
        config = _json(folder / CONFIG)
        source = config.get("chat_template")
        if (folder / JINJA).is_file():
            source = _text(folder / JINJA)
        if isinstance(source, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in source}
            source = named.get("default")
        if not isinstance(source, str):
            raise DataError(f"{field}: {folder} has no chat template, in {JINJA} or in {CONFIG}.")
        given = _json(folder / MAP) | config
        tokens = {name: _content(x) for name, x in given.items() if name.endswith("_token")}
        return cls(source, {name: x for name, x in tokens.items() if x is not None})

    @classmethod
    def from_json(cls, tree: Mapping[str, str]) -> "ChatTemplate":
        """Returns what `to_json` wrote."""
        tokens = dict(tree)
        return cls(tokens.pop("chat_template"), tokens)

    def to_json(self) -> dict[str, str]:
        """Returns what tokenizer_config.json says of it."""
        return {"chat_template": self.source, **self.tokens}

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Returns the text of a conversation.

        Args:
          messages: of the conversation.
          tools: JSON schemas of functions that may be called.
          add_generation_prompt: whether it ends with what an answer comes after.

        Raises:
          DataError: the template refuses the conversation, or is none.
        """
        now = datetime.datetime.now()
        return _MARKS.sub("", self._marked(messages, tools, add_generation_prompt, now))

    def answers(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Returns the text, and where in it answers begin and end, in characters.

        Answers are what stands in the template's tag `generation`. Without one they are found by
        rendering the conversation up to each: from behind what asks for it to the end of its turn,
        with the token that ends it.

        Raises:
          DataError: as `render`; or the text of a turn depends on those that come after it.
        """
        marked = self._marked(messages, tools, False)
        if _BEGIN in marked:
            return _spans(marked)
        found = []
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._marked(messages[:number], tools, True)
            through = self._marked(messages[: number + 1], tools, False)
            if not (through.startswith(before) and marked.startswith(through)):
                raise DataError(
                    f"the chat template writes message {number + 1} in another way than before "
                    "what follows it; mark its answers there by {% generation %}."
                )
            found.append((len(before), len(through.rstrip())))
        return marked, found

    def _marked(
        self,
        messages: Sequence[Message],
        tools: Any,
        prompt: bool,
        now: datetime.datetime = DATE,
    ) -> str:
        given = [_plain(message) for message in messages]
        options = {"tools": tools or None, "documents": None, "strftime_now": now.strftime}
        options |= self.tokens
        template = self._compiled
        try:
            return template.render(messages=given, add_generation_prompt=prompt, **options)
        except Exception as error:  # a template is a program: anything may go wrong in it
            reason = " ".join(str(error).split())
            raise DataError(f"the chat template cannot take a conversation: {reason}") from error

    @functools.cached_property
    def _compiled(self) -> Any:
        if importlib.util.find_spec("jinja2") is None:
            raise DataError("the library jinja2 is not installed; pip install 'lsm[text]'.")
        import jinja2

        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template is no Jinja: {error}.") from error


def _environment() -> Any:
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """The tag that says what the assistant writes: it stands between marks in the text."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("_written")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _written(self, caller):
            return f"{_BEGIN}{caller()}{_END}"

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    # Jinja's own escapes HTML.
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)  # fmt: skip

    made = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    return made


def _spans(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text without marks, and where they were."""
    places, text = [], ""
    rest = marked
    while (found := _MARKS.search(rest)) is not None:
        text += rest[: found.start()]
        places.append(len(text))
        rest = rest[found.end() :]
    return text + rest, list(zip(places[::2], places[1::2], strict=True))


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates know it: without fields of null, and reasoning by its other names."""
    known = {name: x for name, x in message.items() if x is not None}
    reasoning = next((known[name] for name in _REASONING if name in known), None)
    if reasoning is None:
        return known
    return {"thinking": reasoning, **known, "reasoning_content": reasoning}


def check_messages(messages: Any) -> None:
    """Raises DataError, of what has no place yet, unless these are messages of a conversation."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{type(messages).__name__} given; a list of messages is needed.")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            told = listed(message) if isinstance(message, dict) else type(message).__name__
            raise DataError(f"a message of {told} given; 'role' and 'content' are needed.")
        content = message.get("content")
        # A template writes nothing for what is not there, and anything else as Python shows it.
        if content is None and not message.get("tool_calls"):
            raise DataError(f"a message of {listed(message)} given; 'content' is needed, a text.")
        if not isinstance(content, str | None):
            raise DataError(f"'content' of {type(content).__name__} given; a text is needed.")


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(parsed_json(_text(path))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}).") from error


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}).") from error


def _content(token: Any) -> str | None:
    """The text of a special token, which some files describe."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
