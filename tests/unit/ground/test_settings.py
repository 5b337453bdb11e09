"""Settings refuse what they do not know."""

from dataclasses import dataclass

import pytest

from shoal.settings import load


@dataclass(frozen=True, kw_only=True)
class Example:
    port: int = 1
    share: float = 0.5
    quiet: bool = False
    data: str = "x"


def test_reads_every_type() -> None:
    environment = {"E_PORT": "7", "E_SHARE": "0.25", "E_QUIET": "true", "E_DATA": "d", "OTHER": "1"}
    assert load(Example, "E_", environment) == Example(port=7, share=0.25, quiet=True, data="d")


@pytest.mark.parametrize("environment", [{"E_PROT": "7"}, {"E_PORT": "x"}, {"E_QUIET": "maybe"}])
def test_refuses_typos(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="E_"):
        load(Example, "E_", environment)
