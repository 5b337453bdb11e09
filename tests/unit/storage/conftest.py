"""What the tests of the log share."""

import os
from pathlib import Path

import pytest

from shoal.storage.directory import open_storage
from shoal.storage.log import DirectoryLogs


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the exhaustive tests of what is read back: durability is not their subject."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


@pytest.fixture
def logs(tmp_path: Path) -> DirectoryLogs:
    return open_storage(str(tmp_path)).logs
