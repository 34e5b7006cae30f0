"""The logs of a stack's services, bounded in size.

The processes of a service write to its log by a descriptor that they inherited. If the log were renamed, they would go on writing to it under its
new name. So, like logrotate's `copytruncate`, a large log is copied and then emptied. The processes append, so they go on at its beginning.
Lines that they write between the two steps are lost.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

VARIABLE = "GSEC_LOGS"
"""Environment variable of Prefect's server with the folder of the logs."""

MOST = 10 * 2**20
"""Bytes of a log from which it is copied and emptied."""


def bound(folder: Path) -> None:
    """Move the content of each log in ``folder`` that is larger than `MOST` to NAME.log.1, in place of what is there."""
    for log in folder.glob("*.log"):
        with suppress(FileNotFoundError):  # an operator has removed it
            if log.stat().st_size > MOST:
                with suppress(OSError):  # a full disk has no room for the copy, and all the more needs the log to be emptied
                    shutil.copyfile(log, f"{log}.1")
                os.truncate(log, 0)
