"""A full disk, wherever it is: a clear error, nothing half-written, and the learner goes on."""

from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
from learning.client import Client, failed
from learning.process import Learner
from troupe.v1 import learner_pb2

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode


async def test_a_full_disk_is_a_clear_error_and_leaves_nothing_behind(
    learner: Client, running: Learner, tmp_path: Path
) -> None:
    """The rank's limit on file size stands in for the disk's end: the write fails in the same way."""
    (rank,) = (psutil.Process(pid) for pid in running.rank_pids())
    soft, hard = rank.rlimit(psutil.RLIMIT_FSIZE)
    rank.rlimit(psutil.RLIMIT_FSIZE, (100_000, hard))
    try:
        done = await learner.save(str(tmp_path / "checkpoint"))
    finally:
        rank.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
    failed(done, CODE.RESOURCE_EXHAUSTED, "make room")
    assert list(tmp_path.iterdir()) == []
    assert not (await learner.save(str(tmp_path / "checkpoint"))).HasField("error")
