"""The `shoal` command: composes the commands, and turns errors into exit codes.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 nothing answers at the target;
4 a part of the collection did not answer.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from deploy.commands import (
    cluster,
    collections,
    doctor,
    documents,
    evaluate,
    loadtest,
    scaling,
    top,
)
from deploy.commands.output import fail
from shoal.errors import ShoalError


class ShoalGroup(TyperGroup):
    """Prints Shoal's errors as one line with what to do next, whatever the command."""

    def invoke(self, ctx: Any) -> object:
        """Runs the command that the context holds."""
        try:
            return super().invoke(ctx)
        except ShoalError as error:
            fail(error)


app = typer.Typer(
    cls=ShoalGroup,
    name="shoal",
    help="Search documents by meaning, over as many processes as they need.\n\n"
    "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 nothing answers at the target; "
    "4 a part of the collection did not answer.\n\n"
    "Example: shoal up --detach && shoal create papers",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for family in (cluster, scaling, collections, documents, evaluate, loadtest, doctor, top):
    family.register(app)


def main() -> None:
    """Entry point of the `shoal` script."""
    app()
