"""Framing: what was written is read back, and nothing else ever is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import NotSupported
from shoal.storage import records as framing
from shoal.storage.records import (
    FRAGMENT_BYTES,
    HEADER_BYTES,
    LogFile,
    batch_bytes,
    check_header,
    encode_batch,
    encode_header,
    encode_marker,
    entries,
    records,
)
from shoal.types import ShardRef
from tests.unit.storage.damage import SHARD

FILE = LogFile(SHARD, epoch=5, first=10)
PAYLOADS = st.lists(st.binary(max_size=50), max_size=8)


def file_of(payloads: list[bytes], file: LogFile = FILE) -> bytes:
    batch = encode_batch(file, HEADER_BYTES, payloads, sequence=file.first, synced=file.first - 1)
    return encode_header(file) + batch


def read(data: bytes, file: LogFile = FILE) -> dict[int, bytes]:
    return {entry.sequence: entry.payload() for entry in entries(records(data, file))}


@given(PAYLOADS, st.integers(0, 100))
def test_entries_come_back_from_a_preallocated_file(payloads: list[bytes], zeros: int) -> None:
    data = file_of(payloads)
    assert len(data) == HEADER_BYTES + batch_bytes(payloads)
    assert read(data + bytes(zeros)) == dict(enumerate(payloads, 10))


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("fragments", [1, 2, 3])
def test_large_payloads_travel_in_fragments(fragments: int, extra: int) -> None:
    payload = bytes(range(256)) * (fragments * FRAGMENT_BYTES // 256) + b"z"
    payload = payload[: fragments * FRAGMENT_BYTES + extra]
    data = file_of([b"before", payload, b"after"])
    assert len(data) == HEADER_BYTES + batch_bytes([b"before", payload, b"after"])
    assert read(data) == {10: b"before", 11: payload, 12: b"after"}
    assert len(list(records(data, FILE))) == 2 + fragments + (extra > 0)


def test_an_entry_without_one_of_its_fragments_is_no_entry() -> None:
    data = bytearray(file_of([b"a", b"x" * (3 * FRAGMENT_BYTES), b"b"]))
    sound = list(records(bytes(data), FILE))
    for lost in sound[1:4]:
        damaged = bytearray(data)
        damaged[lost.offset + 20] ^= 1
        assert read(bytes(damaged)) == {10: b"a", 12: b"b"}


def test_a_record_in_another_place_is_no_record() -> None:
    record = encode_batch(FILE, HEADER_BYTES, [b"payload"], sequence=10, synced=9)
    header = encode_header(FILE)
    assert read(header + record) == {10: b"payload"}
    assert read(header + bytes(8) + record) == {}
    other_shard = ShardRef(SHARD.collection, SHARD.generation, SHARD.shard + 1)
    for other in (
        LogFile(other_shard, 5, 10),
        LogFile(ShardRef(SHARD.collection, 4, 1), 5, 10),
        LogFile(ShardRef("f" * 32, 3, 1), 5, 10),
        LogFile(SHARD, 6, 10),
        LogFile(SHARD, 5, 11),
    ):
        assert read(header + record, other) == {}


def test_a_document_that_holds_a_log_is_not_taken_for_one_when_its_record_is_damaged() -> None:
    inner = encode_batch(FILE, HEADER_BYTES, [b"forged"], sequence=11, synced=10)
    data = bytearray(file_of([inner]))
    data[HEADER_BYTES] ^= 1
    assert read(bytes(data)) == {}


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=12), min_size=1, max_size=4))
def test_no_flipped_byte_changes_an_entry(payloads: list[bytes]) -> None:
    data = file_of(payloads)
    whole = read(data)
    for offset in range(HEADER_BYTES, len(data)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[offset] ^= mask
            found = read(bytes(damaged))
            assert found.items() <= whole.items()
            assert len(found) >= len(whole) - 1


@given(PAYLOADS, st.data())
def test_no_cut_changes_an_entry(payloads: list[bytes], data: st.DataObject) -> None:
    whole = file_of(payloads)
    cut = data.draw(st.integers(0, len(whole)))
    found = read(whole[:cut])
    assert list(found) == list(range(10, 10 + len(found)))
    assert found.items() <= dict(enumerate(payloads, 10)).items()
    sizes = [HEADER_BYTES + batch_bytes(payloads[:n]) for n in range(len(payloads) + 1)]
    assert len(found) >= max((n for n, size in enumerate(sizes) if size <= cut), default=0)


@given(st.binary(max_size=400))
def test_garbage_is_never_an_entry(garbage: bytes) -> None:
    assert read(encode_header(FILE) + garbage) == {}


def test_a_length_beyond_the_fragment_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of([b"x" * 100])
    monkeypatch.setattr(framing, "FRAGMENT_BYTES", 99)
    assert read(data) == {}


def test_markers_say_what_is_synced() -> None:
    marker = encode_marker(FILE, HEADER_BYTES, 9)
    (record,) = records(encode_header(FILE) + marker, FILE)
    assert (record.kind, record.synced) == (framing.RecordKind.MARKER, 9)
    assert list(entries([record])) == []


def test_headers_are_checked() -> None:
    header = encode_header(FILE)
    assert len(header) == HEADER_BYTES
    assert check_header(header, FILE)
    assert not check_header(header[:-1], FILE)
    assert not check_header(header, LogFile(SHARD, 6, 10))
    for offset in range(HEADER_BYTES):
        damaged = bytearray(header)
        damaged[offset] ^= 0x10
        assert not check_header(bytes(damaged), FILE)


def test_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "FORMAT_VERSION", 2)
    header = encode_header(FILE)
    monkeypatch.undo()
    with pytest.raises(NotSupported, match="format 2"):
        check_header(header, FILE)


def test_the_bytes_of_format_1_do_not_change() -> None:
    data = file_of([b"shoal"]) + encode_marker(FILE, HEADER_BYTES + 48, 10)
    header, entry, marker = data[:64], data[64:112], data[112:]
    assert header.hex() == (
        "53484f414c4c4f47"
        "01000000"
        "302d45e0"
        "0123456789abcdef0123456789abcdef"
        "0300000000000000"
        "01000000"
        "00000000"
        "0500000000000000"
        "0a00000000000000"
    )
    assert entry.hex() == (
        "53484c72"
        "77134fee"
        "05000000"
        "00000000"
        "0a00000000000000"
        "0900000000000000"
        "0200000000000000"
        "73686f616c000000"
    )
    assert marker.hex() == (
        "53484c726b18f733000000000000000000000000000000000a000000000000000300000000000000"
    )
