"""The command `python -m launch.plan --config=FILE --topology=v5e:4x4`; see docs/plan.md."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from lsm.cli import split_overrides
from lsm.config import flags
from lsm.errors import ConfigError, LsmError, nearest

_FLAGS = {
    "config": "config file, FILE.py or FILE.py:arg",
    "topology": "what to plan for: a TPU slice, v5e:4x4, v5p:8x8x8, v6e:16x16, or GPUs, h100:8",
    "slices": "how many of it, joined by the data-centre network (default 1)",
    "price": "USD for one chip and hour (default: the list price)",
    "json": "file to write the whole plan to",
    "html": "file to write a page with charts to",
    "data_dir": "where datasets are; default TFDS's own place",
}
_FIT = "search mesh, rematerialisation and accumulation for the fastest plan that fits"


def main(argv: Sequence[str] | None = None) -> int:
    """Plans, prints, and returns the exit status.

    It is 0 where the plan fits, 2 where it does not, and 1 after one line on stderr for anything
    that the user can mend.
    """
    try:
        given, overrides = _parse(sys.argv[1:] if argv is None else argv)
        return _plan(given, overrides)
    except LsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    rest, overrides = split_overrides(argv)
    parser = argparse.ArgumentParser("python -m launch.plan", allow_abbrev=False)
    for name, text in _FLAGS.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--fit", action="store_true", help=_FIT)
    given, unknown = parser.parse_known_args(rest)
    if unknown:
        name = unknown[0].partition("=")[0]
        allowed = [f"--{known}" for known in (*_FLAGS, "fit")]
        raise ConfigError(
            f"{name}: there is no such flag; there are --config.FIELD and "
            f"{', '.join(allowed)}.{nearest(name, allowed)}"
        )
    for name in ("config", "topology"):
        if getattr(given, name) is None:
            raise ConfigError(f"--{name} is needed: {_FLAGS[name]}.")
    return given, overrides


def _plan(given: argparse.Namespace, overrides: dict[str, str]) -> int:
    slices = _number(given.slices or "1", "slices", int)
    price = _number(given.price, "price", float)
    experiment = flags.load(given.config, overrides)
    from launch.plan import analytic, compile
    from launch.plan import topology as tpu
    from launch.plan.fit import fit, table_of
    from launch.plan.html import html_of
    from launch.plan.text import text_of

    gpu = analytic.is_gpu(given.topology)
    topology = (analytic if gpu else tpu).load(given.topology, slices)
    request = compile.Request(experiment, given.config, overrides, given.data_dir, price)
    if given.fit:
        found = fit(request, topology, lambda line: print(line, flush=True))
        result = found.best.plan
        print("\n" + table_of(found))
    else:
        result = (analytic if gpu else compile).plan(request, topology)
    if given.json:
        _write("json", given.json, result.as_json())
    if given.html:
        _write("html", given.html, html_of(result))
    print(text_of(result), end="", flush=True)
    return 0 if result.fits else 2


def _number(text: str | None, name: str, kind: type) -> float | None:
    try:
        value = None if text is None else kind(text)
    except ValueError:
        value = -1
    if value is not None and not (1 if kind is int else 0) <= value < float("inf"):
        what = "a whole number above 0" if kind is int else "a number of USD, 0 or more"
        raise ConfigError(f"--{name}: {text!r} given; {what} is needed.")
    return value


def _write(name: str, path: str, content: str) -> None:
    try:
        pathlib.Path(path).write_text(content)
    except OSError as error:
        raise ConfigError(f"--{name}: {path}: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
