"""An error of another process says the same after it was passed to this one."""

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
def test_an_error_keeps_its_type_message_and_attributes_when_pickled(error: GsecError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
