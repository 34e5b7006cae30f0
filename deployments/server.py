"""Prefect's server: `prefect server start`, with corrected automations.

On SQLite, an automation counts events in transactions that read before they write, and SQLite refuses the write at once if another connection has
written in between. So events were lost, heartbeats among them, and running flow runs were taken for crashed. Here these transactions
take the write lock when they begin, and wait for it.

A thread that waits for the lock holds its connection's mutex, and freeing a cursor of that connection waits for the mutex. Cursors of
failed statements are freed by the garbage collector, which runs in any thread. In the thread of the event loop it blocked the loop, and
with it the task that held the write lock, so that nothing moved for the minute that SQLite waits. Here the garbage collector runs in a
thread of its own, which may wait.

While the server is down it misses heartbeats, and at its next start it marked the flow runs that had sent them as crashed. Here every automation
that waits for an event waits its whole time again.

With Redis, Prefect collects a few events before it publishes them, and a timer publishes them too. An event that arrived while the timer was at work
was lost. Here each event is published when it arrives, and the timer never comes to it.

In a stack of `gsec up` the server also bounds the logs of all services.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession

from deployments import logs

if TYPE_CHECKING:
    from prefect.server.utilities.messaging import MessageHandler

SECONDS = 10
"""Seconds between two garbage collections. Each stops Python while it looks at all objects made since the start."""

PUBLISHER = {"PREFECT_REDIS_MESSAGING_PUBLISHER_BATCH_SIZE": "1", "PREFECT_REDIS_MESSAGING_PUBLISHER_PUBLISH_EVERY": str(365 * 24 * 60 * 60)}
"""Variables by which each event is published when it arrives; the timer's period is in seconds."""

LOG_SECONDS = 10
"""Seconds between two looks at the logs."""


def main() -> None:
    """Start the server; takes the arguments of `prefect server start`."""
    from prefect.cli import app
    from prefect.server.events import triggers

    consumer = triggers.consumer

    @asynccontextmanager
    async def patient_consumer() -> "AsyncIterator[MessageHandler]":
        await restart_periods()  # before any event is read and any automation is loaded
        async with consumer() as handler:
            yield handler

    os.environ.update(PUBLISHER)
    vars(triggers).update(automations_session=automations_session, consumer=patient_consumer)
    gc.disable()
    threading.Thread(target=_collect, daemon=True).start()
    if folder := os.environ.get(logs.VARIABLE):
        threading.Thread(target=_bound, args=(Path(folder),), daemon=True).start()
    sys.argv[:1] = ["prefect", "server", "start"]
    app()


@asynccontextmanager
async def automations_session(begin_transaction: bool = False) -> AsyncIterator[AsyncSession]:
    """Like Prefect's function of this name, but the transaction begins with the write lock on SQLite. On PostgreSQL it is the same."""
    from prefect.server.database import provide_database_interface

    async with provide_database_interface().session_context(begin_transaction, with_for_update=begin_transaction) as session:
        yield session


async def restart_periods() -> None:
    """Let the periods begin now in which automations still wait for an event."""
    from prefect.server.database import provide_database_interface
    from prefect.types._datetime import now

    buckets = provide_database_interface().AutomationBucket
    async with automations_session(begin_transaction=True) as session:
        for bucket in await session.scalars(sqlalchemy.select(buckets).where(buckets.count == 0)):
            bucket.end += now("UTC") - bucket.start


def _collect() -> None:
    time.sleep(SECONDS)
    gc.collect()
    gc.freeze()  # objects made at the start stay, and looking at them takes a fifth of a second
    while True:
        time.sleep(SECONDS)
        gc.collect()


def _bound(folder: Path) -> None:
    while True:
        logs.bound(folder)
        time.sleep(LOG_SECONDS)


if __name__ == "__main__":
    main()
