"""A model behind one or several servers with OpenAI's API, and the patience to get an answer of it. See `servers` for what a failure means."""

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
"""So often a reply may be broken off."""

FAULTS = 3
"""So often a server fails at a request, and answers a plain one after each, until the request is to blame."""

LOSSES = 2
"""So often a request may be lost in company, with the server or by its silence; then it is asked alone, and if it is lost again, is to blame."""

_log = logging.getLogger(__name__)

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
    more_tokens: str = ""
    """What else helps where reasoning takes all of ``max_tokens``."""
    pattern: str | None = None
    """A regular expression that replies are to be held to, if the server does that. vLLM does; others decline such a request, or take no notice."""
    off_topic: Content = ""
    """A question that nobody answers in the form of the pattern, unless held to it."""


@dataclass
class _Known:
    """What plain requests have told of a server."""

    holds: bool | None = None
    """Whether it holds replies to the pattern; None while nobody has asked."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_at: float = 0.0
    """When the last plain request began that came to an end, and how it failed."""
    failure: Failure | None = None


class Chat:
    """A model that is asked. ``named`` is the setting that names it, as messages show it: ``describe.captioner = "openai:MODEL"``."""

    def __init__(self, model: str, *, named: str, config: DescribeConfig, probe: Probe) -> None:
        secret = key()
        self.model = model
        self.named = named
        self.in_hand = 2 * config.concurrency * len(checked_urls(config.url))
        """Requests to have ready: as many as are in progress, and as many again."""
        self._has_key = secret != NO_KEY
        self._patience = config.patience
        self._probe = probe
        self._servers = {Server(url, key=secret, timeout=config.timeout): _Known() for url in checked_urls(config.url)}
        self._pool = Pool(list(self._servers), at_once=config.concurrency, patience=config.patience, revived=self._revived)

    @property
    def holds(self) -> set[bool]:
        """Whether replies are held to the pattern, by the servers that were asked."""
        return {known.holds for known in self._servers.values() if known.holds is not None}

    async def check(self) -> None:
        """Raises Refused unless one server at least has the model and answers, and none is set up wrongly."""
        outcomes = await asyncio.gather(*map(self._check, self._servers), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Failure):
                raise outcome
        lost = [f"{server.setting}: {failure}" for server, failure in zip(self._servers, outcomes, strict=True) if failure is not None]
        if len(lost) == len(self._servers):
            raise Refused(f"{'; '.join(lost)}. Start the server, or correct the address.")
        for one in lost:
            _log.warning("%s. gsec goes on without it.", one)

    async def ask(self, content: Content, temperature: float, max_tokens: int) -> Reply:
        """Ask until there is an answer, held to the probe's pattern where the server does that.

        Raises Declined if this request will never have one, Refused if nothing will ever be answered as it is set up,
        GsecError if the servers were gone or busy for longer than ``describe.patience``.
        """
        faults = losses = breaks = 0
        wait = waits()
        async with self._pool.round():
            while True:
                alone = losses >= LOSSES
                async with self._pool.place(alone=alone) as place:
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
                            # Where it is found out now that the server holds no replies, or does, it may have failed at that: it is asked the other way.
                            if meant.kind == Kind.DECLINED and known.holds == held:
                                raise Declined(str(meant))
                            faults += 1
                            if faults == FAULTS:
                                raise Declined(f"the server fails at this, though not at others: {meant}")
                            pause = next(wait)
                        case Kind.GONE | Kind.SILENT:
                            if meant.kind == Kind.GONE:
                                self._pool.lost(place, meant)
                            self._pool.slower(place)
                            losses += meant.sent
                            if meant.sent and alone:
                                raise Declined(f"silent or gone {losses} times when this was asked, at last alone: {meant}")
                        case Kind.BROKEN_OFF:
                            breaks += 1
                            if breaks == BREAKS:
                                raise GsecError(f"{place.server.setting}: {meant} {breaks} times. {KEPT}")
                            self._pool.slower(place)
                            pause = next(wait)
                        case Kind.BUSY:
                            self._pool.slower(place)
                            pause = self._pause(place, meant, next(wait))
                    await asyncio.sleep(pause)  # in its place, so that the server is asked less

    def body(self, content: Content, temperature: float, max_tokens: int, *, held: bool) -> dict[str, Any]:
        """Of a request, as the client wants it."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": temperature, "max_tokens": max_tokens}
        return body | {"extra_body": {"structured_outputs": {"regex": self._probe.pattern}}} if held else body

    async def _meant(self, server: Server, failure: Failure) -> Failure:
        """The failure of a request, after a look at what else the server answers. Raises Refused if something is set wrong."""
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
        """Seconds to leave a busy server alone. Raises GsecError if it answered nobody for as long as the patience."""
        left = self._patience - self._pool.busy_for(place)
        if left <= 0:
            raise GsecError(f"{place.server.setting}: the server answers {busy}, for describe.patience = {self._patience:g} s. {KEPT}")
        return min(max(wait, busy.retry_after), left)

    async def _revived(self, server: Server) -> None:
        self._servers[server].holds = None  # it may be another one
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
        """Find out whether the server answers, and whether it holds replies to the pattern. Raises Failure."""
        known, wanted = self._servers[server], time.monotonic()
        async with known.asking:
            if known.asked_at < wanted:  # otherwise another request that failed with this one has asked
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
        """What of the settings is wrong."""
        setting, status = server.setting, failure.status or 0
        if failure.kind == Kind.DECLINED:
            return Refused(f"{self.named}: {server.url} declines every request ({failure}). {self._probe.remedy}")
        if status in (401, 403):
            what = "the key in" if self._has_key else "requests without a key; put it into"
            return Refused(f"{setting}: the server does not accept {what} {KEY} ({failure}).")
        if status == 404:
            return Refused(
                f"{setting}: the server has no model {self.model}, or there is no OpenAI API at this address, which usually ends in /v1 ({failure})."
            )
        if status < 400:
            return Refused(f"{setting}: the server redirects to another address ({status}), to which the key is not sent; give the final address.")
        return Refused(f"{setting}: the server does not accept such requests ({failure}); it must have OpenAI's chat completions.")


def is_only_reasoning(reply: Reply) -> bool:
    """Whether a reply has reasoning, in its text or apart from it, and no answer."""
    return replies.is_only_reasoning(reply.text) if reply.text.strip() else reply.reasoned


def _matches(pattern: str, reply: Reply) -> bool:
    """Whether a reply is of the pattern; one that was cut is if it is the beginning of such."""
    try:
        return regex.fullmatch(pattern, reply.text, partial=reply.finish == "length", timeout=MATCH_SECONDS, concurrent=True) is not None
    except TimeoutError:
        return False
