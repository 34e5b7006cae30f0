"""Servers that share the work: who is asked next, how much at once, and who is waited for."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass

from gsec_core.captioners.servers import Failure, Server
from gsec_core.errors import GsecError, Refused

FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
"""Seconds; the waits between double, each less a random part, so that clients do not come back together."""

KEPT = "All answers are kept. When the server is back, a rerun continues."

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Place:
    """A server, and what is known of it in this round."""

    server: Server
    most: int
    """Requests that may be in progress. Halved when it is busy or silent, and one more with every answer, up to the setting."""
    under_way: int = 0
    isolated: bool = False
    """Whether a request is asked alone here, or is about to be: then no other begins."""
    gone_since: float | None = None
    busy_since: float | None = None
    """When it was busy first, since its last answer."""
    refusal: Refused | None = None
    """What it said when it was back, if it cannot be used as it is set up."""


class Pool:
    """``revived`` asks a server that is back for a sign of life: it raises Failure, or Refused if it cannot be used."""

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

    @asynccontextmanager
    async def round(self) -> AsyncIterator[None]:
        """A round is as long as anything is asked. At its beginning every server is taken to be there; after it nobody waits for one."""
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
    async def place(self, *, alone: bool) -> AsyncIterator[Place]:
        """Where most is free, as soon as anything is; ``alone`` all of a server, for a request that it may be lost by.

        Raises GsecError if no server is there for as long as the patience, Refused if one came back that cannot be used.
        """
        async with self._isolation if alone else nullcontext():
            try:
                place = await self._entered(alone)
                try:
                    yield place
                finally:
                    place.under_way -= 1
            finally:
                if alone:
                    self._isolate(None)
                await self._tell()

    def answered(self, place: Place) -> None:
        """A request had its answer."""
        place.busy_since = None
        place.most = min(self._at_once, place.most + 1)

    def slower(self, place: Place) -> None:
        """Requests are more than the server takes."""
        place.most = max(1, place.most // 2)

    def busy_for(self, place: Place) -> float:
        """Seconds since the server was busy first, no answer in between."""
        place.busy_since = place.busy_since or time.monotonic()
        return time.monotonic() - place.busy_since

    def lost(self, place: Place, why: Failure) -> None:
        """The server is gone: nobody is sent there until it is back."""
        self._last_loss = str(why)
        if place.gone_since is None:
            place.gone_since = time.monotonic()
            _log.warning("%s: the server is lost: %s. gsec looks for it.", place.server.setting, why)
            reviver = asyncio.create_task(self._revive(place))
            self._revivers.add(reviver)
            reviver.add_done_callback(self._revivers.discard)

    async def _entered(self, alone: bool) -> Place:
        async with self._changed:
            while (place := self._free(alone)) is None:
                left = self._patience_left()
                if left is not None and left <= 0:
                    addresses = ",".join(place.server.url for place in self._places)
                    raise GsecError(
                        f'describe.url = "{addresses}": no server answers, for describe.patience = {self._patience:g} s ({self._last_loss}). {KEPT}'
                    )
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()
            place.under_way += 1
            return place

    def _free(self, alone: bool) -> Place | None:
        for place in self._places:
            if place.refusal is not None:
                raise place.refusal
        there = sorted((place for place in self._places if place.gone_since is None), key=lambda place: place.under_way)
        if alone:  # one is kept free of others from now on, until it is empty
            kept = next((place for place in there if place.isolated), there[0] if there else None)
            self._isolate(kept)
            return kept if kept is not None and not kept.under_way else None
        return next((place for place in there if place.under_way < place.most and not place.isolated), None)

    def _isolate(self, kept: Place | None) -> None:
        """No others begin at ``kept``; None: anywhere."""
        for place in self._places:
            place.isolated = place is kept

    def _patience_left(self) -> float | None:
        """Seconds until nobody waits any more for a server; None if one is there."""
        gone = [place.gone_since for place in self._places if place.gone_since is not None]
        return max(gone) + self._patience - time.monotonic() if len(gone) == len(self._places) else None

    async def _revive(self, place: Place) -> None:
        """Wait until a server is back. It may be another one by then."""
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
            except Exception:  # noqa: BLE001 - logged; a server that nobody looks for would be gone for ever
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
    """Seconds to wait, again and again."""
    wait = FIRST_WAIT
    while True:
        yield wait * random.uniform(0.5, 1)
        wait = min(2 * wait, LONGEST_WAIT)
