"""Every command and program in the README and the operations page does what it says."""

import gzip
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = "deploy/data/scifact-1000/corpus.jsonl.gz"
DOCUMENTS = 40
LIMIT_S = 90


def blocks(page: str) -> list[tuple[str, str]]:
    """The page's sh and python blocks, in order, with their language."""
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    assert found
    return [(language, text) for language, text in found]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A port and a folder of its own, plain processes; ends whatever was started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scripts = Path(sys.executable).parent
    made = os.environ | {
        "SHOAL_PORT": str(port),
        "SHOAL_TARGET": f"127.0.0.1:{port}",
        "SHOAL_DATA": str(tmp_path / "data"),
        "SHOAL_NO_RAY": "1",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    yield made
    subprocess.run(["shoal", "down"], env=made, cwd=ROOT, check=False, timeout=LIMIT_S)


@pytest.fixture
def small_corpus(tmp_path: Path) -> Path:
    """The first documents of the bundled corpus: encoding all of them takes a minute."""
    path = tmp_path / "corpus.jsonl.gz"
    with gzip.open(ROOT / CORPUS, "rt") as lines, gzip.open(path, "wt") as some:
        some.writelines(line for line, _ in zip(lines, range(DOCUMENTS), strict=False))
    return path


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_the_page_is_true(page: str, environment: dict[str, str], small_corpus: Path) -> None:
    printed = ""
    for language, text in blocks(page):
        if language == "python":
            printed += run([sys.executable, "-c", text], environment)
            continue
        for line in text.splitlines():
            command = line.partition("#")[0].replace(CORPUS, str(small_corpus))
            printed += run(shlex.split(command), environment)
    assert "ended" in printed
    if page == "README.md":
        assert f"{DOCUMENTS} stored" in printed
        assert "2 stored, 0 rejected" in printed
        assert "Tides {'year': 1687}" in printed


def test_the_readme_names_no_missing_file() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
