"""Exceptions, grouped by their meaning for the user."""

import re


class GsecError(Exception):
    """A run could not be finished. Committed shards stay; a rerun continues. Exit code 1."""

    exit_code = 1


class Refused(GsecError):
    """The request cannot be carried out as asked: one sentence that names the setting and the remedy. Exit code 2."""

    exit_code = 2


class NotFound(Refused):
    """There is nothing with the given name, key or id."""


class Merged(NotFound):
    """The cluster with the given key was merged into another one."""

    def __init__(self, key: int, into: int) -> None:
        super().__init__(key, into)  # unchanged, so that the exception can be unpickled in another process
        self.into = into

    def __str__(self) -> str:
        return "cluster {} is part of cluster {} now.".format(*self.args)


class LostTable(Refused):
    """Shards of a run's table are missing, which its ``stage`` makes."""

    def __init__(self, table: str, run_id: str, stage: str) -> None:
        super().__init__(table, run_id, stage)  # unchanged, so that the exception can be unpickled in another process
        self.table, self.run_id, self.stage = table, run_id, stage

    def __str__(self) -> str:
        # For a published run that later runs read from, the same gsec run again may be another run by now.
        return "run {1} has no complete table {0}. Finish the run first: the same gsec run again, or gsec stage {2} --run {1}.".format(*self.args)


class BadShard(GsecError):
    """Committed shards whose bytes differ from what was written: a failed checksum, a truncated or foreign file."""

    def __init__(self, path: str, why: str, *, paths: tuple[str, ...] = ()) -> None:
        super().__init__(path, why)  # unchanged, so that the exception can be unpickled in another process
        self.paths = paths or (path,)

    def __str__(self) -> str:
        return ": ".join(self.args)

    @classmethod
    def of(cls, errors: "list[BadShard]") -> "BadShard":
        """Combine several errors into one."""
        paths = tuple(path for error in errors for path in error.paths)
        return cls(paths[0], f"{str(errors[0]).partition(': ')[2]} ({len(paths)} bad shards in all)", paths=paths)


class BadRecord(GsecError):
    """A record of a run or publication is not as gsec writes it; the message names the record and the remedy."""


class Unreachable(GsecError):
    """A store or source does not answer. Shards in progress are not committed."""


# A secret key may contain slashes: after a colon everything up to the "@" is secret.
_CREDENTIALS = re.compile(r"://[^/@:\s]*(?::[^@\s]*)?@")
_QUERY = re.compile(r"""(://[^\s?"']*\?)[^\s"'),;]+""")


def without_secrets(text: str) -> str:
    """``text`` with ``***`` in place of possible secrets in its URLs: credentials and queries."""
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub("://***@", text))


def shortened(text: str, most: int) -> str:
    """``text``, or its beginning and an ellipsis: at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
