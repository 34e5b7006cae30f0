"""Distributes requests over several servers: which server is next, how many requests run at once, and for which server to wait."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass

from gsec_core.captioners.servers import Failure, Server
from gsec_core.errors import GsecError, Refused

FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
"""Seconds; each wait is twice the one before, minus a random part, so that clients do not return at the same time."""

KEPT = "All answers are kept. When the server is back, a rerun continues."

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Place:
    """A server, and its state in the current round."""

    server: Server
    most: int
    """Largest number of requests in progress. Halved when the server is busy or silent, and increased by one with every answer, up to the setting."""
    under_way: int = 0
    isolated: bool = False
    """Whether a request is sent alone here, or is about to be; then no other request starts."""
    gone_since: float | None = None
    busy_since: float | None = None
    """Time at which it was first busy since its last answer."""
    refusal: Refused | None = None
    """The error if the server came back but cannot be used with these settings."""


class Pool:
    """The servers and the requests in progress. ``revived`` tests a server that is back; it raises Failure, or Refused if the server cannot be used."""

    def __init__(self, servers: Sequence[Server], *, at_once: int, patience: float, revived: Callable[[Server], Awaitable[None]]) -> None:
        self._places = [Place(server, at_once) for server in servers]
        self._at_once = at_once
        self._patience = patience
        self._revived = revived
        self._changed = asyncio.Condition()
        self._isolation = asyncio.Lock()
        self._asking = 0
        self._revivers: set[asyncio.Task[None]] = set()
        self._last_loss = ""
        self._answered_at = 0.0

    @asynccontextmanager
    async def round(self) -> AsyncIterator[None]:
        """A round lasts as long as any request is open. At its start all servers are assumed to be available; at its end, waiting for lost ones stops."""
        if not self._asking:
            for place in self._places:
                place.gone_since = place.busy_since = place.refusal = None
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            if not self._asking:
                for reviver in self._revivers:
                    reviver.cancel()

    @asynccontextmanager
    async def place(self, *, alone: bool, failed_at: Collection[Server] = ()) -> AsyncIterator[Place]:
        """Wait for a place at the server with the fewest requests; with ``alone``, at a server without others, for a request that may have brought one down.

        A request that failed at some servers waits for one of the `others`, if there is one. A busy server comes last.

        Raises GsecError if no server is available for ``patience`` seconds, Refused if a server came back that cannot be used.
        """
        async with self._isolation if alone else nullcontext():
            try:
                place = await self._entered(alone, failed_at)
                try:
                    yield place
                finally:
                    place.under_way -= 1
            finally:
                if alone:
                    self._isolate(None)
                await self._tell()

    def answered(self, place: Place) -> None:
        """Record that a request was answered."""
        place.busy_since, self._answered_at = None, time.monotonic()
        place.most = min(self._at_once, place.most + 1)

    def slower(self, place: Place) -> None:
        """Halve the number of requests at a server that is overloaded."""
        place.most = max(1, place.most // 2)

    def busy_for(self, place: Place) -> float:
        """Record that the server is busy. Returns the seconds for which it has been busy and no other server has answered."""
        place.busy_since = place.busy_since or time.monotonic()
        return time.monotonic() - max(place.busy_since, self._answered_at)

    def others(self, servers: Collection[Server]) -> list[Place]:
        """The places at other servers than these, without those that are gone, or busy for ``patience`` seconds."""
        now = time.monotonic()
        there = [place for place in self._places if place.server not in servers and place.gone_since is None]
        return [place for place in there if place.busy_since is None or now - place.busy_since < self._patience]

    def lost(self, place: Place, why: Failure) -> None:
        """Record that the server is gone: it gets no requests until it is back."""
        self._last_loss = str(why)
        if place.gone_since is None:
            place.gone_since = time.monotonic()
            _log.warning("%s: the server is lost: %s. gsec waits for it.", place.server.setting, why)
            reviver = asyncio.create_task(self._revive(place))
            self._revivers.add(reviver)
            reviver.add_done_callback(self._revivers.discard)

    async def _entered(self, alone: bool, failed_at: Collection[Server]) -> Place:
        async with self._changed:
            while (place := self._free(alone, failed_at)) is None:
                left = self._patience_left()
                if left is not None and left <= 0:
                    addresses = ",".join(place.server.url for place in self._places)
                    raise GsecError(
                        f'describe.url = "{addresses}": no server has answered for describe.patience = {self._patience:g} s ({self._last_loss}). {KEPT}'
                    )
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()
            place.under_way += 1
            return place

    def _free(self, alone: bool, failed_at: Collection[Server]) -> Place | None:
        for place in self._places:
            if place.refusal is not None:
                raise place.refusal
        there = (failed_at and self.others(failed_at)) or [place for place in self._places if place.gone_since is None]
        there = sorted(there, key=lambda place: (place.busy_since is not None, place.under_way))
        if alone:  # keep other requests away from one server until it is empty
            kept = next((place for place in there if place.isolated), there[0] if there else None)
            self._isolate(kept)
            return kept if kept is not None and not kept.under_way else None
        return next((place for place in there if place.under_way < place.most and not place.isolated), None)

    def _isolate(self, kept: Place | None) -> None:
        """Reserve the place ``kept`` for a single request; None ends the reservation."""
        for place in self._places:
            place.isolated = place is kept

    def _patience_left(self) -> float | None:
        """Seconds until waiting for a server ends; None if a server is available."""
        gone = [place.gone_since for place in self._places if place.gone_since is not None]
        return max(gone) + self._patience - time.monotonic() if len(gone) == len(self._places) else None

    async def _revive(self, place: Place) -> None:
        """Wait until a server is back. A different server may answer at its address then."""
        for wait in waits():
            try:
                if await place.server.is_healthy():
                    await self._revived(place.server)
                    break
            except Refused as refusal:
                place.refusal = refusal
                break
            except Failure:
                pass  # not yet
            except Exception:  # noqa: BLE001 - logged; without this loop the server would be lost for ever
                _log.exception("%s: unexpected; gsec keeps looking for the server", place.server.setting)
            await asyncio.sleep(wait)
        if place.refusal is None:
            _log.warning("%s: the server is back.", place.server.setting)
        place.gone_since = place.busy_since = None
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def waits() -> Iterator[float]:
    """Seconds of successive waits, without end; see `FIRST_WAIT`."""
    wait = FIRST_WAIT
    while True:
        yield wait * random.uniform(0.5, 1)
        wait = min(2 * wait, LONGEST_WAIT)
