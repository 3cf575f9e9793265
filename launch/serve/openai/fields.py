"""The fields of a request, each of its type and in its range, or refused by its name."""

from collections.abc import Collection, Mapping
from typing import Any

from launch.serve.openai.errors import Wrong
from launch.serve.refusal import malformed
from lsm.errors import nearest, shortened

NO_EFFECT = frozenset({
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
})  # fmt: skip
"""What changes nothing in an answer, and may be anything."""


class Fields:
    """A JSON object whose fields are taken one by one; null is as if a field were not there."""

    def __init__(self, given: Mapping[str, Any], within: str = ""):
        """Takes the object, and the name of the field that it stands in, with a dot."""
        self._left = {name: x for name, x in given.items() if x is not None}
        self._known: set[str] = set()
        self._within = within

    def take(self, name: str, default: Any = None) -> Any:
        """Returns a field as it is."""
        self._known.add(name)
        return self._left.pop(name, default)

    def wrong(self, name: str, given: Any, allowed: str) -> Wrong:
        """Returns the refusal of a field."""
        line = f"{self._within}{name}: {shortened(repr(given))} given; {allowed}."
        return Wrong(self._within + name, line)

    def text(self, name: str, default: str | None = None) -> str | None:
        """Returns a text."""
        given = self.take(name, default)
        if given is not None and not isinstance(given, str):
            raise self.wrong(name, given, "a text is needed")
        return given

    def flag(self, name: str) -> bool:
        """Returns true or false, which is what is not there."""
        given = self.take(name, False)
        if not isinstance(given, bool):
            raise self.wrong(name, given, "true or false is needed")
        return given

    def number(self, name: str, low: float, high: float, default: Any, above: bool = False) -> Any:
        """Returns a number from `low` (or above it) to `high`."""
        given = self.take(name, default)
        if given is default:
            return given
        fits = type(given) in (int, float) and low <= given <= high and not (above and given == low)
        if not fits:
            least = f"above {low}" if above else f"from {low}"
            raise self.wrong(name, given, f"a number {least} to {high} is allowed")
        return given

    def whole(self, name: str, low: int, high: int, default: Any = None) -> Any:
        """Returns a whole number from `low` to `high`."""
        given = self.take(name, default)
        if given is not default and (type(given) is not int or not low <= given <= high):
            raise self.wrong(name, given, f"a whole number from {low} to {high} is allowed")
        return given

    def inner(self, name: str) -> "Fields | None":
        """Returns the fields of an object; None where there is none."""
        given = self.take(name)
        if given is not None and not isinstance(given, dict):
            raise self.wrong(name, given, "an object is needed")
        return None if given is None else Fields(given, f"{self._within}{name}.")

    def refuse(self, others: Mapping[str, Collection[Any]]) -> None:
        """Refuses fields that are not offered here, but with these values, which ask for nothing.

        Raises:
          Wrong: one has another value.
        """
        for name, neutral in others.items():
            given = self.take(name)
            if given is not None and given not in neutral:
                raise Wrong(
                    self._within + name,
                    f"{self._within}{name}: {shortened(repr(given))} given; not offered here.",
                    "unsupported_parameter",
                )

    def done(self) -> None:
        """Raises Refused where a field is left, which nobody knows."""
        if unknown := sorted(self._left.keys() - NO_EFFECT):
            name = shortened(self._within + unknown[0])
            hint = nearest(unknown[0][:100], self._known)
            raise malformed(f"Unrecognized request argument supplied: {name}.{hint}")
