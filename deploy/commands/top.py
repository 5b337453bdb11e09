"""`shoal top`: what a serving cluster does right now."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

import shoal
from deploy.commands.output import (
    DEFAULT_TARGET,
    EXIT_USAGE,
    JsonOption,
    TargetOption,
    console,
    print_json,
    printable,
    table,
)
from deploy.core.reading import Scrape, read
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType
    from rich.table import Table

    from deploy.core.reading import Latency, Reading

_NONE = "-"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("top")(top)


def top(
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Seconds between two readings.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One reading, over one interval.")] = False,
    json: JsonOption = False,
    target: TargetOption = DEFAULT_TARGET,
) -> None:
    """Show load, latency by stage, encoders, ingest and shards; Ctrl-C ends it.

    Rates and latencies are of the last interval, from the processes' metrics: a
    cluster of `shoal up` serves them unless SHOAL_ROUTER_METRICS_PORT and the like
    are -1. Without them, processes and shards are shown.

    Example: shoal top --interval 5
    """
    if json and not once:
        raise typer.BadParameter("--json shows one reading: add --once")
    with shoal.connect(target) as client:
        before = scrape(client)
        if once:
            time.sleep(interval)
            reading = read(before, scrape(client))
            if json:
                print_json(asdict(reading))
            else:
                console().print(view(reading))
            return
        _watch(client, before, interval)


def scrape(client: shoal.Client) -> Scrape:
    """The cluster at this moment."""
    try:
        from deploy.scraping import read_pages  # noqa: PLC0415 - the light client has no parser
    except ImportError:
        typer.echo('error: pip install "shoal[server]", which reads metrics', err=True)
        raise typer.Exit(EXIT_USAGE) from None
    status = client.status()
    return Scrape(time.monotonic(), status, read_pages(status.processes))


def _watch(client: shoal.Client, before: Scrape, interval_s: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - `shoal --help` does without it

    shown = console()
    # Nothing but a terminal has a screen to give back: elsewhere the last reading stays.
    with Live(view(read(before, before)), console=shown, screen=shown.is_terminal) as live:
        try:
            while True:
                time.sleep(interval_s)
                try:
                    after = scrape(client)
                except ShoalError as error:
                    # A router that is started again is just what one wants to watch.
                    live.update(printable(f"{error.reason}: {error.message}"), refresh=True)
                    continue
                live.update(view(read(before, after)), refresh=True)
                before = after
        except KeyboardInterrupt:
            return


# --- the view -----------------------------------------------------------------------


def view(reading: Reading) -> RenderableType:
    """The reading for a terminal."""
    from rich.console import Group  # noqa: PLC0415 - as above

    return Group(
        headline(reading),
        _stages(reading),
        _encoders(reading),
        _processes(reading),
        _shards(reading),
    )


def headline(reading: Reading) -> str:
    """Load on a line or two."""
    hit = reading.cache_hit_share
    parts = [
        f"{_rate(sum(reading.queries_per_s.values()))} queries/s{_parts(reading.queries_per_s)}",
        f"{reading.open_queries:.0f} open",
        f"cache hits {_NONE if hit is None else f'{hit:.0%}'}",
        f"{_rate(sum(reading.ingested_per_s.values()))} documents/s"
        f"{_parts(reading.ingested_per_s)}, {_rate(reading.written_per_s)} durable",
    ]
    if reading.refused_per_s:
        parts.append(f"refused{_parts(reading.refused_per_s)}")
    if not any(process.measured for process in reading.processes):
        parts = ["no process serves metrics: set SHOAL_ROUTER_METRICS_PORT=0 and the like"]
    return " · ".join(parts) + f" · over {reading.seconds:.1f} s"


def _parts(rates: Mapping[str, float]) -> str:
    shown = ", ".join(f"{name} {_rate(value)}" for name, value in rates.items())
    return f" ({shown})" if shown else ""


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _ms(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}"


def _latency(latency: Latency) -> tuple[str, str, str]:
    return _rate(latency.per_s), _ms(latency.p50_ms), _ms(latency.p99_ms)


def _stages(reading: Reading) -> Table:
    rows = table("stage", "per s", "p50 ms", "p99 ms", right=("per s", "p50 ms", "p99 ms"))
    for stage, latency in reading.stages.items():
        rows.add_row(stage, *_latency(latency))
    rows.add_row("shard queue", *_latency(reading.shard_queue))
    rows.add_row("shard search", *_latency(reading.shard_search))
    return rows


def _encoders(reading: Reading) -> Table:
    numbers = ("waiting", "batch", "tokens/s", "queue p99 ms", "model p50 ms", "model p99 ms")
    rows = table("encoders", *numbers, "refused/s", right=(*numbers, "refused/s"))
    for lane in reading.encoders:
        rows.add_row(
            lane.lane,
            f"{lane.queue_texts:.0f}",
            _NONE if lane.batch_texts is None else f"{lane.batch_texts:.1f}",
            _rate(lane.tokens_per_s),
            _ms(lane.queue.p99_ms),
            _ms(lane.model.p50_ms),
            _ms(lane.model.p99_ms),
            _rate(lane.refused_per_s),
        )
    return rows


def _processes(reading: Reading) -> Table:
    rows = table("process", "state", "address", "pid", "restarts", right=("pid", "restarts"))
    for each in reading.processes:
        rows.add_row(each.name, each.state, each.address, str(each.pid), str(each.restarts))
    return rows


def _shards(reading: Reading) -> Table:
    numbers = ("shard", "documents", "passages", "tail", "position")
    rows = table("collection", "shard", "server", "state", *numbers[1:], right=numbers)
    for each in reading.shards:
        rows.add_row(
            each.collection,
            str(each.shard),
            each.server,
            each.state,
            f"{each.documents:,}",
            f"{each.passages:,}",
            f"{each.tail_passages:,}",
            f"{each.position:,}",
        )
    return rows
