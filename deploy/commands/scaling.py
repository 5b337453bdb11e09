"""`shoal scale`, `shoal move`, `shoal drain`, `shoal rebalance`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

import shoal
from deploy.commands.output import (
    DEFAULT_TARGET,
    EXIT_FAILED,
    JsonOption,
    NameArgument,
    TargetOption,
    print_json,
    printable,
    show,
    table,
)
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.client.growth import ShardMove
    from shoal.client.model import ClusterStatus

_POLL_S = 0.2

TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.0, help="Seconds to wait until it is done.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (scale, move, drain, rebalance):
        app.command()(command)


def scale(
    *,
    encoders: Annotated[int | None, typer.Option(min=0, help="Encoder workers.")] = None,
    routers: Annotated[int | None, typer.Option(min=1, help="Routers.")] = None,
    servers: Annotated[int | None, typer.Option(min=1, help="Shard servers.")] = None,
    target: TargetOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Add or remove processes of a cluster that serves; returns when the new ones do.

    Shards move to new servers until all are level by bytes. What is removed has the
    highest number, and hands over first: shards move, routers and encoders end when
    nobody asks them any more. A second `scale` takes over from one under way.

    Example: shoal scale --servers 4
    """
    if encoders is None and routers is None and servers is None:
        raise typer.BadParameter("say what to change: --encoders, --routers or --servers")
    with shoal.connect(target) as client:
        report = client.scale(encoders=encoders, routers=routers, servers=servers)
        if report.taken_over:
            _say(f"takes over from a change under way: {'; '.join(report.taken_over)}")
        _finish(client, report.moves, timeout_s, as_json)


def move(
    name: NameArgument,
    shard: Annotated[int, typer.Argument(min=0, help="The shard's number.")],
    to: Annotated[str, typer.Option("--to", metavar="SERVER", help="The server to move it to.")],
    target: TargetOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Move a shard to another server while it serves and takes writes.

    Example: shoal move papers 0 --to server-1
    """
    with shoal.connect(target) as client:
        begun = client.move(name, shard, to)
        moves = [begun] if begun.from_server != begun.to_server else []
        _finish(client, moves, timeout_s, as_json)


def drain(
    server: Annotated[str, typer.Argument(help="The server that is to go.")],
    target: TargetOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Take one shard server out of the cluster: its shards move, then it ends.

    Example: shoal drain server-1
    """
    with shoal.connect(target) as client:
        _finish(client, client.drain(server).moves, timeout_s, as_json)


def rebalance(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the plan; move nothing.")
    ] = False,
    target: TargetOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Level the servers by bytes with few moves; prints the plan first.

    Example: shoal rebalance --dry-run
    """
    with shoal.connect(target) as client:
        moves = client.rebalance(dry_run=dry_run)
        if dry_run:
            _report(moves, as_json)
            return
        _finish(client, moves, timeout_s, as_json)


def _finish(
    client: shoal.Client, moves: Sequence[ShardMove], timeout_s: float, as_json: bool
) -> None:
    """Shows what begins, and what is left to do until nothing is."""
    if not as_json:
        _report(moves, as_json=False)
    seen = _wait(client, time.monotonic() + timeout_s)
    if as_json:
        print_json(
            {
                "moves": [asdict(each) for each in moves],
                "desired": dict(seen.desired),
                "pending": list(seen.pending),
            }
        )
    if seen.pending:
        _say(
            f"error: not done after {timeout_s:.0f} s, and goes on: {'; '.join(seen.pending)}. "
            "`shoal status` shows how far it is"
        )
        raise typer.Exit(EXIT_FAILED)
    if not as_json:
        counts = ", ".join(f"{count} {role}s" for role, count in sorted(seen.desired.items()))
        typer.echo(f"done: {counts}")


def _wait(client: shoal.Client, end_s: float) -> ClusterStatus:
    """The status when nothing is left to do, or the time is over."""
    shown: tuple[str, ...] = ()
    while True:
        try:
            seen = client.status()
        except ShoalError as error:
            # The router that was asked, or the controller, may just be starting again.
            if not error.retryable or time.monotonic() > end_s:
                raise
        else:
            for line in seen.pending:
                if line not in shown:
                    _say(printable(line))
            shown = seen.pending
            done = seen.controller_reachable and not seen.pending
            if done or time.monotonic() > end_s:
                return seen
        time.sleep(_POLL_S)


def _report(moves: Sequence[ShardMove], as_json: bool) -> None:
    if as_json:
        print_json([asdict(each) for each in moves])
        return
    if not moves:
        typer.echo("no shard moves")
        return
    rows = table("collection", "shard", "from", "to", "bytes", right=("shard", "bytes"))
    for each in moves:
        rows.add_row(
            each.collection, str(each.shard), each.from_server, each.to_server, f"{each.bytes:,}"
        )
    show(rows)


def _say(line: str) -> None:
    typer.echo(line, err=True)
