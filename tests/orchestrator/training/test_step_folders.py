"""Which of a step's files counts where two orchestrators wrote it: one that was stopped, and the one that took over."""

from pathlib import Path

import numpy as np
import pytest
from troupe_orchestrator.training.batch import TrainingSequence, read_batch, write_batch
from troupe_orchestrator.training.rolling import StepFolders


def sequence(name: str) -> TrainingSequence:
    none = np.zeros(1, dtype=np.float32)
    return TrainingSequence(name, np.zeros(1, dtype=np.int32), none, none, none)


@pytest.mark.parametrize("order", [(9, 10), (10, 9)])
def test_a_stopped_orchestrator_that_wakes_replaces_nothing_that_is_held(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    folders = StepFolders(tmp_path)
    assert folders.newest_held(1) is None
    for token in order:
        write_batch(folders.held(1, token), [sequence(f"of {token}")])
    newest = folders.newest_held(1)
    assert newest is not None
    assert [each.id for each in read_batch(newest)] == ["of 10"]
