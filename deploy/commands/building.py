"""Follows a build until its generation serves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from deploy.commands.output import EXIT_FAILED, console, printable

if TYPE_CHECKING:
    import shoal
    from shoal.client.model import CollectionInfo, GenerationInfo

_LOOK_S = 0.3


def follow_build(client: shoal.Client, name: str, generation: int) -> None:
    """Shows progress on a terminal; returns when the generation serves.

    Exits with 1 if the build was given up.
    """
    from rich import progress as bars  # noqa: PLC0415 - `shoal --help` does without it

    with bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.completed:,.0f} of {task.total:,.0f} documents"),
        console=console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("training", total=1)
        detail = ""
        while True:
            seen = _collection(client, name)
            if seen is None or seen.generation >= generation:
                return
            building = _generation(seen, generation)
            detail = "" if building is None else building.detail
            if building is None or building.phase == "given up":
                break
            total = max(1, building.documents_total)
            text = building.phase + (f": {printable(detail)}" if detail else "")
            bar.update(task, description=text, total=total, completed=building.documents)
            time.sleep(_LOOK_S)
    typer.echo(f"generation {generation} was given up: {printable(detail)}", err=True)
    raise typer.Exit(EXIT_FAILED)


def _collection(client: shoal.Client, name: str) -> CollectionInfo | None:
    return next((each for each in client.status().collections if each.name == name), None)


def _generation(seen: CollectionInfo, generation: int) -> GenerationInfo | None:
    return next((each for each in seen.generations if each.generation == generation), None)
