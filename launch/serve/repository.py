"""The models that are served, their versions, and who gets which share of the requests."""

import asyncio
import contextlib
import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

from launch.serve.batching import Batcher, Policy
from launch.serve.metrics import Meter, Metrics
from launch.serve.models import Load, Servable, first, versions
from launch.serve.refusal import Refused, malformed
from launch.serve.tensors import check
from launch.serve.writers import Writer
from lsm.errors import LsmError, listed, nearest, shortened

_log = logging.getLogger("launch.serve")


@dataclasses.dataclass(eq=False)
class Version:
    """One version of a model that is loaded, or about to be.

    Attributes:
      number: "1", "2", ...
      servable: the function, and its signature.
      batcher: its queue.
      meter: its metrics.
      share: weight among the versions for requests that name none; 0 gets none of them.
      reason: why it cannot be had; "" where it can.
      since: when it was loaded, in seconds since 1970.
      users: requests that have chosen it and are not answered yet.
    """

    number: str
    servable: Servable
    batcher: Batcher
    meter: Meter
    share: float = 0.0
    reason: str = ""
    since: int = dataclasses.field(default_factory=lambda: int(time.time()))
    users: int = 0
    _credit: float = 0.0

    @property
    def state(self) -> str:
        """READY, LOADING or UNAVAILABLE, the words of the protocol."""
        if self.reason or self.batcher.stuck_since is not None:
            return "UNAVAILABLE"
        return "READY" if self.batcher.ready else "LOADING"


class Served:
    """A model: the versions of it that are loaded.

    Attributes:
      name: as in its routes.
      folder: where its versions are found.
      versions: those that are loaded, by number.
    """

    def __init__(self, name: str, folder: pathlib.Path):
        self.name, self.folder = name, folder
        self.versions: dict[str, Version] = {}

    def version(self, number: str | None) -> Version:
        """Returns the version `number`; for None, the one whose turn it is by the shares.

        Over n requests each version gets n times its share, but for one request at the most
        (smooth weighted round robin). One that is not ready is passed over.

        Raises:
          Refused: there is no such version (404), or none is ready (503).
        """
        if number is not None:
            if number in self.versions:
                return self.versions[number]
            known = listed(self.versions) or "none"
            line = f"version {shortened(number)!r} of {self.name} is not loaded; there are {known}."
            raise Refused(404, "not_found", line)
        ready = [v for v in self.versions.values() if v.share and v.state == "READY"]
        if not ready:
            line = f"no version of {self.name} that gets requests is ready."
            raise Refused(503, "not_ready", line, retry_after=1)
        for version in ready:
            version._credit += version.share
        chosen = max(ready, key=lambda version: version._credit)
        chosen._credit -= sum(version.share for version in ready)
        return chosen

    @contextlib.contextmanager
    def using(self, number: str | None) -> Iterator[Version]:
        """Gives `version(number)` for one request, before whose end it is not taken away."""
        version = self.version(number)
        version.users += 1
        try:
            yield version
        finally:
            version.users -= 1

    @property
    def any_version(self) -> Version | None:
        """The version with the largest share, ready or not: what metadata tell of."""
        return max(self.versions.values(), key=lambda version: version.share, default=None)

    def share(self, shares: Mapping[str, float]) -> None:
        """Gives each version its share of the requests that name none; those not named get 0.

        Raises:
          Refused: a version is not loaded and ready, or the shares are no weights.
        """
        for number, share in shares.items():
            if self.version(number).state != "READY":
                raise Refused(409, "conflict", f"version {number} of {self.name} is not ready.")
            number_like = isinstance(share, int | float) and not isinstance(share, bool)
            if not number_like or not math.isfinite(share) or share < 0:
                raise malformed(f"shares.{number}: {shortened(repr(share))} given; 0 or more.")
        total = sum(shares.values())
        if not total or not math.isfinite(total):
            raise malformed("shares: one of them has to be above 0.")
        for number, version in self.versions.items():
            version.share, version._credit = shares.get(number, 0) / total, 0.0
            version.meter.share.set(version.share)


class Repository:
    """All models of a server.

    Attributes:
      models: by name.
      writers: those that write texts, by name.
    """

    def __init__(
        self,
        folders: Mapping[str, pathlib.Path],
        load: Load,
        policy: Policy,
        m: Metrics,
        writers: Sequence[Writer] = (),
    ):
        """Reads one version of each (`models.first`); `start` compiles them. Raises LsmError."""
        self.writers = {writer.name: writer for writer in writers}
        self._load, self._policy, self._metrics = load, policy, m
        self._changing = asyncio.Lock()
        self.models = {name: Served(name, folder) for name, folder in folders.items()}
        for served in self.models.values():
            number, folder = first(served.folder)
            version = self._version(served.name, number, folder)
            version.share = 1.0
            version.meter.share.set(1)
            served.versions[number] = version

    @property
    def ready(self) -> bool:
        """Whether every model has a version that is ready and gets requests, and writes."""
        computes = all(
            any(v.share and v.state == "READY" for v in served.versions.values())
            for served in self.models.values()
        )
        return computes and all(writer.ready for writer in self.writers.values())

    def model(self, name: str) -> Served:
        """Returns the model `name`. Raises Refused (404) where none is, or it writes texts."""
        if name in self.models:
            return self.models[name]
        if name in self.writers:
            line = f"{name} writes texts: it has no versions, and is asked under /v1."
        else:
            known = [*self.models, *self.writers]
            hint = nearest(name[:100], known)
            line = f"{shortened(name)!r} is no model here; there are {listed(known)}.{hint}"
        raise Refused(404, "not_found", line)

    async def start(self) -> None:
        """Compiles what was read; a version that fails is UNAVAILABLE, and says why."""
        async with self._changing:
            for served in self.models.values():
                for version in served.versions.values():
                    await self._start(served.name, version)
            for writer in self.writers.values():
                await writer.start()

    async def close(self) -> None:
        """Computes what waits, and ends the threads."""
        for served in self.models.values():
            for number in list(served.versions):
                await served.versions.pop(number).batcher.close()
        for writer in self.writers.values():
            await writer.close()

    async def load(self, name: str, number: str | None) -> Version:
        """Loads a version, by default the newest, beside the others; it gets no share of requests.

        Where no version is left, it gets all. One that is loaded stays as it is.

        Raises:
          Refused: there is no such version in the model's folder, or it cannot be loaded.
        """
        served = self.model(name)
        async with self._changing:
            number, folder = await self._found(served, number)
            there = served.versions.get(number)
            if there and not there.reason:
                return there
            try:
                servable = await asyncio.to_thread(self._load, folder)
                if there:
                    await there.batcher.close()
                # Not in that thread: what is made here belongs to the event loop.
                version = self._version(name, number, folder, servable)
            except LsmError as error:
                raise Refused(409, "conflict", str(error)) from error
            served.versions[number] = version
            try:
                await self._start(name, version)
            finally:
                if version.state == "LOADING":  # given up: as if it had not been asked for
                    await served.versions.pop(number).batcher.close()
            if version.reason:
                raise Refused(409, "conflict", f"{name}/{number}: {version.reason}")
            if not any(other.share for other in served.versions.values()):
                served.share({number: 1})
            return version

    async def _found(self, served: Served, number: str | None) -> tuple[str, pathlib.Path]:
        try:
            found = await asyncio.to_thread(versions, served.folder)
        except LsmError as error:
            raise Refused(409, "conflict", str(error)) from error
        number = number or list(found)[-1]
        if number not in found:
            known = f"there are {listed(found)}."
            line = f"{served.name} has no version {shortened(number)!r}; {known}"
            raise Refused(404, "not_found", line)
        return number, found[number]

    async def unload(self, name: str, number: str | None) -> None:
        """Takes a version, by default all, out of service once it has answered who has chosen it.

        Raises:
          Refused: it is not loaded (404), or gets requests while others are there (409).
        """
        served = self.model(name)
        async with self._changing:
            if number and served.version(number).share and len(served.versions) > 1:
                line = f"{name}/{number} gets requests; give its share to another version first."
                raise Refused(409, "conflict", line)
            for gone in [number] if number else list(served.versions):
                version = served.versions.pop(gone)
                while version.users:
                    await asyncio.sleep(0.01)
                await version.batcher.close()
                _log.info("%s/%s: unloaded", name, gone)

    def _version(
        self, name: str, number: str, folder: pathlib.Path, servable: Servable | None = None
    ) -> Version:
        servable = servable or self._load(folder)
        check(servable.signature, folder)
        meter = self._metrics.meter(name, number, folder)
        batcher = Batcher(f"{name}-{number}", servable, self._policy, meter)
        version = Version(number, servable, batcher, meter)
        meter.ready.set_function(lambda: float(version.state == "READY"))
        return version

    async def _start(self, name: str, version: Version) -> None:
        try:
            await version.batcher.start()
        except Exception as error:
            version.meter.failed(error)
            version.reason = f"cannot be run: {shortened(' '.join(str(error).split()), 200)}"
            return
        _log.info("%s/%s: ready", name, version.number)
