"""Generates `shoal/rpc` from `protos`. Run by `make proto`; `make lint` checks for drift.

Example:
    python tools/generate_stubs.py --check
"""

import argparse
import filecmp
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("shoal/rpc")


def generate(target: Path) -> None:
    """Writes the stubs of every proto, and the packages they live in, below `target`."""
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    include = str(importlib.resources.files("grpc_tools") / "_proto")
    # Named, because protoc looks on PATH alone, where this interpreter's scripts need not be.
    scripts = Path(sys.executable).parent
    plugins = [
        f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{include}",
            *plugins,
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *sources,
        ]
    )
    if code != 0:
        sys.exit(code)
    for folder in [target / PACKAGE, *sorted((target / PACKAGE).rglob("*"))]:
        if folder.is_dir():
            # protoc writes no packages, and folders without one leave the import graph silently.
            (folder / "__init__.py").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Names of files that differ or stand on one side only, except caches."""
    names = {
        path.relative_to(side).as_posix()
        for side in (left, right)
        for path in side.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return [
        name
        for name in sorted(names)
        if not (left / name).exists()
        or not (right / name).exists()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    ]


def main() -> None:
    """Generates in place, or with --check only compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the committed stubs differ")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = Path(scratch) / PACKAGE, ROOT / PACKAGE
        if arguments.check:
            different = differences(fresh, committed)
            if different:
                sys.exit("stubs differ from protos, run `make proto`:\n  " + "\n  ".join(different))
            return
        shutil.rmtree(committed, ignore_errors=True)
        shutil.copytree(fresh, committed)


if __name__ == "__main__":
    main()
