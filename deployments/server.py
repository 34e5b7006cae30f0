"""Prefect's server: `prefect server start`, corrected for automations on SQLite.

An automation counts events in transactions that read before they write, and SQLite refuses the write at once if another connection has
written in between: events got lost, signs of life among them, and runs that worked were taken for crashed. Here these transactions
begin as the writers that they are, and wait.

A thread that waits so holds its connection's mutex, and freeing a cursor of that connection waits for the mutex. Cursors of
statements that failed are freed by the garbage collector, which runs in whichever thread comes to it. In the server's own it stopped
the event loop, and with it the one that had the write lock and should have given it back: nothing moved for the minute that SQLite waits.
Here it has a thread of its own, which may wait.
"""

import gc
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession

SECONDS = 10
"""Between two collections. Each stops Python while it looks at all that was made since the start."""


def main() -> None:
    """Takes what `prefect server start` takes."""
    from prefect.cli import app
    from prefect.server.events import triggers

    vars(triggers)["automations_session"] = automations_session
    gc.disable()
    threading.Thread(target=_collect, daemon=True).start()
    sys.argv[:1] = ["prefect", "server", "start"]
    app()


@asynccontextmanager
async def automations_session(begin_transaction: bool = False) -> AsyncIterator[AsyncSession]:
    """Prefect's of the same name, except for the transaction, which begins with the write lock of SQLite. PostgreSQL knows no such thing."""
    from prefect.server.database import provide_database_interface

    async with provide_database_interface().session_context(begin_transaction, with_for_update=begin_transaction) as session:
        yield session


def _collect() -> None:
    time.sleep(SECONDS)
    gc.collect()
    gc.freeze()  # what the start has made stays, and looking at it takes a fifth of a second
    while True:
        time.sleep(SECONDS)
        gc.collect()


if __name__ == "__main__":
    main()
