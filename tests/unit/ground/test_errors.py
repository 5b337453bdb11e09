"""The error table and its way over the wire."""

import re

import pytest

from shoal.errors import TABLE, InternalError, Overloaded, ShoalError, from_reason
from shoal.wire.errors import from_status, grpc_code, to_status


@pytest.mark.parametrize("error", TABLE.values(), ids=TABLE)
def test_row_is_complete(error: type[ShoalError]) -> None:
    assert re.fullmatch(r"[A-Z][A-Z_]{2,62}", error.reason)
    assert error.__doc__
    assert grpc_code(error.code).value[0] == error.code.value
    assert not (error.caller_fault and error.retryable)


@pytest.mark.parametrize("error", TABLE.values(), ids=TABLE)
def test_row_survives_a_status(error: type[ShoalError]) -> None:
    back = from_status(to_status(error("what happened", shard=3)))
    assert type(back) is error
    assert back.message == "what happened"
    assert back.metadata == {"shard": "3"}


def test_unknown_reason_is_internal() -> None:
    assert type(from_reason("FROM_THE_FUTURE", "?")) is InternalError


def test_reasons_are_unique() -> None:
    with pytest.raises(TypeError, match="twice"):
        type("Again", (Overloaded,), {}, reason="OVERLOADED", code=Overloaded.code)
