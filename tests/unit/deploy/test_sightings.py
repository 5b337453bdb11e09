"""Reports of servers: how a restarted controller finds its shards."""

from dataclasses import replace

from deploy.core.sightings import Report, Sighting, merge_report
from deploy.core.state import Collection, Placement, ShardPhase, ShardView

COLLECTION = Collection("c", "c" * 32, 1, (Placement("server-0", 3), Placement("server-1", 1)))
REF, OTHER = COLLECTION.refs()
OPEN = ShardView("server-0", 2, 3, ShardPhase.OPEN, documents=4)
SEEN = Sighting(REF, 3, ShardPhase.OPEN, 5)


def report(*sightings: Sighting, asked: bool = True) -> Report:
    return Report("server-0", 2, sightings, frozenset({REF} if asked else ()))


def test_an_unknown_shard_under_its_recorded_epoch_is_adopted() -> None:
    views, strays = merge_report([COLLECTION], {}, report(SEEN))
    assert views == {REF: replace(OPEN, documents=5)}
    assert not strays


def test_one_under_another_epoch_is_not() -> None:
    views, strays = merge_report([COLLECTION], {}, report(replace(SEEN, epoch=2)))
    assert views == {}
    assert not strays


def test_one_that_belongs_elsewhere_is_a_stray() -> None:
    views, strays = merge_report([COLLECTION], {}, report(replace(SEEN, ref=OTHER)))
    assert views == {}
    assert strays == {OTHER}


def test_a_shard_that_the_server_let_go_is_open_no_more() -> None:
    assert merge_report([COLLECTION], {REF: OPEN}, report())[0] == {}
    assert merge_report([COLLECTION], {REF: OPEN}, report(asked=False))[0] == {REF: OPEN}


def test_an_old_report_does_not_close_a_shard() -> None:
    opening = replace(SEEN, phase=ShardPhase.OPENING)
    assert merge_report([COLLECTION], {REF: OPEN}, report(opening))[0] == {REF: OPEN}


def test_a_report_of_a_dead_incarnation_lets_nothing_go() -> None:
    newer = replace(OPEN, incarnation=3)
    assert merge_report([COLLECTION], {REF: newer}, report())[0] == {REF: newer}
