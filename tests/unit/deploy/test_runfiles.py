"""A held lock is a living process, and nothing else is."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.launchers import runfiles
from deploy.launchers.runfiles import AlreadyRunning, RunFile, RunRecord, living, read_living

RECORD = RunRecord("server-0", "server", 12345, 2)


def test_a_record_lives_as_long_as_its_lock(tmp_path: Path) -> None:
    run_file = RunFile(tmp_path, RECORD)
    assert living(tmp_path) == [RECORD]
    run_file.write(replace(RECORD, address="127.0.0.1:1"))
    living_record = read_living(tmp_path, "server-0")
    assert living_record is not None
    assert living_record.address == "127.0.0.1:1"
    run_file.close()
    assert living(tmp_path) == []
    assert (tmp_path / "server-0").exists(), "a stale file says nothing"


def test_a_second_process_of_one_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfiles, "_LOCK_PATIENCE_S", -1.0)
    run_file = RunFile(tmp_path, RECORD)
    with pytest.raises(AlreadyRunning, match="server-0"):
        RunFile(tmp_path, replace(RECORD, pid=2))
    assert living(tmp_path) == [RECORD]
    run_file.close()


def test_a_folder_that_is_not_there_runs_nothing(tmp_path: Path) -> None:
    assert living(tmp_path / "run") == []
    assert read_living(tmp_path, "server-0") is None
