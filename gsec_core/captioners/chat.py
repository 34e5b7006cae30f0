"""A model behind one or several servers with OpenAI's API, and the patience to get an answer of it. See `servers` for what a failure means."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import regex

from gsec_core.captioners.servers import KEY, NO_KEY, Failure, Kind, Reply, Server, checked_urls, key
from gsec_core.captioners.template import excerpt
from gsec_core.config import DescribeConfig
from gsec_core.errors import GsecError, Refused

_log = logging.getLogger(__name__)

FAULTS = 3
"""So often a server fails at a request, and answers a plain one in between, until the request is to blame."""

LOSSES = 2
"""So often a server may be lost with a request under way; the next time the request is asked alone, and if it is lost again, is to blame."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
"""Seconds; the waits between double, each less a random part, so that clients do not come back together."""

_ABOUT_IT = (Kind.DECLINED, Kind.FAULTY, Kind.SILENT)
"""Failures that may be due to the request, which a plain one tells."""

_KEPT = "What was answered is kept; when the server is back, a rerun goes on."

Content = str | list[dict[str, Any]]
"""Of a user's message, as the API has it."""


class Declined(Exception):
    """This request is the cause that it has no answer, and will never have one."""


class Probe(NamedTuple):
    """What is asked to learn whether it is the request that fails, or the server."""

    plain: Content
    """Whatever cannot be answered about this cannot be answered about anything."""
    max_tokens: int
    remedy: str
    """What to do where nothing is answered about it."""
    pattern: str | None = None
    """A regular expression that replies are to be held to, if the server does that. vLLM does; others decline such a request, or take no notice."""
    off_topic: Content = ""
    """A question that nobody answers in the form of the pattern, unless held to it."""


class Chat:
    """A model that is asked. ``named`` is the setting that names it, as messages show it: ``describe.captioner = "openai:MODEL"``."""

    def __init__(self, model: str, *, named: str, config: DescribeConfig, probe: Probe) -> None:
        self.model = model
        self.named = named
        self.at_once = config.concurrency
        """Requests under way at each server."""
        secret = key()
        self._has_key = secret != NO_KEY
        self._patience = config.patience
        self._probe = probe
        self.servers = [Server(url, key=secret, timeout=config.timeout) for url in checked_urls(config.url)]
        self._changed = asyncio.Condition()
        self._isolation = asyncio.Lock()
        self._last_loss = ""
        self._asking = 0
        self._revivers: set[asyncio.Task[None]] = set()

    async def check(self) -> None:
        """Raises Refused unless one server at least has the model and answers, and none is set up wrongly."""
        outcomes = await asyncio.gather(*(self._check(server) for server in self.servers), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Failure):
                raise outcome
        lost = [f"{_setting(server)}: {failure}" for server, failure in zip(self.servers, outcomes, strict=True) if failure is not None]
        if len(lost) == len(self.servers):
            raise Refused(f"{'; '.join(lost)}. Start the server, or correct the address.")
        for one in lost:
            _log.warning("%s. It is done without.", one)

    async def ask(self, content: Content, temperature: float, max_tokens: int) -> Reply:
        """Ask until there is an answer, held to the probe's pattern where the server does that.

        Raises Declined if this request will never have one, Refused if nothing will ever be answered as it is set up,
        GsecError if the servers were gone or busy for longer than ``describe.patience``.
        """
        async with self._round():
            return await self._ask(content, temperature, max_tokens)

    async def _ask(self, content: Content, temperature: float, max_tokens: int) -> Reply:
        faults = losses = 0
        busy_since: float | None = None
        waits = _waits()
        while True:
            alone = losses >= LOSSES
            async with self._place(alone) as server:
                held: bool | None = None
                try:
                    if self._probe.pattern is not None and server.holds is None:
                        await self._ask_plainly(server)
                    held = server.holds
                    return await server.complete(self.body(content, temperature, max_tokens, held=bool(held)))
                except Failure as failure:
                    meant = await self._meant(server, failure)
                if meant.kind in _ABOUT_IT:
                    faults += 1
                    if meant.kind == Kind.DECLINED and server.holds == held:  # otherwise it is another server than it was
                        raise Declined(str(meant))
                    if faults == FAULTS:
                        raise Declined(f"the server fails at this, though not at others: {meant}")
                elif meant.kind == Kind.GONE:
                    self._lost(server, meant)
                    losses += 1
                    if alone:
                        raise Declined(f"the server was lost {losses} times while this was asked, at last when nothing else was: {meant}")
                elif meant.kind == Kind.BUSY:
                    busy_since = busy_since or time.monotonic()
                    left = busy_since + self._patience - time.monotonic()
                    if left <= 0:
                        raise GsecError(f"{_setting(server)}: the server answers {meant}, for describe.patience = {self._patience:g} s. {_KEPT}")
                    # In its place, so that a server with a full queue is asked less.
                    await asyncio.sleep(min(max(next(waits), meant.retry_after), left))

    async def _meant(self, server: Server, failure: Failure) -> Failure:
        """The failure of a request, after a look at what else the server answers. Raises Refused if something is set wrong."""
        if failure.kind == Kind.SETTINGS:
            raise self._refused(server, failure) from None
        if failure.kind in _ABOUT_IT:
            try:
                await self._ask_plainly(server)
            except Failure as plain:
                if plain.kind in (Kind.DECLINED, Kind.SETTINGS):
                    raise self._refused(server, plain) from None
                return Failure(Kind.GONE, f"it fails at any request ({plain})")
        elif failure.kind == Kind.BUSY and not await server.is_healthy():
            return Failure(Kind.GONE, str(failure))
        return failure

    @asynccontextmanager
    async def _round(self) -> AsyncIterator[None]:
        """A round is as long as anything is asked. At its beginning every server is taken to be there; after it nobody waits for one."""
        if not self._asking:
            for server in self.servers:
                server.gone_since = server.refusal = None
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            if not self._asking:
                for reviver in self._revivers:
                    reviver.cancel()

    @asynccontextmanager
    async def _place(self, alone: bool) -> AsyncIterator[Server]:
        """A place at the server that has most free: one of ``at_once``, or all of one server's for a request that is to be asked alone."""
        async with self._isolation if alone else nullcontext():
            try:
                server = await self._entered(alone)
                try:
                    yield server
                finally:
                    server.under_way -= 1
            finally:
                if alone:
                    self._isolate(None)
                await self._tell()

    async def _entered(self, alone: bool) -> Server:
        async with self._changed:
            while (server := self._free(alone)) is None:
                left = self._patience_left()
                if left is not None and left <= 0:
                    raise GsecError(f"{self._addresses}: no server answers, for describe.patience = {self._patience:g} s ({self._last_loss}). {_KEPT}")
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()
            server.under_way += 1
            return server

    def _free(self, alone: bool) -> Server | None:
        """Raises Refused if a server that was lost came back and cannot be used."""
        for server in self.servers:
            if server.refusal is not None:
                raise server.refusal
        there = [server for server in self.servers if server.gone_since is None]
        if alone:
            chosen = next((server for server in there if server.isolated), there[0] if there else None)
            self._isolate(chosen)
            return chosen if chosen is not None and not chosen.under_way else None
        free = [server for server in there if server.under_way < self.at_once and not server.isolated]
        return min(free, key=lambda server: server.under_way, default=None)

    def _isolate(self, chosen: Server | None) -> None:
        for server in self.servers:
            server.isolated = server is chosen

    def _patience_left(self) -> float | None:
        """Seconds until nobody waits any more for a server; None if one is there."""
        since = [server.gone_since for server in self.servers]
        gone = [moment for moment in since if moment is not None]
        return max(gone) + self._patience - time.monotonic() if len(gone) == len(since) else None

    def _lost(self, server: Server, why: Failure) -> None:
        self._last_loss = str(why)
        if server.gone_since is None:
            server.gone_since = time.monotonic()
            _log.warning("%s: the server is lost: %s. It is looked for.", _setting(server), why)
            reviver = asyncio.create_task(self._revive(server))
            self._revivers.add(reviver)
            reviver.add_done_callback(self._revivers.discard)

    async def _revive(self, server: Server) -> None:
        """Wait until a server is back. It may be another one by then."""
        for wait in _waits():
            if await server.is_healthy():
                server.holds = None
                try:
                    await self._ask_plainly(server)
                    break
                except Failure as failure:
                    if failure.kind in (Kind.DECLINED, Kind.SETTINGS):
                        server.refusal = self._refused(server, failure)
                        break
            await asyncio.sleep(wait)
        _log.warning("%s: the server is back.", _setting(server))
        server.gone_since = None
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _check(self, server: Server) -> None:
        try:
            served = await server.models()
        except Failure as failure:
            if failure.kind in (Kind.DECLINED, Kind.FAULTY):
                raise Refused(
                    f"{_setting(server)} does not list its models ({failure}): give the address of OpenAI's API on the server; it mostly ends in /v1."
                ) from None
            raise self._refused(server, failure) if failure.kind == Kind.SETTINGS else failure from None
        if self.model not in served:
            listed = ", ".join(excerpt(name) for name in served[:20]) or "none"
            raise Refused(f"{self.named}: {server.url} has no such model; its models are: {listed}.")
        try:
            await self._ask_plainly(server)
        except Failure as failure:
            raise self._refused(server, failure) if failure.kind in (Kind.DECLINED, Kind.SETTINGS) else failure from None

    async def _ask_plainly(self, server: Server) -> None:
        """Find out whether the server answers, and whether it holds replies to the pattern. Raises Failure."""
        wanted = time.monotonic()
        async with server.asking:
            if server.asked_at >= wanted:  # by another request that failed with this one
                if server.plain_failure is not None:
                    raise server.plain_failure
                return
            server.asked_at, server.plain_failure = time.monotonic(), None
            try:
                await self._probed(server)
            except Failure as failure:
                server.plain_failure = failure
                raise

    async def _probed(self, server: Server) -> None:
        probe = self._probe
        if probe.pattern is not None:
            try:
                reply = await server.complete(self.body(probe.off_topic, 0, probe.max_tokens, held=True))
                # A reply that was cut is the beginning of one.
                server.holds = regex.fullmatch(probe.pattern, reply.text, partial=reply.finish == "length") is not None
            except Failure as failure:
                if failure.kind not in (Kind.DECLINED, Kind.FAULTY):
                    raise
                server.holds = False
        if not server.holds:
            await server.complete(self.body(probe.plain, 0, probe.max_tokens, held=False))

    def body(self, content: Content, temperature: float, max_tokens: int, *, held: bool) -> dict[str, Any]:
        """Of a request, as the client wants it."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": temperature, "max_tokens": max_tokens}
        return body | {"extra_body": {"structured_outputs": {"regex": self._probe.pattern}}} if held else body

    def _refused(self, server: Server, failure: Failure) -> Refused:
        """What of the settings is wrong."""
        setting, status = _setting(server), failure.status or 0
        if failure.kind == Kind.DECLINED:
            return Refused(f"{self.named}: {server.url} declines any request ({failure}). {self._probe.remedy}")
        if status in (401, 403):
            what = "the key in" if self._has_key else "requests without a key; put it into"
            return Refused(f"{setting}: the server does not take {what} {KEY} ({failure}).")
        if status == 404:
            return Refused(f"{setting}: the server has no model {self.model}, or there is no OpenAI API at this address, which mostly ends in /v1 ({failure}).")
        if status < 400:
            return Refused(f"{setting}: the server sends on to another address ({status}), where its key does not go; give the final address.")
        return Refused(f"{setting}: the server takes no such requests ({failure}); it must have OpenAI's chat completions.")

    @property
    def _addresses(self) -> str:
        return f'describe.url = "{",".join(server.url for server in self.servers)}"'


def _setting(server: Server) -> str:
    return f'describe.url = "{server.url}"'


def _waits() -> Iterator[float]:
    wait = FIRST_WAIT
    while True:
        yield wait * random.uniform(0.5, 1)
        wait = min(2 * wait, LONGEST_WAIT)
