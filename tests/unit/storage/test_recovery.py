"""Judging: entries, torn tails, damage."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.storage.records import (
    HEADER_BYTES,
    LogFile,
    encode_batch,
    encode_header,
    encode_marker,
)
from shoal.storage.recovery import EpochReading, judge, loss_name, summarise, without
from tests.unit.storage.damage import SHARD

FILE = LogFile(SHARD, epoch=2, first=1)
SECTOR = 512


def image(batches: list[list[bytes]], *, marker: bool) -> tuple[bytes, list[int]]:
    """A file after synced batches, and where each batch ends."""
    data, sequence, ends = encode_header(FILE), 1, []
    for batch in batches:
        data += encode_batch(FILE, len(data), batch, sequence=sequence, synced=sequence - 1)
        sequence += len(batch)
        ends.append(len(data))
    if marker:
        data += encode_marker(FILE, len(data), sequence - 1)
    return data, ends


def read(data: bytes, last: int | None = None) -> EpochReading:
    return judge([summarise(data, FILE)], 0, last=last)


BATCHES = st.lists(
    st.lists(st.binary(max_size=700), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(BATCHES, st.data())
def test_unsynced_sectors_that_land_in_any_order_are_a_torn_tail(
    batches: list[list[bytes]], data: st.DataObject
) -> None:
    new, ends = image(batches, marker=False)
    synced = len(new) if len(ends) == 1 else ends[-2]
    old = new[: ends[-2]] if len(ends) > 1 else encode_header(FILE)
    old += bytes(len(new) - len(old))
    sectors = range(0, len(new), SECTOR)
    landed = data.draw(st.lists(st.booleans(), min_size=len(sectors), max_size=len(sectors)))
    mixed = b"".join(
        (new if is_new else old)[start : start + SECTOR]
        for start, is_new in zip(sectors, landed, strict=True)
    )
    reading = read(mixed)
    acknowledged = sum(len(batch) for batch in batches[:-1])
    assert reading.missing == ()
    assert acknowledged <= reading.last <= acknowledged + len(batches[-1])
    assert HEADER_BYTES <= reading.cut <= len(new)
    assert synced <= reading.cut or len(ends) == 1
    # What is cut is all that is left: read again, nothing is torn.
    again = read(mixed[: reading.cut])
    assert (again.last, again.torn_bytes, again.missing) == (reading.last, 0, ())


@given(BATCHES, st.data())
def test_a_cut_file_keeps_what_came_before(batches: list[list[bytes]], data: st.DataObject) -> None:
    whole, ends = image(batches, marker=False)
    cut = data.draw(st.integers(0, len(whole)))
    reading = read(whole[:cut])
    acknowledged = sum(len(batch) for batch, end in zip(batches, ends, strict=True) if end <= cut)
    assert reading.missing == ()
    assert reading.last >= acknowledged


@given(BATCHES, st.data())
def test_damage_below_a_synced_number_is_named(
    batches: list[list[bytes]], data: st.DataObject
) -> None:
    whole, ends = image(batches, marker=True)
    total = sum(map(len, batches))
    offset = data.draw(st.integers(HEADER_BYTES, ends[-1] - 1))
    damaged = bytearray(whole)
    damaged[offset] ^= data.draw(st.integers(1, 255))
    reading = read(bytes(damaged))
    assert reading.last == reading.durable == total
    assert reading.torn_bytes == 0
    # At most one entry; none if the byte was padding.
    assert sum(last - first + 1 for first, last in reading.missing) <= 1


def test_the_last_entry_is_torn_until_a_marker_follows() -> None:
    for marker, missing in ((False, ()), (True, ((2, 2),))):
        data, ends = image([[b"a"], [b"b"]], marker=marker)
        damaged = bytearray(data)
        damaged[ends[0] + 40] ^= 1
        reading = read(bytes(damaged))
        assert reading.missing == missing
        assert reading.last == (2 if marker else 1)
        assert (reading.torn_bytes > 0) is not marker


def test_a_hole_under_a_later_batch_is_damage() -> None:
    data, ends = image([[b"a"], [b"b"], [b"c"]], marker=False)
    damaged = data[: ends[0]] + bytes(ends[1] - ends[0]) + data[ends[1] :]
    assert read(damaged).missing == ((2, 2),)
    assert read(damaged).last == 3


def test_a_later_file_makes_everything_before_it_durable() -> None:
    data, ends = image([[b"a"], [b"b"]], marker=False)
    first = summarise(data[: ends[0]] + bytes(48), FILE)
    second = summarise(b"", LogFile(SHARD, 2, 3))
    assert judge([first], 0).missing == ()
    assert judge([first, second], 0).missing == ((2, 2),)


def test_a_sealed_epoch_has_no_torn_tail() -> None:
    data, ends = image([[b"a"], [b"b"]], marker=False)
    assert read(data, last=1).last == 1
    assert read(data[: ends[0]], last=2).missing == ((2, 2),)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=4),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=4),
)
def test_without_is_set_difference(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    def numbers(ranges: list[tuple[int, int]]) -> set[int]:
        return {n for first, last in ranges for n in range(first, last + 1)}

    ranges = [(first, first + size) for first, size in a]
    known = [(first, first + size) for first, size in b]
    left = without(ranges, known)
    assert numbers(list(left)) == numbers(ranges) - numbers(known)
    assert all(first <= last for first, last in left)


def test_a_loss_has_one_name() -> None:
    assert loss_name(SHARD, [(3, 4)]) == loss_name(SHARD, ((3, 4),))
    assert loss_name(SHARD, [(3, 4)]) != loss_name(SHARD, [(3, 5)])
