"""Nodes of a Ray cluster that are set aside for a role, as the Helm chart sets them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.clusters import cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OFFERED = {"shoal_server": 2.0, "shoal_router": 2.0}
RAY = """
import json, sys, ray
ray.init(address="local", num_cpus=2, resources=json.loads(sys.argv[1]), include_dashboard=False,
         object_store_memory=80 << 20, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
for _ in sys.stdin:
    print(json.dumps(ray.available_resources()), flush=True)
"""


@contextmanager
def ray_cluster() -> Iterator["subprocess.Popen[str]"]:
    """A Ray that offers the roles' resources; each line written to it asks what is left."""
    with subprocess.Popen(
        [sys.executable, "-c", RAY, json.dumps(OFFERED)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    ) as process:
        yield process


def test_each_process_takes_a_unit_of_what_its_role_is_offered(tmp_path: Path) -> None:
    with ray_cluster() as ray:
        assert ray.stdin is not None
        assert ray.stdout is not None
        address = ray.stdout.readline().strip()
        options = ("--ray", address, "--encoders", "0", "--shards", "2", "--routers", "1")
        with cluster(tmp_path / "data", *options, RAY_AUTH_MODE="disabled") as made:
            assert set(made.pids()) == {"controller", "router-0", "server-0", "server-1"}
            ray.stdin.write("left\n")
            ray.stdin.flush()
            left = json.loads(ray.stdout.readline())
        ray.stdin.close()
    assert {name: left.get(name, 0.0) for name in OFFERED} == {
        "shoal_server": 0.0,
        "shoal_router": 1.0,
    }
