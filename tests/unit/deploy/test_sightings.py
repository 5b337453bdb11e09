"""Reports of servers: how a restarted controller finds its shards."""

from dataclasses import replace

from deploy.core.sightings import Report, Seen, Sighting, merge_report
from deploy.core.state import Collection, Placement, ShardPhase, ShardView

COLLECTION = Collection("c", "c" * 32, 1, (Placement("server-0", 3), Placement("server-1", 1)))
REF, OTHER = COLLECTION.refs()
OPEN = ShardView("server-0", 2, 3, ShardPhase.OPEN, documents=4)
SEEN = Sighting(REF, 3, ShardPhase.OPEN, 5)
NOTHING = Seen({}, {})


def report(*sightings: Sighting, asked: bool = True) -> Report:
    return Report("server-0", 2, sightings, frozenset({REF} if asked else ()))


def test_an_unknown_shard_under_its_recorded_epoch_is_adopted() -> None:
    seen = merge_report([COLLECTION], NOTHING, report(SEEN))
    assert seen.shards == {REF: replace(OPEN, documents=5)}
    assert not seen.strays


def test_one_under_another_epoch_is_not() -> None:
    seen = merge_report([COLLECTION], NOTHING, report(replace(SEEN, epoch=2)))
    assert seen.shards == {}
    assert not seen.strays


def test_one_that_belongs_elsewhere_is_a_stray() -> None:
    seen = merge_report([COLLECTION], NOTHING, report(replace(SEEN, ref=OTHER)))
    assert seen.shards == {}
    assert seen.strays == {OTHER}


def test_a_shard_that_the_server_let_go_is_open_no_more() -> None:
    assert merge_report([COLLECTION], Seen({REF: OPEN}, {}), report()).shards == {}
    assert merge_report([COLLECTION], Seen({REF: OPEN}, {}), report(asked=False)).shards == {
        REF: OPEN
    }


def test_an_old_report_does_not_close_a_shard() -> None:
    opening = replace(SEEN, phase=ShardPhase.OPENING)
    assert merge_report([COLLECTION], Seen({REF: OPEN}, {}), report(opening)).shards == {REF: OPEN}


def test_a_report_of_a_dead_incarnation_lets_nothing_go() -> None:
    newer = replace(OPEN, incarnation=3)
    assert merge_report([COLLECTION], Seen({REF: newer}, {}), report()).shards == {REF: newer}


MOVING = replace(COLLECTION, shards=(Placement("server-1", 3, "server-0", 4), Placement()))
ARRIVED = ShardView("server-0", 2, 4, ShardPhase.OPEN, documents=5)


def test_what_the_server_that_takes_over_holds_is_no_stray_and_does_not_serve_yet() -> None:
    for epoch, phase in ((0, ShardPhase.PREPARED), (4, ShardPhase.OPEN)):
        sighting = replace(SEEN, epoch=epoch, phase=phase)
        seen = merge_report([MOVING], NOTHING, report(sighting))
        assert seen.arrivals == {REF: replace(ARRIVED, epoch=epoch, phase=phase)}
        assert not seen.shards
        assert not seen.strays


def test_a_report_older_than_the_take_over_undoes_nothing() -> None:
    prepared = replace(SEEN, epoch=0, phase=ShardPhase.PREPARED)
    before = Seen({}, {REF: ARRIVED})
    assert merge_report([MOVING], before, report(prepared)).arrivals == {REF: ARRIVED}
    assert merge_report([MOVING], before, report(asked=False)).arrivals == {REF: ARRIVED}
    assert merge_report([MOVING], before, report()).arrivals == {}, "the server let it go"


def test_who_serves_may_take_over_itself() -> None:
    fenced = replace(COLLECTION, shards=(Placement("server-0", 3, "server-1", 5), Placement()))
    seen = merge_report([fenced], Seen({REF: OPEN}, {}), report(replace(SEEN, epoch=5)))
    assert seen.shards == {REF: OPEN}, "routers ask it until the catalog says so"
    assert seen.arrivals == {REF: replace(OPEN, epoch=5, documents=5)}
