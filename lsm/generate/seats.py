"""Who writes in which slot, and how far each is: prompts are read, texts go on, places are left."""

import dataclasses

import numpy as np

from lsm.generate.requests import Ticket
from lsm.generate.sampling import GREEDY, Draws
from lsm.generate.slots import Chosen, Rows, Slots
from lsm.generate.writing import Writing


@dataclasses.dataclass(kw_only=True)
class Seat:
    """A slot as the host knows it.

    Attributes:
      prompt: of the text that is there, or was the last.
      filled: how many tokens of it the cache holds.
      ticket: who writes there; None where it is free.
      writing: the text.
      order: larger the later it was taken, or left.
    """

    prompt: np.ndarray
    filled: int = 0
    ticket: Ticket | None = None
    writing: Writing | None = None
    order: int = 0

    @property
    def unread(self) -> int:
        """Tokens of the prompt to read: all but the last, which goes into the first step."""
        return len(self.prompt) - 1 - self.filled if self.ticket else 0


class Seats:
    """The slots of a cache with those who write there; for one thread.

    Attributes:
      seats: by slot.
    """

    def __init__(self, slots: Slots):
        self.seats = [Seat(prompt=np.zeros(0, np.int32)) for _ in range(slots.count)]
        self._slots, self._rows, self._order = slots, Rows.idle(slots.count), 0

    @property
    def taken(self) -> dict[int, Ticket]:
        """Who writes, by slot."""
        return {slot: ticket for slot, seat in enumerate(self.seats) if (ticket := seat.ticket)}

    @property
    def positions(self) -> int:
        """Positions of the cache that those who write fill."""
        return int(self._rows.length_S[[*self.taken]].sum())

    def take(self, ticket: Ticket, writing: Writing) -> int:
        """Gives a free slot to a request; returns how many tokens of its prompt are there."""
        request, prompt = ticket.request, ticket.request.prompt
        slot, filled = self._place(prompt)
        self._order += 1
        self.seats[slot] = Seat(
            prompt=prompt, filled=filled, ticket=ticket, writing=writing, order=self._order
        )
        draws = Draws.of([request.sampling], [request.seed])
        self._set(slot, draws, length=filled, given=prompt[-1])
        return filled

    def _place(self, prompt: np.ndarray) -> tuple[int, int]:
        """Returns a free slot, and how many tokens of a prompt it has now."""
        there = [self._there(seat, prompt) for seat in self.seats]
        part = self._slots.part
        free = [slot for slot, seat in enumerate(self.seats) if not seat.ticket]
        # What is in a slot can be copied to another one of the same part.
        source = {
            slot: max(
                (n for n in range(len(there)) if part(n) == part(slot)), key=there.__getitem__
            )
            for slot in free
        }
        # Where most of the prompt is; best without a copy; else where nobody was for longest.
        slot = max(free, key=lambda n: (there[source[n]], there[n], -self.seats[n].order))
        if there[source[slot]] > there[slot]:
            self._slots.copy(source[slot], slot)
        return slot, there[source[slot]]

    def _there(self, seat: Seat, prompt: np.ndarray) -> int:
        """How many tokens of a prompt need not be read: whole chunks, so that none is cut anew."""
        most = min(seat.filled, len(prompt) - 1)
        other = np.flatnonzero(seat.prompt[:most] != prompt[:most])
        common = int(other[0]) if len(other) else most
        return common - common % self._slots.chunk

    def leave(self, slot: int) -> None:
        """Frees a slot; what it holds of the prompt stays until somebody takes it."""
        seat = self.seats[slot]
        self._order += 1
        seat.ticket, seat.writing, seat.order = None, None, self._order
        self._set(slot, Draws.of([GREEDY], [0]), length=seat.filled, given=0)

    def clear(self, slot: int) -> None:
        """As `leave`, and nothing stays."""
        self.seats[slot].filled = 0
        self.leave(slot)
        self._slots.clear(slot)

    def _set(self, slot: int, draws: Draws, length: int, given: int) -> None:
        rows = self._rows
        rows.length_S[slot], rows.number_S[slot], rows.given_S[slot] = length, 0, given
        for of_all, own in zip(rows.draws, draws, strict=True):
            of_all[slot] = own[0]

    def read(self) -> int:
        """Reads one chunk of the prompts, or several short ones; returns how many tokens.

        Those who came first are the first.
        """
        budget, count = self._slots.chunk, 0
        while budget > 0 and (chunks := self._chunks()):
            self._slots.read(chunks)
            begin, tokens = next(iter(chunks.values()))
            budget -= self._slots.size(len(tokens), begin)
            for slot, (begin, tokens) in chunks.items():
                self.seats[slot].filled = self._rows.length_S[slot] = begin + len(tokens)
                count += len(tokens)
        return count

    def _chunks(self) -> dict[int, tuple[int, np.ndarray]]:
        """Returns the next chunk of the first request, and one like it of each other part."""
        unread = [slot for slot, seat in enumerate(self.seats) if seat.unread]
        found, sizes, parts = {}, set(), set()
        for slot in sorted(unread, key=lambda slot: self.seats[slot].order):
            seat, part = self.seats[slot], self._slots.part(slot)
            count = min(seat.unread, self._slots.chunk)
            size = self._slots.size(count, seat.filled)
            if part not in parts and sizes <= {size}:
                sizes, parts = {size}, parts | {part}
                found[slot] = seat.filled, seat.prompt[seat.filled : seat.filled + count]
        return found

    def draw(self) -> tuple[Chosen | None, dict[int, Ticket]]:
        """Has the next token drawn of each text whose prompt is read; returns them, and of whom."""
        rows = self._rows
        live = {
            slot: ticket
            for slot, ticket in self.taken.items()
            if not self.seats[slot].unread and rows.number_S[slot] < ticket.request.stop.longest
        }
        if not live:
            return None, live
        for slot in live:
            # Not before: steps draw for others while a prompt is read, and their tokens count.
            if rows.number_S[slot] == 0 and rows.draws.penalty_B[slot] != 1:
                self._slots.see(slot, self.seats[slot].prompt)
        found = self._slots.step(rows, live, any(t.request.likeliest for t in live.values()))
        for slot in live:
            rows.length_S[slot] += 1
            rows.number_S[slot] += 1
            rows.given_S[slot] = -1
        return found, live
