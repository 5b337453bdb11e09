"""Real processes that write the log and are killed, or meet a broken or full disk."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.storage.directory import open_storage
from shoal.storage.files import EXIT_FSYNC_FAILED
from shoal.types import ShardRef

SHARD = ShardRef("0123456789abcdef" * 2, 1, 0)
KILLS = 12

_COMMON = """
import hashlib, logging, sys
from shoal.errors import DiskFull
from shoal.storage import log_writer
from shoal.storage.directory import open_storage
from shoal.types import ShardRef

def payload(sequence):
    block = hashlib.sha256(b"%d" % sequence).digest()
    return block * (sequence * 7919 % 97) + block[: sequence % 32]

logging.basicConfig(level=logging.INFO)
data, epoch = sys.argv[1], int(sys.argv[2])
opened = open_storage(data).logs.open(ShardRef("0123456789abcdef" * 2, 1, 0), epoch)
"""

_WRITER = """
log_writer.FILE_BYTES = log_writer.STEP_BYTES = 256 << 10
while True:
    first = opened.last_sequence + 1
    last = opened.append([payload(n) for n in range(first, first + 1 + first % 5)])
    print(last, flush=True)
    if last % 7 == 0:
        opened.idle()
    if last % 50 == 0:
        opened.drop_prefix(last - 2_000)
"""


def payload(sequence: int) -> bytes:
    block = hashlib.sha256(b"%d" % sequence).digest()
    return block * (sequence * 7919 % 97) + block[: sequence % 32]


Start = Callable[[str, int], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that holds `opened`, the log in tmp_path, and runs a script."""
    running: list[subprocess.Popen[str]] = []

    def begin(script: str, epoch: int) -> subprocess.Popen[str]:
        code = _COMMON + textwrap.dedent(script)
        command = [sys.executable, "-c", code, str(tmp_path), str(epoch)]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_every_acknowledged_entry_survives_kill_9(tmp_path: Path, start: Start) -> None:
    """The writer is killed at a random moment of its stream, again and again; its
    acknowledgements come through a pipe, which outlives it.
    """
    chance = random.Random(7)
    acknowledged = 0
    for epoch in range(1, KILLS + 1):
        writer = start(_WRITER, epoch)
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 400)):
            line = writer.stdout.readline()
            assert line, writer.communicate()[1]
            acknowledged = int(line)
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate(timeout=60)
        # The last line may have been cut short by the kill.
        acknowledged = max([acknowledged, *map(int, rest.split("\n")[:-1])])
        snapshot = open_storage(str(tmp_path)).logs.read(SHARD)
        assert snapshot.last_sequence >= acknowledged
        floor = max(0, acknowledged - 2_000)
        entries = {entry.sequence: entry.payload for entry in snapshot.entries(floor)}
        assert list(entries) == list(range(floor + 1, snapshot.last_sequence + 1))
        assert all(payload(number) == found for number, found in entries.items())
    assert acknowledged > 1_000


def test_a_stopped_writer_that_wakes_up_acknowledges_nothing(tmp_path: Path, start: Start) -> None:
    writer = start(_WRITER, 1)
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(20)]
    writer.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(writer.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    opened = open_storage(str(tmp_path)).logs.open(SHARD, 2)
    taken_over_at = opened.last_sequence
    assert opened.append([b"the newer writer's"]) == taken_over_at + 1
    writer.send_signal(signal.SIGCONT)
    output, errors = writer.communicate(timeout=60)
    assert writer.returncode == 1
    assert "SupersededWriter" in errors
    assert max(map(int, "".join([*lines, output]).split())) <= taken_over_at
    (entry,) = opened.entries(taken_over_at)
    assert entry.payload == b"the newer writer's"
    opened.close()
    assert open_storage(str(tmp_path)).logs.read(SHARD).last_sequence == taken_over_at + 1


def test_a_failed_fsync_ends_the_process_unacknowledged(tmp_path: Path, start: Start) -> None:
    writer = start(
        """
        import os
        print(opened.append([payload(1)]), flush=True)
        def failing(descriptor):
            raise OSError(5, "Input/output error")
        os.fdatasync = failing
        try:
            opened.append([payload(2)])
        finally:
            print("still here", flush=True)
        """,
        1,
    )
    output, errors = writer.communicate(timeout=60)
    assert writer.returncode == EXIT_FSYNC_FAILED
    assert output == "1\n"
    assert "fsync" in errors
    assert "the process ends" in errors
    opened = open_storage(str(tmp_path)).logs.open(SHARD, 2)
    assert next(iter(opened.entries(0))).payload == payload(1)
    opened.close()


def test_a_file_size_limit_refuses_writes_and_reads_go_on(tmp_path: Path, start: Start) -> None:
    """RLIMIT_FSIZE stands for the full disk: the kernel refuses to grow the file."""
    writer = start(
        """
        import resource
        log_writer.STEP_BYTES = 4096
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        refused = 0
        while refused < 3:
            try:
                opened.append([bytes(1000)])
            except DiskFull:
                refused += 1
                assert len(list(opened.entries(0))) == opened.last_sequence
        before = opened.last_sequence
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert opened.append([b"room again"]) == before + 1
        print(before + 1, flush=True)
        """,
        1,
    )
    output, errors = writer.communicate(timeout=60)
    assert writer.returncode == 0, errors
    snapshot = open_storage(str(tmp_path)).logs.read(SHARD)
    assert snapshot.last_sequence == int(output) > 10
    assert next(iter(snapshot.entries(snapshot.last_sequence - 1))).payload == b"room again"
