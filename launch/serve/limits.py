"""How many requests a key may make: a rate, by a bucket of tokens, and a quota for each day."""

import dataclasses
import time
from collections.abc import Callable

from launch.serve.keys import Key
from launch.serve.refusal import Refused

_DAY = 86_400.0


@dataclasses.dataclass
class _Used:
    tokens: float
    at: float
    day: int = -1
    today: int = 0


class Limits:
    """Counts the requests of each key, in memory: a restart begins anew."""

    def __init__(self, clock: Callable[[], float] = time.time):
        """Takes a clock that gives seconds since 1970, UTC; days end at midnight."""
        self._clock = clock
        self._used: dict[str, _Used] = {}

    def take(self, key: Key) -> None:
        """Counts one request of `key`.

        Raises:
          Refused: 429, with the time until one more is allowed.
        """
        if key.rate is None and key.daily is None:
            return
        now = self._clock()
        burst = max(1.0, key.rate or 1.0)
        used = self._used.setdefault(key.id, _Used(burst, now))
        if used.day != int(now // _DAY):
            used.day, used.today = int(now // _DAY), 0
        if key.daily is not None and used.today >= key.daily:
            line = f"this key's {key.daily} requests of the day are used up."
            raise Refused(429, "quota", line, retry_after=_DAY - now % _DAY)
        if key.rate is not None:
            elapsed = max(now - used.at, 0.0)
            used.tokens, used.at = min(burst, used.tokens + elapsed * key.rate), now
            if used.tokens < 1:
                line = f"this key may make {key.rate:g} requests a second."
                raise Refused(429, "rate", line, retry_after=(1 - used.tokens) / key.rate)
            used.tokens -= 1
        used.today += 1
