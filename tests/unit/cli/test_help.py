"""Every command says what it does and shows how."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from deploy.cli import app

COMMANDS = sorted(get_command(app).commands)
runner = CliRunner()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_commands_are_those_promised() -> None:
    assert {
        *("create", "drop", "ls", "ingest", "search", "get", "delete"),
        *("eval", "loadtest", "optimize", "accept-loss"),
    } <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    shown = runner.invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    text = plain(shown.output)
    assert re.search(rf"Example: shoal {command}\b", text)
    if command not in ("up", "down"):
        assert "--target" in text


def test_no_command_is_help() -> None:
    assert "Exit codes" in plain(runner.invoke(app, ["--help"]).output)
    assert runner.invoke(app, []).exit_code == 2
    assert runner.invoke(app, ["serach"]).exit_code == 2
