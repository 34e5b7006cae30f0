"""What can go wrong, by what it means for the user."""

import re


class GsecError(Exception):
    """A run could not be finished. Committed shards stay; a rerun continues. Exit code 1."""

    exit_code = 1


class Refused(GsecError):
    """The request cannot be carried out as asked: one sentence that names the setting and the remedy. Exit code 2."""

    exit_code = 2


class NotFound(Refused):
    """There is nothing of the name, key or id that was given."""


class BadShard(GsecError):
    """Committed shards whose bytes are not what was written: a failed checksum, a torn or foreign file."""

    def __init__(self, path: str, why: str, *, paths: tuple[str, ...] = ()) -> None:
        super().__init__(path, why)  # as they are, or no other process could make it again
        self.paths = paths or (path,)

    def __str__(self) -> str:
        return ": ".join(self.args)

    @classmethod
    def of(cls, errors: "list[BadShard]") -> "BadShard":
        """Several as one."""
        paths = tuple(path for error in errors for path in error.paths)
        return cls(paths[0], f"{str(errors[0]).partition(': ')[2]} ({len(paths)} bad shards in all)", paths=paths)


class BadRecord(GsecError):
    """A record of a run or of a publication that is not what gsec writes: says which, and what to do."""


class Unreachable(GsecError):
    """A store or a source that does not answer. What was being worked on stays uncommitted."""


# A secret key may hold slashes: after a colon everything up to the "@" is secret.
_CREDENTIALS = re.compile(r"://[^/@:\s]*(?::[^@\s]*)?@")
_QUERY = re.compile(r"""(://[^\s?"']*\?)[^\s"'),;]+""")


def without_secrets(text: str) -> str:
    """``text`` with ``***`` for what may be secret in the addresses it holds: credentials and queries."""
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub("://***@", text))
