"""Holds a local Ray cluster: `python -m deploy.ray_head --data DIR --temporary DIR --cores N`.

The process starts Ray on free ports of this machine and keeps it until SIGTERM.
Ray's own processes die with it. Its run file tells the address.
"""

import argparse
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deploy.launchers.processes import run_folder
from deploy.launchers.runfiles import RunFile, RunRecord

RAY = "ray"
OBJECT_STORE_BYTES = 80 << 20


def ray_environment(data: str) -> dict[str, str]:
    """Variables that every process of a local Ray cluster and its drivers share.

    Ray's ports run code for whoever reaches them, so even a local cluster asks
    for a token that only its owner can read.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(Path(data) / "ray-token"),
        # Stay on the loopback interface, as Ray does on macOS by default.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


def set_ray_environment(data: str, local: bool) -> None:
    """Makes this process, which has not imported Ray yet, ready to use it.

    Args:
        data: the cluster's folder.
        local: use the cluster's own local Ray; else another's, whose token, if
            it asks for one, is in the environment already.
    """
    os.environ.pop("RAY_ADDRESS", None)
    if local:
        os.environ.update(ray_environment(data))
        return
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="deploy.ray_head", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--temporary", required=True)
    parser.add_argument("--cores", type=int, required=True)
    parsed = parser.parse_args(arguments)
    record = RunRecord(RAY, RAY, os.getpid())
    run_file = RunFile(run_folder(parsed.data), record)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    # Ray reads its environment while it is imported.
    set_ray_environment(parsed.data, local=True)
    import ray  # noqa: PLC0415 - as above

    ray.init(
        address="local",
        num_cpus=parsed.cores,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=parsed.temporary,
    )
    run_file.write(replace(record, address=ray.get_runtime_context().gcs_address))
    stopping.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
