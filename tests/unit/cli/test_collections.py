"""What `shoal create` makes of its arguments."""

from pathlib import Path

import pytest

from deploy.commands.collections import _from_anywhere


def test_a_folder_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _from_anywhere("./model") == str((tmp_path / "model").resolve())


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "none", "org/model@" + "0" * 40, "./gone"])
def test_other_references_stay(name: str) -> None:
    assert _from_anywhere(name) == name
