"""`shoal create`, `drop`, `ls`, `optimize`, `accept-loss`."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import shoal
from deploy.commands.building import follow_build
from deploy.commands.output import (
    DEFAULT_TARGET,
    JsonOption,
    NameArgument,
    TargetOption,
    collection_json,
    collections_table,
    print_json,
    show,
)


class KindChoice(StrEnum):
    """Values of --kind."""

    SINGLE = "single"
    COLBERT = "colbert"


class IndexChoice(StrEnum):
    """Values of --index."""

    AUTO = "auto"
    FLAT = "flat"
    HNSW = "hnsw"
    IVF_PQ = "ivf-pq"


class SimilarityChoice(StrEnum):
    """Values of --similarity."""

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


CodeBytesOption = Annotated[
    int | None,
    typer.Option(
        metavar="4|8|16|32",
        help="Kind colbert: residual bytes of a token once quantised; without it, 8.",
    ),
]
TrainAtOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Kind colbert: tokens at which to train while documents stream in; without it, "
        "2,000,000.",
    ),
]
PoolFactorOption = Annotated[
    int | None,
    typer.Option(
        metavar="1|2|3",
        help="Kind colbert: near token vectors of a passage become their mean, 1 from so many; "
        "without it, 1, which keeps them all.",
    ),
]


def create(  # noqa: PLR0913 - each is an option of the command
    name: NameArgument,
    *,
    kind: Annotated[
        KindChoice, typer.Option(help="One vector a passage, or one a token.")
    ] = KindChoice.SINGLE,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="CARD",
            help="A built-in encoder, a folder, hub/id@revision, or none to bring your own "
            "vectors. Without it, the default built-in.",
            show_default=False,
        ),
    ] = "",
    dim: Annotated[
        int | None,
        typer.Option(metavar="D", min=1, help="Columns of a vector; needed with --encoder none."),
    ] = None,
    index: Annotated[IndexChoice, typer.Option(help="auto chooses by size.")] = IndexChoice.AUTO,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Tokens of a passage; 0 keeps documents whole (and cuts them)."
        ),
    ] = None,
    similarity: Annotated[
        SimilarityChoice | None, typer.Option(help="Without it, the encoder's own, or cosine.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Without it, one for each server.")
    ] = None,
    code_bytes: CodeBytesOption = None,
    train_at: TrainAtOption = None,
    pool_factor: PoolFactorOption = None,
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
) -> None:
    """Create a collection, and wait until it serves.

    Example: shoal create papers --kind single --index hnsw
    """
    with shoal.connect(target) as client:
        made = client.create_collection(
            name,
            kind.value,
            encoder=_from_anywhere(encoder),
            dim=dim,
            index=index.value,
            chunk_tokens=chunk_tokens,
            similarity="" if similarity is None else similarity.value,
            shards=shards,
            code_bytes=code_bytes,
            train_at=train_at,
            pool_factor=pool_factor,
        )
    if json:
        print_json(collection_json(made))
    else:
        show(collections_table([made]))


def _from_anywhere(encoder: str) -> str:
    """A folder's path without the current folder, which encoder workers do not share."""
    is_path = encoder.startswith((".", "~")) or os.sep in encoder
    folder = Path(encoder).expanduser()
    return str(folder.resolve()) if is_path and folder.is_dir() else encoder


def drop(name: NameArgument, target: TargetOption = DEFAULT_TARGET) -> None:
    """Drop a collection and its data.

    Example: shoal drop papers
    """
    with shoal.connect(target) as client:
        client.drop_collection(name)
    typer.echo(f"dropped {name}")


def ls(target: TargetOption = DEFAULT_TARGET, json: JsonOption = False) -> None:
    """List the collections.

    Example: shoal ls
    """
    with shoal.connect(target) as client:
        collections = client.list_collections()
    if json:
        print_json({"collections": [collection_json(item) for item in collections]})
    elif collections:
        show(collections_table(collections))
    else:
        typer.echo("no collections; make one with `shoal create NAME`")


def optimize(name: NameArgument, target: TargetOption = DEFAULT_TARGET) -> None:
    """Seal and merge a collection's shards into one segment each.

    Example: shoal optimize papers
    """
    with shoal.connect(target) as client:
        client.optimize(name)
    typer.echo(f"optimized {name}")


def rebuild(
    name: NameArgument,
    *,
    shards: Annotated[int | None, typer.Option(metavar="N", min=1, help="Shards.")] = None,
    index: Annotated[IndexChoice | None, typer.Option(help="Kind single: its index.")] = None,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="CARD", help="Encode every text anew with this one.", show_default=False
        ),
    ] = "",
    code_bytes: CodeBytesOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return while it is being built.")
    ] = False,
    target: TargetOption = DEFAULT_TARGET,
) -> None:
    """Build a collection's next generation while this one serves, and flip to it.

    What is not given stays as it is. Interrupting the command does not stop the build.

    Example: shoal rebuild papers --shards 4
    """
    with shoal.connect(target) as client:
        generation = client.rebuild(
            name,
            shards=shards,
            index="" if index is None else index.value,
            encoder=_from_anywhere(encoder),
            code_bytes=code_bytes,
        )
        if not detach:
            follow_build(client, name, generation)
    typer.echo(f"{name}: generation {generation} {'is being built' if detach else 'serves'}")


def rollback(name: NameArgument, target: TargetOption = DEFAULT_TARGET) -> None:
    """Serve the generation before again, as it was when it was replaced.

    What was written since is not in it; `shoal rollback` again goes back to that, until the
    next rebuild drops it.

    Example: shoal rollback papers
    """
    with shoal.connect(target) as client:
        generation = client.rollback(name)
    typer.echo(f"{name}: generation {generation} serves")


def accept_loss(
    name: NameArgument,
    shard: Annotated[int, typer.Argument(metavar="SHARD", min=0, help="Number of the shard.")],
    loss: Annotated[
        str, typer.Argument(metavar="LOSS", help="The loss, as `shoal status` names it.")
    ],
    target: TargetOption = DEFAULT_TARGET,
) -> None:
    """Let a corrupt shard serve without the acknowledged data that is lost.

    Example: shoal accept-loss papers 1 "records 7 to 9"
    """
    with shoal.connect(target) as client:
        client.accept_loss(name, shard, loss)
    typer.echo(f"accepted: shard {shard} of {name} serves without {loss}")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(create)
    app.command()(drop)
    app.command()(ls)
    app.command()(optimize)
    app.command()(rebuild)
    app.command()(rollback)
    app.command("accept-loss")(accept_loss)
