"""Every row of the error table is made to happen over the wire by some test."""

from pathlib import Path

import pytest

from shoal.errors import TABLE, ShoalError

TESTS = Path(__file__).resolve().parents[1]
SOURCES = "".join(
    path.read_text()
    for folder in ("wire", "cluster")
    for path in sorted((TESTS / folder).glob("*.py"))
    if path != Path(__file__)
)


@pytest.mark.parametrize("error", TABLE.values(), ids=TABLE)
def test_some_test_makes_it_happen(error: type[ShoalError]) -> None:
    assert error.reason in SOURCES or error.__name__ in SOURCES
