"""A model behind one or several servers with OpenAI's API, with retries. See `servers` for the meaning of failures."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import regex

from gsec_core.captioners import replies
from gsec_core.captioners.pool import KEPT, Place, Pool, waits
from gsec_core.captioners.servers import KEY, NO_KEY, Failure, Kind, Reply, Server, checked_urls, key
from gsec_core.captioners.template import MATCH_SECONDS, excerpt
from gsec_core.config import DescribeConfig
from gsec_core.errors import GsecError, Refused

BREAKS = 10
"""After this number of replies that were broken off, a request gives up."""

FAULTS = 3
"""If servers fail at a request this number of times, each of them at least once, but answer a plain request each time, the request is to blame."""

LOSSES = 2
"""If a request is lost this number of times among others, because the server is gone or silent, it is sent alone; if it is lost again, it is to blame."""

_log = logging.getLogger(__name__)

Content = str | list[dict[str, Any]]
"""Content of a user's message in the API."""


class Declined(Exception):
    """The request itself is the reason why it is not answered, and will never be."""


class Probe(NamedTuple):
    """Requests by which to find out whether a request is at fault, or the server."""

    plain: Content
    """A plain request: if the server cannot answer it, it cannot answer any request."""
    max_tokens: int
    remedy: str
    """Advice for the error message if the plain request is declined."""
    more_tokens: str = ""
    """Further advice if reasoning uses up ``max_tokens``."""
    pattern: str | None = None
    """A regular expression that the server should enforce on replies. vLLM can; other servers decline such a request, or ignore the pattern."""
    off_topic: Content = ""
    """A question whose answer matches the pattern only if the server enforces it."""


@dataclass
class _Known:
    """What plain requests have shown about a server."""

    holds: bool | None = None
    """Whether it enforces the pattern; None if this is not known yet."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_at: float = 0.0
    """Start time of the last plain request that has finished; ``failure`` tells how it failed, if it did."""
    failure: Failure | None = None


class Chat:
    """A client of a model. ``named`` is the setting that names it, for messages: ``describe.captioner = "openai:MODEL"``."""

    def __init__(self, model: str, *, named: str, config: DescribeConfig, probe: Probe) -> None:
        secret = key()
        self.model = model
        self.named = named
        self.in_hand = 2 * config.concurrency * len(checked_urls(config.url))
        """Number of requests to prepare: twice the number that may be in progress."""
        self._has_key = secret != NO_KEY
        self._patience = config.patience
        self._probe = probe
        self._servers = {Server(url, key=secret, timeout=config.timeout): _Known() for url in checked_urls(config.url)}
        self._pool = Pool(list(self._servers), at_once=config.concurrency, patience=config.patience, revived=self._revived)

    @property
    def holds(self) -> set[bool]:
        """Whether the pattern is enforced: the set of findings about the servers that were asked."""
        return {known.holds for known in self._servers.values() if known.holds is not None}

    async def check(self) -> None:
        """Raises Refused unless at least one server has the model and answers, and none is set up wrongly."""
        outcomes = await asyncio.gather(*map(self._check, self._servers), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Failure):
                raise outcome
        lost = [f"{server.setting}: {failure}" for server, failure in zip(self._servers, outcomes, strict=True) if failure is not None]
        if len(lost) == len(self._servers):
            raise Refused(f"{'; '.join(lost)}. Start the server, or correct the address.")
        for one in lost:
            _log.warning("%s. gsec continues without it.", one)

    async def ask(self, content: Content, temperature: float, max_tokens: int) -> Reply:
        """Ask until there is an answer; where the server can, it enforces the probe's pattern.

        Raises Declined if this request will never be answered, Refused if no request can succeed with these settings,
        GsecError if the servers were gone or busy for longer than ``describe.patience``, or broke off too many replies.
        """
        faults = losses = breaks = 0
        failed_at: set[Server] = set()
        declined = ""
        wait = waits()
        async with self._pool.round():
            while True:
                alone = losses >= LOSSES
                async with self._pool.place(alone=alone, failed_at=failed_at) as place:
                    known = self._servers[place.server]
                    held: bool | None = None
                    try:
                        if self._probe.pattern is not None and known.holds is None:
                            await self._ask_plainly(place.server)
                        held = known.holds
                        reply = await place.server.complete(self.body(content, temperature, max_tokens, held=bool(held)))
                        self._pool.answered(place)
                        return reply
                    except Failure as failure:
                        meant = await self._meant(place.server, failure)
                    pause = 0.0
                    match meant.kind:
                        case Kind.DECLINED | Kind.FAULTY:
                            faults += 1
                            # If it turned out just now whether the server enforces patterns, that may be why the request failed: send it the other way.
                            as_known = known.holds == held
                            if as_known:
                                failed_at.add(place.server)
                                declined = str(meant) if meant.kind == Kind.DECLINED else declined
                            if not self._pool.others(failed_at):
                                if as_known and meant.kind == Kind.DECLINED:
                                    raise Declined(declined)
                                if faults >= FAULTS:
                                    raise Declined(f"the server fails at this request, but not at others: {meant}")
                            pause = next(wait)
                        case Kind.GONE | Kind.SILENT:
                            if meant.kind == Kind.GONE:
                                self._pool.lost(place, meant)
                            self._pool.slower(place)
                            losses += meant.sent
                            failed_at.add(place.server)
                            if meant.sent and alone:
                                raise Declined(f"the server was silent or gone {losses} times during this request, finally when it was sent alone: {meant}")
                        case Kind.BROKEN_OFF:
                            breaks += 1
                            failed_at.add(place.server)
                            if breaks == BREAKS:
                                raise GsecError(f"{place.server.setting}: {meant} {breaks} times. {KEPT}")
                            self._pool.slower(place)
                            pause = next(wait)
                        case Kind.BUSY:
                            self._pool.slower(place)
                            if declined and not self._pool.others(failed_at):
                                raise Declined(declined)
                            pause = self._pause(place, meant, next(wait))
                    await asyncio.sleep(pause)  # keeps its place meanwhile, so that the server gets fewer requests

    def body(self, content: Content, temperature: float, max_tokens: int, *, held: bool) -> dict[str, Any]:
        """Body of a request for the client; ``held`` asks the server to enforce the pattern."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": temperature, "max_tokens": max_tokens}
        return body | {"extra_body": {"structured_outputs": {"regex": self._probe.pattern}}} if held else body

    async def _meant(self, server: Server, failure: Failure) -> Failure:
        """The failure of a request, reconsidered after a plain request to the server. Raises Refused if a setting is wrong."""
        if failure.kind == Kind.SETTINGS:
            raise self._refused(server, failure) from None
        if failure.kind in (Kind.DECLINED, Kind.FAULTY, Kind.SILENT):
            try:
                await self._ask_plainly(server)
            except Failure as plain:
                if plain.kind in (Kind.DECLINED, Kind.SETTINGS):
                    raise self._refused(server, plain) from None
                return Failure(Kind.GONE, f"it fails at every request ({plain})")
        elif failure.kind == Kind.BUSY and not await server.is_healthy():
            return Failure(Kind.GONE, str(failure))
        return failure

    def _pause(self, place: Place, busy: Failure, wait: float) -> float:
        """Seconds to wait before asking a busy server again. Raises GsecError if it has not answered any request for ``describe.patience``."""
        left = self._patience - self._pool.busy_for(place)
        if left <= 0:
            raise GsecError(f"{place.server.setting}: the server answers {busy}, for describe.patience = {self._patience:g} s. {KEPT}")
        return min(max(wait, busy.retry_after), left)

    async def _revived(self, server: Server) -> None:
        self._servers[server].holds = None  # it may be a different server now
        try:
            await self._ask_plainly(server)
        except Failure as failure:
            raise self._refused(server, failure) if failure.kind in (Kind.DECLINED, Kind.SETTINGS) else failure from None

    async def _check(self, server: Server) -> None:
        try:
            served = await server.models()
        except Failure as failure:
            if failure.kind in (Kind.DECLINED, Kind.FAULTY):
                raise Refused(
                    f"{server.setting} does not list its models ({failure}): give the address of OpenAI's API on the server; it usually ends in /v1."
                ) from None
            raise self._refused(server, failure) if failure.kind == Kind.SETTINGS else failure from None
        if self.model not in served:
            listed = ", ".join(excerpt(name) for name in served[:20]) or "none"
            raise Refused(f"{self.named}: {server.url} has no such model; its models are: {listed}.")
        await self._revived(server)

    async def _ask_plainly(self, server: Server) -> None:
        """Find out whether the server answers, and whether it enforces the pattern. Raises Failure."""
        known, wanted = self._servers[server], time.monotonic()
        async with known.asking:
            if known.asked_at < wanted:  # otherwise another request that failed at the same time has asked meanwhile
                started, failure = time.monotonic(), None
                try:
                    await self._probed(server, known)
                except Failure as error:
                    failure = error
                known.asked_at, known.failure = started, failure
            if known.failure is not None:
                raise known.failure

    async def _probed(self, server: Server, known: _Known) -> None:
        probe = self._probe
        if probe.pattern is not None:
            try:
                reply = await server.complete(self.body(probe.off_topic, 0, probe.max_tokens, held=True))
                known.holds = bool(reply.text.strip()) and _matches(probe.pattern, reply)
            except Failure as failure:
                if failure.kind not in (Kind.DECLINED, Kind.FAULTY):
                    raise
                known.holds = False
        if not known.holds:
            reply = await server.complete(self.body(probe.plain, 0, probe.max_tokens, held=False))
            if is_only_reasoning(reply):
                raise Refused(
                    f"{self.named}: {server.url} answers with reasoning only, and no text in {probe.max_tokens} tokens. Serve the model without reasoning "
                    f"(with vLLM: --default-chat-template-kwargs '{{\"enable_thinking\": false}}'), or name one that does not reason{probe.more_tokens}."
                )

    def _refused(self, server: Server, failure: Failure) -> Refused:
        """The error that says which setting is wrong."""
        setting, status = server.setting, failure.status or 0
        if failure.kind == Kind.DECLINED:
            return Refused(f"{self.named}: {server.url} declines every request ({failure}). {self._probe.remedy}")
        if status in (401, 403):
            what = "the key in" if self._has_key else "requests without a key; put it into"
            return Refused(f"{setting}: the server does not accept {what} {KEY} ({failure}).")
        if status == 402:
            return Refused(f"{setting}: the server wants to be paid ({failure}). Add credit to the account of the key in {KEY}.")
        if status == 404:
            return Refused(
                f"{setting}: the server has no model {self.model}, or there is no OpenAI API at this address, which usually ends in /v1 ({failure})."
            )
        if status < 400:
            return Refused(f"{setting}: the server redirects to another address ({status}), to which the key is not sent; give the final address.")
        return Refused(f"{setting}: the server does not accept such requests ({failure}); it must have OpenAI's chat completions.")


def is_only_reasoning(reply: Reply) -> bool:
    """Whether a reply contains reasoning, in its text or in a separate field, but no answer."""
    return replies.is_only_reasoning(reply.text) if reply.text.strip() else reply.reasoned


def _matches(pattern: str, reply: Reply) -> bool:
    """Whether a reply matches the pattern; a reply that was cut must match the beginning of the pattern."""
    try:
        return regex.fullmatch(pattern, reply.text, partial=reply.finish == "length", timeout=MATCH_SECONDS, concurrent=True) is not None
    except TimeoutError:
        return False
