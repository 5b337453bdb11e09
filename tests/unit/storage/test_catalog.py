"""Compare-and-swap: one winner, no resurrection, no path tricks."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.errors import CorruptCatalog, DiskFull, InvalidRequest
from shoal.storage import catalog as module
from shoal.storage import files
from shoal.storage.catalog import KEPT_VERSIONS, DirectoryCatalog
from shoal.storage.directory import open_storage
from shoal.storage.ports import Versioned
from tests.unit.storage.damage import flip


@pytest.fixture
def catalog(tmp_path: Path) -> DirectoryCatalog:
    return open_storage(str(tmp_path)).catalog


def test_a_value_is_published_under_the_next_version(catalog: DirectoryCatalog) -> None:
    key = "collections/papers"
    assert catalog.get(key) == Versioned(0, b"")
    assert catalog.put(key, b"one", 1) is None
    assert catalog.put(key, b"one", 0) == 1
    assert catalog.put(key, b"other", 0) is None
    assert catalog.put(key, b"", 1) == 2
    assert catalog.get(key) == Versioned(2, b"")


def test_of_many_threads_one_wins_each_version(tmp_path: Path) -> None:
    threads, increments = 6, 15
    wins: list[int] = []

    def work() -> None:
        own = DirectoryCatalog(str(tmp_path))
        done = 0
        while done < increments:
            seen = own.get("counter")
            version = own.put("counter", b"%d" % (int(seen.value or b"0") + 1), seen.version)
            if version is not None:
                wins.append(version)
                done += 1

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    total = threads * increments
    assert sorted(wins) == list(range(1, total + 1))
    assert DirectoryCatalog(str(tmp_path)).get("counter") == Versioned(total, b"%d" % total)
    assert len(os.listdir(tmp_path / "counter")) == KEPT_VERSIONS


def test_a_deleted_key_does_not_come_back(catalog: DirectoryCatalog) -> None:
    catalog.delete("key")
    catalog.put("key", b"one", 0)
    catalog.put("key", b"two", 1)
    catalog.delete("key")
    catalog.delete("key")
    assert catalog.get("key") == Versioned(0, b"")
    assert catalog.keys("") == []
    # Who read version 2 before the deletion has lost, also after a re-creation.
    assert catalog.put("key", b"late", 2) is None
    version = catalog.put("key", b"anew", 0)
    assert version is not None
    assert version > 2
    assert catalog.put("key", b"late", 2) is None
    assert catalog.get("key") == Versioned(version, b"anew")


def test_a_deletion_that_dies_half_way_shows_no_older_version(
    catalog: DirectoryCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in range(3):
        catalog.put("key", b"%d" % version, version)

    class Died(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr(DirectoryCatalog, "_prune", die)
        with pytest.raises(Died):
            catalog.delete("key")
    assert catalog.get("key").version == 0


def test_a_writer_that_slept_through_many_versions_has_lost(
    catalog: DirectoryCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.put("key", b"first", 0)
    real = files.publish

    def after_others(folder: str, name: str, data: bytes) -> bool:
        monkeypatch.setattr(files, "publish", real)
        for version in range(1, 3 * KEPT_VERSIONS):
            assert catalog.put("key", b"other", version) == version + 1
        return real(folder, name, data)

    monkeypatch.setattr(files, "publish", after_others)
    assert catalog.put("key", b"sleeper", 1) is None
    assert catalog.get("key") == Versioned(3 * KEPT_VERSIONS, b"other")
    assert catalog.put("key", b"on", 3 * KEPT_VERSIONS) == 3 * KEPT_VERSIONS + 1


def test_a_reader_that_is_overtaken_by_pruning_reads_again(
    catalog: DirectoryCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.put("key", b"old", 0)
    real = module._file_name

    def after_others(version: int) -> str:
        monkeypatch.setattr(module, "_file_name", real)
        for number in range(1, 2 * KEPT_VERSIONS):
            catalog.put("key", b"new", number)
        return real(version)

    monkeypatch.setattr(module, "_file_name", after_others)
    assert catalog.get("key") == Versioned(2 * KEPT_VERSIONS, b"new")


def test_keys_are_listed_by_prefix(catalog: DirectoryCatalog) -> None:
    names = ["collections/a", "collections/b-2", "manifests/0f/1/0", "topology", "collections/B"]
    for name in names:
        catalog.put(name, b"", 0)
    assert catalog.keys("") == sorted(names)
    assert catalog.keys("collections/") == ["collections/B", "collections/a", "collections/b-2"]
    assert catalog.keys("nothing") == []


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "a//b", "/a", "a/", "..", "a/../b", ".hidden", "a/.b", "a\0b"),
        *("a b", "é", "a%2fb", "a\\b", "a\n", "x" * 300),
    ],
)
def test_path_tricks_are_refused(catalog: DirectoryCatalog, key: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidRequest):
        catalog.put(key, b"value", 0)
    with pytest.raises(InvalidRequest):
        catalog.get(key)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_flipped_byte_of_a_value_is_found(catalog: DirectoryCatalog, tmp_path: Path) -> None:
    catalog.put("key", b"older", 0)
    catalog.put("key", b"newest", 1)
    path = max((tmp_path / "catalog" / "key").iterdir())
    data = path.read_bytes()
    for offset in range(len(data)):
        flip(path, offset)
        with pytest.raises(CorruptCatalog):
            catalog.get("key")
        flip(path, offset)
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptCatalog):
            catalog.get("key")
    path.write_bytes((path.parent / f"{1:020d}").read_bytes())
    with pytest.raises(CorruptCatalog):
        catalog.get("key")


def test_a_full_disk_publishes_nothing(
    catalog: DirectoryCatalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    catalog.put("key", b"one", 0)

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, "injected")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", no_room)
        with pytest.raises(DiskFull):
            catalog.put("key", b"two", 1)
    assert catalog.get("key") == Versioned(1, b"one")
    assert len(os.listdir(tmp_path / "catalog" / "key")) == 1


def test_temporary_files_of_the_dead_are_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.catalog.put("key", b"one", 0)
    folder = tmp_path / "catalog" / "key"
    (folder / ".tmp-dead").write_bytes(b"half")
    with files.temporary(str(folder), b"value") as living:
        open_storage(str(tmp_path))
        assert Path(living).read_bytes() == b"value"
    assert sorted(os.listdir(folder)) == [f"{1:020d}"]


class CatalogMachine(RuleBasedStateMachine):
    """Writers with stale knowledge against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="shoal-catalog-")
        self.catalog = DirectoryCatalog(self.folder)
        self.model: dict[str, Versioned] = {}
        self.seen: list[tuple[str, Versioned]] = []

    @rule(key=st.sampled_from("ab"))
    def look(self, key: str) -> None:
        value = self.catalog.get(key)
        assert value == self.model.get(key, Versioned(0, b""))
        self.seen.append((key, value))

    @rule(data=st.data(), value=st.binary(max_size=3))
    def put_after_a_look(self, data: st.DataObject, value: bytes) -> None:
        if not self.seen:
            return
        key, seen = data.draw(st.sampled_from(self.seen))
        current = self.model.get(key, Versioned(0, b""))
        version = self.catalog.put(key, value, seen.version)
        assert (version is not None) == (seen.version == current.version)
        if version is not None:
            assert version > current.version
            assert seen.version == 0 or version == seen.version + 1
            self.model[key] = Versioned(version, value)

    @rule(key=st.sampled_from("ab"))
    def delete(self, key: str) -> None:
        self.catalog.delete(key)
        self.model.pop(key, None)

    @invariant()
    def keys_are_those_of_the_model(self) -> None:
        assert self.catalog.keys("") == sorted(self.model)

    def teardown(self) -> None:
        files.remove_folder(self.folder)


TestCatalogMachine = CatalogMachine.TestCase
TestCatalogMachine.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
