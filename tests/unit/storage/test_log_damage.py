"""The log in a folder after damage: what is cut, what is a named loss."""

from pathlib import Path

import pytest

from shoal.errors import (
    CorruptLog,
    LossMismatch,
)
from shoal.storage import log_writer
from shoal.storage.directory import open_storage
from shoal.storage.log import DirectoryLogs
from shoal.storage.records import HEADER_BYTES
from tests.unit.storage.damage import SHARD, contents, crash, flip, log_files, log_folder, write


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("epoch", [1, 2])
def test_every_cut_of_the_last_record_keeps_the_acknowledged_prefix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epoch: int
) -> None:
    """Epoch 1 goes on in the file that was cut, epoch 2 seals it."""
    source = open_storage(str(tmp_path / "source")).logs
    opened = source.open(SHARD, 1)
    opened.append([b"one", b"two"])
    opened.append([b"three" * 5])
    (path,) = log_files(tmp_path / "source")
    data = path.read_bytes().rstrip(b"\0")
    begin = HEADER_BYTES + 2 * 48
    for cut in range(begin, len(data) + 1):
        folder = tmp_path / str(cut)
        logs = open_storage(str(folder)).logs
        write(logs, [[b"made"]])
        (target,) = log_files(folder)
        target.write_bytes(data[:cut])
        caplog.clear()
        again = logs.open(SHARD, epoch)
        whole = cut == len(data)
        assert contents(again) == {1: b"one", 2: b"two"} | ({3: b"three" * 5} if whole else {})
        torn = [] if whole or cut == begin else [record.getMessage() for record in caplog.records]
        assert len(torn) == (0 if whole or cut == begin else 1)
        # The header's last bytes may be zeros, as the preallocated room is.
        written = len(data[begin:cut].rstrip(b"\0"))
        assert all(f"{written} bytes (0 whole entries)" in message for message in torn)
        copies = list(log_folder(folder).glob("torn/*"))
        assert [copy.read_bytes() for copy in copies] == [
            data[begin : begin + written] for _ in torn
        ]
        assert again.append([b"next"]) == (4 if whole else 3)
        again.close()
        final = contents(logs.open(SHARD, 3))
        assert list(final.values())[-1] == b"next"
        assert len(final) == (4 if whole else 3)


@pytest.mark.usefixtures("no_fsync")
def test_every_flipped_byte_gives_the_same_entries_or_a_named_loss(tmp_path: Path) -> None:
    logs = open_storage(str(tmp_path)).logs
    write(logs, [[b"one", b"two"], [b"three" * 3]], epoch=1)
    write(logs, [[b"four"], [b"", b"six"]], epoch=2)
    whole = contents(logs.read(SHARD))
    assert len(whole) == 6
    losses = 0
    for path in log_files(tmp_path):
        for offset in range(path.stat().st_size):
            mask = 1 << offset % 8
            flip(path, offset, mask)
            losses += lost_or_whole(logs, whole)
            flip(path, offset, mask)
    assert contents(logs.read(SHARD)) == whole
    assert losses > 250


def lost_or_whole(logs: DirectoryLogs, whole: dict[int, bytes]) -> bool:
    try:
        assert contents(logs.read(SHARD)) == whole
    except CorruptLog as error:
        facts = error.metadata
        lost = range(int(facts["first_lost"]), int(facts["last_lost"]) + 1)
        with pytest.raises(CorruptLog) as again:
            logs.read(SHARD)
        assert again.value.metadata == facts
        rest = contents(logs.read(SHARD, accept_loss=facts["loss"]))
        assert rest == {n: p for n, p in whole.items() if n not in lost}
        assert len(rest) == 5
        return True
    return False


def test_a_loss_is_accepted_once_and_by_its_name(
    logs: DirectoryLogs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(logs, [[b"one"], [b"two"], [b"three"], [b"four"]])
    (path,) = log_files(tmp_path)
    flip(path, HEADER_BYTES + 48 + 40)
    flip(path, HEADER_BYTES + 2 * 48 + 40)
    with pytest.raises(LossMismatch) as mismatch:
        logs.open(SHARD, 2, "loss-of-another")
    with pytest.raises(CorruptLog) as caught:
        logs.open(SHARD, 3)
    facts = caught.value.metadata
    assert (facts["first_lost"], facts["last_lost"], facts["lost"]) == ("2", "3", "2")
    assert mismatch.value.metadata["loss"] == facts["loss"]
    with pytest.raises(CorruptLog) as again:
        logs.open(SHARD, 4)
    assert again.value.metadata == facts

    opened = logs.open(SHARD, 5, facts["loss"])
    assert "accepted" in caplog.text
    assert contents(opened) == {1: b"one", 4: b"four"}
    assert opened.append([b"five"]) == 5
    opened.close()
    for epoch, named in ((6, ""), (7, facts["loss"])):
        opened = logs.open(SHARD, epoch, named)
        assert contents(opened) == {1: b"one", 4: b"four", 5: b"five"}
        assert contents(opened, 1) == {4: b"four", 5: b"five"}
        opened.close()
    with pytest.raises(LossMismatch):
        logs.open(SHARD, 8, "loss-of-another")


def test_a_second_loss_needs_its_own_acceptance(logs: DirectoryLogs, tmp_path: Path) -> None:
    write(logs, [[b"one"], [b"two"], [b"three"]])
    (path,) = log_files(tmp_path)
    flip(path, HEADER_BYTES + 40)
    with pytest.raises(CorruptLog) as caught:
        logs.open(SHARD, 2)
    first = caught.value.metadata["loss"]
    logs.open(SHARD, 2, first).close()
    flip(path, HEADER_BYTES + 48 + 40)
    with pytest.raises(CorruptLog) as caught:
        logs.open(SHARD, 3, first)
    second = caught.value.metadata
    assert (second["first_lost"], second["last_lost"]) == ("2", "2")
    assert contents(logs.open(SHARD, 3, second["loss"])) == {3: b"three"}


def test_a_file_that_is_gone_is_a_loss(
    logs: DirectoryLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "FILE_BYTES", 200)
    write(logs, [[b"%d" % number] for number in range(9)])
    paths = log_files(tmp_path)
    paths[1].unlink()
    with pytest.raises(CorruptLog) as caught:
        logs.open(SHARD, 2)
    assert int(caught.value.metadata["first_lost"]) == int(paths[1].stem)
    assert int(caught.value.metadata["last_lost"]) == int(paths[2].stem) - 1


def test_damage_after_opening_is_found_when_reading(logs: DirectoryLogs, tmp_path: Path) -> None:
    opened = logs.open(SHARD, 1)
    opened.append([b"one", b"two", b"three"])
    flip(log_files(tmp_path)[0], HEADER_BYTES + 48 + 40)
    read = opened.entries(0)
    assert next(read).payload == b"one"
    with pytest.raises(CorruptLog) as caught:
        next(read)
    assert caught.value.metadata["first_lost"] == caught.value.metadata["last_lost"] == "2"


def test_damage_of_dropped_entries_is_no_loss(logs: DirectoryLogs, tmp_path: Path) -> None:
    opened = logs.open(SHARD, 1)
    opened.append([b"one", b"two", b"three"])
    opened.drop_prefix(2)
    opened.close()
    flip(log_files(tmp_path)[0], HEADER_BYTES + 40)
    assert contents(logs.open(SHARD, 2), 2) == {3: b"three"}


def test_a_damaged_header_or_seal_loses_nothing(
    logs: DirectoryLogs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(logs, [[b"one", b"two"]], epoch=1)
    write(logs, [[b"three"]], epoch=2)
    flip(log_files(tmp_path)[0], 3)
    (seal,) = log_folder(tmp_path).glob("epoch-*/seal")
    flip(seal, 30)
    opened = logs.open(SHARD, 3)
    assert contents(opened) == {1: b"one", 2: b"two", 3: b"three"}
    assert "damaged header" in caplog.text
    assert f"{seal} is damaged" in caplog.text
    opened.close()
    caplog.clear()
    assert contents(logs.open(SHARD, 4)) == {1: b"one", 2: b"two", 3: b"three"}
    assert f"{seal} is damaged" not in caplog.text


def test_a_header_torn_by_a_crash_is_written_anew(logs: DirectoryLogs, tmp_path: Path) -> None:
    opened = logs.open(SHARD, 1)
    opened.append([b"one"])
    crash(opened)
    (path,) = log_files(tmp_path)
    path.write_bytes(b"SHO")
    opened = logs.open(SHARD, 1)
    assert opened.last_sequence == 0
    assert opened.append([b"again"]) == 1
    opened.close()
    assert contents(logs.read(SHARD)) == {1: b"again"}
    assert path.read_bytes()[:8] == b"SHOALLOG"
