"""`shoal up`, `shoal down`, `shoal status`."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import shoal
from deploy.commands.output import (
    DEFAULT_TARGET,
    EXIT_FAILED,
    EXIT_PARTIAL,
    JsonOption,
    TargetOption,
    print_json,
    printable,
    show,
    table,
)
from deploy.core.diagnosis import DRIFTED

if TYPE_CHECKING:
    from deploy.backend import ClusterFile
    from shoal.client.model import ClusterStatus, CollectionInfo

_POLL_S = 0.2

DataOption = Annotated[
    Path,
    typer.Option(
        "--data", envvar="SHOAL_DATA", metavar="DIR", help="The cluster's folder; made if missing."
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)


def up(  # noqa: PLR0913 - each is an option of the command
    *,
    shards: Annotated[
        int,
        typer.Option(min=1, help="Shard servers; also the default shard count of collections."),
    ] = 2,
    encoders: Annotated[int, typer.Option(min=0, help="Encoder workers; 0: vectors only.")] = 1,
    routers: Annotated[int, typer.Option(min=1, help="Routers, on PORT, PORT+1, ...")] = 1,
    port: Annotated[
        int, typer.Option(envvar="SHOAL_PORT", min=0, max=65535, help="0 takes free ones.")
    ] = 50051,
    data: DataOption = Path(".shoal"),
    ray: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Use this Ray cluster instead of a new one.")
    ] = "",
    no_ray: Annotated[
        bool, typer.Option("--no-ray", envvar="SHOAL_NO_RAY", help="Plain processes.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it serves; `shoal down` ends it.")
    ] = False,
) -> None:
    """Start a cluster: by default in a local Ray of its own.

    In the foreground, Ctrl-C ends it. Data stays in DIR: the next `up` serves
    the same collections.

    Threads: encoders together get every core (at most 8 each), and so do shard
    servers (at most 16 each): on 2 cores, an encoder with 2 and two servers with
    1; on 32, one encoder with 8 and two servers with 16: add encoders there.
    SHOAL_ENCODER_THREADS and SHOAL_SHARD_SEARCH_THREADS override that.

    Example: shoal up --shards 2 --detach && shoal status
    """
    from deploy import backend, cluster  # noqa: PLC0415 - the light client runs `status` without it

    if ray and no_ray:
        raise typer.BadParameter("--ray and --no-ray exclude each other")
    options = backend.UpOptions(
        data=str(data.resolve()),
        mode=backend.Mode.of(no_ray, ray),
        ray_address=ray,
        servers=shards,
        encoders=encoders,
        routers=routers,
        port=port,
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        running = cluster.up(options, _say)
    except backend.ClusterError as error:
        _fail(str(error))
    if detach:
        typer.echo(f"Shoal serves at {running.target}; {_hint(data)}")
    else:
        _attend(str(data.resolve()), running)


def _attend(data: str, file: ClusterFile) -> None:
    from deploy import backend, cluster  # noqa: PLC0415 - as above

    try:
        # Inside, because whoever reads this may interrupt before the next line runs.
        typer.echo(f"Shoal serves at {file.target}")
        typer.echo("Ctrl-C ends it.")
        while cluster.backend_of(data, file).running():
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        typer.echo("ending")
    try:
        cluster.down(data, _say)
    except backend.ClusterError as error:
        _fail(str(error))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _hint(data: Path) -> str:
    shown = os.path.relpath(data) if data.is_relative_to(Path.cwd()) else str(data)
    return "end it with `shoal down`" + (f" --data {shown}" if shown != ".shoal" else "")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(EXIT_FAILED)


def down(data: DataOption = Path(".shoal")) -> None:
    """End the cluster that `shoal up` started in DIR, and only that; data stays.

    Example: shoal down --data .shoal
    """
    from deploy import backend, cluster  # noqa: PLC0415 - as above

    try:
        ended = cluster.down(str(data.resolve()), _say)
    except backend.ClusterError as error:
        _fail(str(error))
    typer.echo("ended" if ended else f"no cluster runs in {data}")


def status(
    target: TargetOption = DEFAULT_TARGET,
    as_json: JsonOption = False,
    prometheus: Annotated[
        bool,
        typer.Option("--prometheus", help="Print what to scrape, for Prometheus's file_sd."),
    ] = False,
) -> None:
    """Show processes, collections and shards; exit code 4 if a shard does not serve.

    Example: shoal status --json
    """
    with shoal.connect(target) as client:
        seen = client.status()
    if prometheus:
        print_json(scrape_targets(seen))
        return
    if as_json:
        print_json(status_json(seen))
    else:
        _show(seen)
    if any(shard.state != "serving" for item in seen.collections for shard in item.shards):
        raise typer.Exit(EXIT_PARTIAL)


def scrape_targets(seen: ClusterStatus) -> list[dict[str, Any]]:
    """Every process with metrics, as Prometheus's file_sd wants it."""
    return [
        {
            "targets": [process.metrics_address],
            "labels": {"process": process.name, "role": process.role},
        }
        for process in seen.processes
        if process.metrics_address
    ]


def status_json(seen: ClusterStatus) -> dict[str, Any]:
    """The status as `shoal status --json` gives it, with each collection's coverage."""
    values = {**asdict(seen), "limits": dict(seen.limits)}
    for item, collection in zip(values["collections"], seen.collections, strict=True):
        item["coverage"] = coverage(collection)
    return values


def coverage(collection: CollectionInfo) -> dict[str, int]:
    """Shards and documents that serve, of all."""
    serving = [shard for shard in collection.shards if shard.state == "serving"]
    return {
        "shards_total": len(collection.shards),
        "shards_serving": len(serving),
        "documents_total": sum(shard.documents for shard in collection.shards),
        "documents_covered": sum(shard.documents for shard in serving),
    }


def _show(seen: ClusterStatus) -> None:
    rows = table(
        *("process", "state", "address", "pid", "restarts", "detail"), right=("pid", "restarts")
    )
    for process in seen.processes:
        rows.add_row(
            process.name,
            process.state,
            process.address,
            str(process.pid),
            str(process.restarts),
            printable(process.detail),
        )
    show(rows)
    for collection in seen.collections:
        covered = coverage(collection)
        typer.echo(
            f"\n{collection.name}: {collection.kind}, encoder {printable(collection.encoder)}, "
            f"dim {collection.dim}, index {collection.index}, generation "
            f"{collection.generation}; {covered['shards_serving']} of "
            f"{covered['shards_total']} shards serve {covered['documents_covered']:,} of "
            f"{covered['documents_total']:,} documents"
        )
        _show_late(collection)
        _show_shards(collection)
        for other in collection.generations:
            of = "" if other.phase == "previous" else f" of {other.documents_total:,}"
            why = f": {printable(other.detail)}" if other.detail else ""
            typer.echo(
                f"generation {other.generation}, {other.phase}: {other.shards} shards, "
                f"{other.documents:,}{of} documents{why}"
            )
    known = "" if seen.controller_reachable else "; the controller does not answer: as last known"
    typer.echo(f"\ntopology {seen.topology_version}, Shoal {seen.version}{known}")


def _show_late(collection: CollectionInfo) -> None:
    if collection.kind != "colbert":
        return
    tokens = sum(shard.tokens for shard in collection.shards)
    size = sum(shard.token_bytes for shard in collection.shards)
    codec = next((shard.codec for shard in collection.shards if shard.codec), "fixed-point")
    each = f", {size / tokens:.1f} bytes each" if tokens else ""
    typer.echo(f"{tokens:,} tokens by {codec}{each}")
    new = sum(shard.new_tokens for shard in collection.shards)
    if new and codec != "fixed-point":
        far = sum(shard.far_tokens for shard in collection.shards) / new
        due = ": a rebuild is due" if far > DRIFTED else ""
        typer.echo(f"{far:.1%} of {new:,} new tokens are far from their centroids{due}")
    for effort in collection.efforts:
        how = "every document" if not effort.refined else f"{effort.refined:,} documents"
        typer.echo(
            f"effort {effort.name}: {how} scored by their codes, overlap@10 {effort.recall:.4f}"
        )


def _show_shards(collection: CollectionInfo) -> None:
    from rich.filesize import decimal  # noqa: PLC0415 - `shoal --help` does without it

    numbers = ("#", "documents", "passages", "tail", "bytes", "recall")
    rows = table(
        *("#", "server", "state", "documents", "passages", "tail", "bytes", "recall", "index"),
        right=numbers,
        whole=("server", "state", "index"),
    )
    for shard in collection.shards:
        rows.add_row(
            str(shard.shard),
            shard.server,
            shard.state,
            f"{shard.documents:,}",
            f"{shard.passages:,}",
            f"{shard.tail_passages:,}",
            decimal(shard.index_bytes),
            f"{shard.recall:.3f}",
            " ".join(sorted(set(shard.indexes))) or "exact",
        )
    show(rows)
    for shard in collection.shards:
        if detail := shard.loss or shard.detail:
            typer.echo(f"shard {shard.shard}: {printable(detail)}")
