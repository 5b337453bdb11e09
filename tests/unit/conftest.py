"""Unit tests touch no network, no Ray and no clock: anything that tries fails at once."""

import socket
import sys
import time
from typing import Any, NoReturn

import pytest


def refuse(what: str) -> Any:
    def refused(*_: object, **__: object) -> NoReturn:
        raise AssertionError(f"a unit test must not {what}")

    return refused


@pytest.fixture(autouse=True)
def no_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", refuse("connect to a network"))
    monkeypatch.setattr(socket.socket, "listen", refuse("listen on a network"))
    monkeypatch.setattr(time, "sleep", refuse("sleep"))
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse("start Ray"))
