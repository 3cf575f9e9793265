"""The keys of a server: who may do what.

    python -m launch.serve.keys add --file=keys.json --name=phone --scope=infer --rate=10
    python -m launch.serve.keys list --file=keys.json
    python -m launch.serve.keys revoke --file=keys.json --id=3f9a01c2

`add` prints a new key, once: the file holds its salted hash. A server that runs with
`--keys=keys.json` reads the file again when it has changed. To rotate a key, add one and revoke the
old one when nobody uses it any more.
"""

import dataclasses
import datetime
import enum
import hashlib
import hmac
import json
import math
import pathlib
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from launch.command import LaunchError, parse
from lsm import command_line
from lsm.errors import listed, nearest, shortened
from lsm.files import atomic_write, exclusive, expanded, parsed_json

VERBS = ("add", "revoke", "list")


class Scope(enum.StrEnum):
    """What a key allows."""

    INFER = "infer"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """A key as the file knows it, without the key.

    Attributes:
      id: of eight hexadecimal digits; what the audit log names.
      name: for people.
      scopes: what it allows.
      salt, hash: SHA-256 of the salt and the key, all in hexadecimal digits. The key is random, of
        256 bits, so that a slow hash would add nothing.
      created: day and time, UTC.
      rate: requests a second; None for no limit.
      daily: requests a day; None for no limit.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    salt: str
    hash: str
    created: str = ""
    rate: float | None = None
    daily: int | None = None

    def opens(self, text: str) -> bool:
        """Whether `text` is this key; takes the same time whatever it is."""
        return hmac.compare_digest(_hashed(self.salt, text), self.hash)


ANYONE = Key(id="anyone", name="", scopes=tuple(Scope), salt="", hash="")
"""Who asks where no keys are needed."""


def new_key(name: str, scopes: Sequence[str], rate: float | None, daily: int | None):
    """Returns a new key for people to keep, and its entry for the file."""
    secret, salt = f"lsm-{secrets.token_urlsafe(32)}", secrets.token_hex(16)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return secret, Key(
        id=secrets.token_hex(4),
        name=name,
        scopes=tuple(map(Scope, scopes)),
        salt=salt,
        hash=_hashed(salt, secret),
        created=now,
        rate=rate,
        daily=daily,
    )


def read(path: pathlib.Path) -> tuple[Key, ...]:
    """Returns the keys in a file. Raises LaunchError where it is none that `write` wrote."""
    try:
        return tuple(_key(entry) for entry in parsed_json(path.read_bytes())["keys"])
    except OSError as error:
        raise LaunchError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = shortened(" ".join(str(error).split()))
        raise LaunchError(f"{path}: is damaged, or no file of keys ({reason}).") from error


def write(path: pathlib.Path, keys: Sequence[Key]) -> None:
    """Replaces the file in one move. Raises TrainingError where it cannot be written."""
    entries = [dataclasses.asdict(key) for key in keys]
    atomic_write(path, json.dumps({"keys": entries}, indent=2).encode() + b"\n")
    path.chmod(0o600)


def _key(entry: dict[str, Any]) -> Key:
    key = Key(**entry | {"scopes": tuple(map(Scope, entry["scopes"]))})
    texts = (key.id, key.name, key.salt, key.hash, key.created)
    if not all(isinstance(text, str) for text in texts) or len(bytes.fromhex(key.hash)) != 32:
        raise ValueError("an entry is no key")
    for limit in (key.rate, key.daily):
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if limit is not None and not (number and math.isfinite(limit) and limit > 0):
            raise ValueError("a limit is no number above 0")
    return key


def _hashed(salt: str, text: str) -> str:
    return hashlib.sha256(salt.encode() + text.encode(errors="replace")).hexdigest()


class Keys:
    """The keys in a file, read again when it changes.

    A damaged file leaves the last good one in force; one that is gone leaves nobody in.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the file. Raises LaunchError where it is not there or damaged."""
        self._path = path
        self._stamp = self._now()
        self._keys = read(path)

    def find(self, text: str) -> Key | None:
        """Returns the key that `text` is, None where it is none; compares it with every one."""
        self._refresh()
        found = [key for key in self._keys if key.opens(text)]
        return found[0] if found else None

    def _now(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _refresh(self) -> None:
        from launch.serve.logs import log

        if (now := self._now()) == self._stamp:
            return
        self._stamp = now
        if now is None:
            self._keys = ()
            log.error("%s: is gone: nobody is let in.", self._path)
            return
        try:
            self._keys = read(self._path)
            log.info("%s: %s keys", self._path, len(self._keys))
        except LaunchError as error:
            log.error("%s The keys from before stay in force.", error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    """The file that is meant.

    Attributes:
      file: the keys.
    """

    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Add(_File):
    """A new key.

    Attributes:
      name: whose it is, for people.
      scope: what it allows: infer, metrics, admin.
      rate: requests a second; by default no limit.
      daily: requests a day, UTC; by default no limit.
    """

    name: str
    scope: tuple[str, ...] = ("infer",)
    rate: float | None = None
    daily: int | None = None

    def __post_init__(self):
        for scope in self.scope:
            command_line.require_one_of(scope, map(str, Scope))
        for flag, value in (("rate", self.rate), ("daily", self.daily)):
            if value is not None and value <= 0:
                raise LaunchError(f"--{flag}: {value} given; a number above 0 is needed.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Revoke(_File):
    """A key that is to be refused from now on.

    Attributes:
      id: as `list` shows it.
    """

    id: str


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the first word says; returns the exit status."""
    return command_line.status(lambda: _act(sys.argv[1:] if argv is None else argv))


def _act(argv: Sequence[str]) -> None:
    verb = argv[0] if argv else ""
    if command_line.HELP.intersection(argv[:1]):
        command_line.show(__doc__.splitlines())
        return
    command_line.require_one_of(verb, VERBS)
    given = parse({"add": _Add, "revoke": _Revoke, "list": _File}[verb], argv[1:])
    path = expanded(given.file, "--file")
    if verb == "list":
        command_line.show(_listed(read(path)))
        return
    taken = LaunchError(f"{path}: another command is changing it; run this one again.")
    with exclusive(path.with_name(path.name + ".lock"), taken):
        keys = read(path) if path.exists() else ()
        if verb == "add":
            secret, key = new_key(given.name, given.scope, given.rate, given.daily)
            write(path, [*keys, key])
            print(secret)
            print(f"id {key.id}; the key is shown this once.", file=sys.stderr)
        else:
            write(path, _without(given.id, keys))


def _without(number: str, keys: Sequence[Key]) -> list[Key]:
    ids = [key.id for key in keys]
    if number not in ids:
        hint = nearest(number, ids)
        raise LaunchError(f"--id: no key {number!r}; there are {listed(ids)}.{hint}")
    return [key for key in keys if key.id != number]


def _listed(keys: Sequence[Key]) -> list[str]:
    return [
        f"{key.id}  {','.join(key.scopes):<20}  rate {key.rate or '-'}  daily {key.daily or '-'}  "
        f"{key.created}  {shortened(key.name)!r}"
        for key in keys
    ]


if __name__ == "__main__":
    sys.exit(main())
