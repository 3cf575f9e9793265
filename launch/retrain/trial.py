"""A version tried by a server: a share of the requests, and what the server says of it then."""

import dataclasses
import datetime
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from launch.retrain.config import Canary
from launch.retrain.figures import FixedSet
from launch.retrain.server import Conflict, Seen, Server
from lsm import export

_EVERY = 1.0  # seconds between two looks


def offer(
    server: Server, canary: Canary, old: str, new: str, fixed: FixedSet, folder: pathlib.Path
) -> dict[str, Any]:
    """Loads a version beside the one that serves, and gives it its share of the requests.

    It gets none where it cannot be loaded, or says too often something else than the old one.

    Args:
      server: the server.
      canary: how it is tried.
      old: number of the version that serves.
      new: of the other.
      fixed: examples that both are asked.
      folder: the new one's artefact.

    Returns:
      "missed", why it gets none; "agrees"; and "before", what both had done by then.
    """
    try:
        server.load(new)
    except Conflict as error:
        return {"missed": [str(error)], "agrees": None, "before": {}}
    agrees = _agreement(server, old, new, fixed, export.load(folder))
    if not agrees >= canary.agrees_at_least:
        line = f"both agree on {agrees:.3g} of the examples; {canary.agrees_at_least:g} is needed"
        return {"missed": [line], "agrees": agrees, "before": {}}
    before = {number: dataclasses.asdict(server.seen(number)) for number in (old, new)}
    server.share(shares(canary, old, new))
    return {"missed": [], "agrees": agrees, "before": before}


def _agreement(server: Server, old: str, new: str, fixed: FixedSet, model: export.Model) -> float:
    """Returns the share of the fixed set on which both versions say the same."""
    same = []
    for number in range(len(fixed.batches)):
        batch = fixed.batches.batch_at(number)
        columns = fixed.columns(model, batch)
        equal = server.said(old, columns) == server.said(new, columns)
        same.append(equal[batch["weight"] > 0])
    return float(np.mean(np.concatenate(same)))


def shares(canary: Canary, old: str, new: str) -> dict[str, float]:
    """Returns the shares of both during the trial."""
    return {old: 1 - canary.share, new: canary.share}


def watched(
    server: Server, canary: Canary, old: str, new: str, offered: Mapping[str, Any]
) -> dict[str, Any]:
    """Waits until a version has answered enough, or the time is over, and judges it.

    A server that was started again is told the shares once more.

    Args:
      server: the server.
      canary: how it is tried.
      old: number of the version that serves.
      new: of the other.
      offered: the journal's line of `offer`.
    """
    said = {"decided_by": "canary", "missed": offered["missed"], "seen": {}}
    if offered["missed"]:
        return said | {"passed": False}
    # As the file has it, NaN is None.
    before = {n: Seen(**_numbers(offered["before"][n])) for n in (old, new)}
    begun = datetime.datetime.fromisoformat(offered["time"])
    while True:
        over = (datetime.datetime.now(datetime.UTC) - begun).total_seconds() >= canary.seconds
        try:
            _restore(server, canary, old, new)
        except Conflict as error:
            return said | {"passed": False, "missed": [str(error)]}
        seen = {n: server.seen(n).since(before[n]) for n in (old, new)}
        missed = judged(canary, seen[old], seen[new])
        if missed or over or seen[new].answered >= canary.requests:
            told = {number: dataclasses.asdict(one) for number, one in seen.items()}
            return said | {"passed": not missed, "missed": missed, "seen": told}
        time.sleep(_EVERY)


def judged(canary: Canary, old: Seen, new: Seen) -> list[str]:
    """Returns what speaks against a version by now.

    Failures do from the first on; time and drift once there are `requests` of them.
    """
    missed = []
    allowed = canary.failures_at_most * max(new.answered, canary.requests)
    if new.failed > allowed:
        missed.append(f"{new.failed:g} of {new.answered:g} requests failed")
    if new.answered < canary.requests:
        return missed
    if new.calls and old.call_seconds:
        ratio = new.call_seconds / new.calls * old.calls / old.call_seconds
        if not ratio <= canary.latency_at_most:
            most = canary.latency_at_most
            missed.append(f"a call takes {ratio:.3g} times as long; {most:g} is allowed")
    if not math.isnan(new.drift) and new.drift > canary.drift_at_most:
        missed.append(f"outputs drift by {new.drift:.3g}; {canary.drift_at_most:g} is allowed")
    return missed


def _restore(server: Server, canary: Canary, old: str, new: str) -> None:
    there = server.versions()
    if new in there and there[new]["share"]:
        return
    server.load(new)
    if old in server.versions():
        server.share(shares(canary, old, new))


def _numbers(record: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in record.items()}
