"""The rules that a reader relies on, checked on every hand-written module."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shoal", "encoder_service", "shard_service", "router", "deploy", "tools", "bench")
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 500


def modules() -> list[Path]:
    return [
        path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if "rpc" not in path.relative_to(ROOT).parts
    ]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_module_fits(path: Path) -> None:
    assert path.read_text().count("\n") <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_functions_fit_a_screen(path: Path) -> None:
    long = [
        f"{function.name}: {function.end_lineno - function.lineno + 1}"
        for function in functions(path)
        if function.end_lineno - function.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nothing_is_left_unfinished(path: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_exception_is_swallowed(path: Path) -> None:
    silent = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(s, ast.Pass) for s in node.body)
    ]
    assert not silent, "say why with contextlib.suppress, or handle it"


def test_every_folder_is_a_package() -> None:
    """Folders without __init__.py leave the import graph silently."""
    missing = {
        name_of(path.parent) for path in modules() if not (path.parent / "__init__.py").exists()
    } - {"tools", "bench"}
    assert not missing


def test_tests_do_not_sleep() -> None:
    """A sleep synchronises nothing: wait for the condition itself."""
    found = [
        name_of(path)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if re.search(r"\btime\.sleep\((?!POLL_S\))", path.read_text()) and path != Path(__file__)
    ]
    assert not found


def test_the_project_names_no_machine() -> None:
    pattern = re.compile(
        r"(?<![\w.])/(work|root|home)/|\b(pypi\.org|pythonhosted|registry\.npmjs)\b"
    )
    found = [
        f"{name_of(path)}:{number}"
        for path in [
            *modules(),
            *ROOT.glob("*.md"),
            *(ROOT / "docs").rglob("*.md"),
            ROOT / "Makefile",
        ]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found
