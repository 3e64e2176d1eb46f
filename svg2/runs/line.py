"""Whose turn it is to compute in this process: one at a time, in the order of arrival."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from svg2.errors import Cancelled, TooBusy

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WAITING = 16
_TELL_SECONDS = 2.0  # how often those who wait are told where they stand

OnWait = Callable[[int, "float | None"], None]
"""Called with how many go first, and the seconds until the turn comes, None while unknown."""


class Place:
    """A place in a line.

    Attributes:
        seconds: what the turn takes, or what is left of it once it has come; None while unknown.
        is_disturbed: whether other work of this process ran during the turn.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.is_disturbed = False


class Line:
    """Places in the order of arrival; the first one has the turn.

    Args:
        most_waiting: places behind the first.
    Attributes:
        is_closed: whether all who wait and the one who has the turn are to end.
    """

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self._most_waiting = most_waiting
        self._places: list[Place] = []
        self._changed = threading.Condition()
        self.is_closed = False

    @property
    def is_busy(self) -> bool:
        """Whether something computes now, which other work would disturb."""
        return bool(self._places)

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return max(0, len(self._places) - 1)

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return len(self._places) <= self._most_waiting

    def check_room(self) -> None:
        """Check that one more may wait.

        Raises:
            TooBusy: as many wait as may.
        """
        if not self.has_room:
            raise TooBusy(
                f"{self._most_waiting} runs wait here already, which is as many as may: try again "
                "in some minutes."
            )

    def join(self, seconds: float | None = None) -> Place:
        """Take the last place.

        Args:
            seconds: what the turn is expected to take.

        Raises:
            TooBusy: as many wait as may.
        """
        with self._changed:
            self.check_room()
            place = Place(seconds)
            self._places.append(place)
            return place

    def leave(self, place: Place) -> None:
        """Give a place up, whether its turn has come or not; a second call does nothing."""
        with self._changed:
            if place in self._places:
                self._places.remove(place)
                self._changed.notify_all()

    def look_again(self) -> None:
        """Have all who wait see whether they were cancelled."""
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout: float = 10.0) -> bool:
        """Have all places given up, and wait for that, at most `timeout` s; whether it came."""
        self.is_closed = True
        self.look_again()
        return self.wait_until_idle(timeout)

    @contextmanager
    def turn(
        self, place: Place, is_cancelled: Callable[[], bool], on_wait: OnWait
    ) -> Iterator[None]:
        """Wait for the turn of a place, and give it up at the end of the block.

        Args:
            on_wait: called at once where somebody goes first, at each change, and in between.

        Raises:
            Cancelled: it was cancelled before its turn came, or the line was closed.
        """

        def is_over() -> bool:
            return self.is_closed or is_cancelled()

        try:
            with self._changed:
                while (ahead := self._places.index(place)) and not is_over():
                    on_wait(ahead, self._seconds_of(ahead))
                    self._changed.wait(_TELL_SECONDS)
            if is_over():
                raise Cancelled
            yield
        finally:
            self.leave(place)

    @contextmanager
    def aside(self, patience: float) -> Iterator[None]:
        """Do work that is no run: after the present turn, and before those who wait.

        Where the present turn takes longer than `patience` seconds, both go on at the same time,
        and the place that has the turn is marked as disturbed.
        """
        place = Place(None)
        with self._changed:
            self._places.insert(min(1, len(self._places)), place)
            if not self._changed.wait_for(lambda: self._places[0] is place, patience):
                self._places[0].is_disturbed = True
                self._places.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            self.leave(place)

    @property
    def is_disturbed(self) -> bool:
        """Whether the present turn was disturbed so far."""
        with self._changed:
            return bool(self._places) and self._places[0].is_disturbed

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until nothing computes, for at most `timeout` seconds; whether that came."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._places, timeout)

    def _seconds_of(self, count: int) -> float | None:
        """What the first `count` places take together; None while that of one is unknown."""
        known = [place.seconds for place in self._places[:count] if place.seconds is not None]
        return sum(known) if len(known) == count else None
