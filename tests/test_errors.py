"""What went wrong in another process says here what it said there."""

import pickle

import pytest

from gsec_core.errors import BadRecord, BadShard, GsecError, Refused, Unreachable


@pytest.mark.parametrize(
    "error",
    [
        GsecError("a sentence"),
        Refused("a sentence"),
        BadRecord("a sentence"),
        Unreachable("a sentence"),
        BadShard("a/b.parquet", "a failed checksum"),
        BadShard.of([BadShard("a", "torn"), BadShard("b", "foreign")]),
    ],
)
def test_an_error_passes_between_processes(error: GsecError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
