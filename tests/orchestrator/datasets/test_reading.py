"""Files that callers name are read where they are files of a size that can be held, and nothing else is opened for long."""

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from troupe_contracts.errors import InvalidArgument
from troupe_orchestrator.custom_resources.eval_jobs import dataset_of
from troupe_orchestrator.datasets.loading import MAX_BYTES
from troupe_orchestrator.evaluation.requests import MAX_DATASET_BYTES
from troupe_orchestrator.run_config import RunConfig, parse_run_config
from troupe_orchestrator.training.held_out import load_held_out
from troupe_orchestrator.training.inputs import load_data

pytestmark = pytest.mark.timeout(60)

LINE = '{"id": "a", "task_type": "math", "question": "1+1?", "answer": "2"}\n'
READERS: dict[str, tuple[Callable[[Path], object], int]] = {
    "config.dataset.train": (lambda path: load_data(config(path)), MAX_BYTES),
    "config.validation.dataset": (lambda path: load_held_out(config("/unread", path), []), MAX_BYTES),
    "dataset.path": (lambda path: dataset_of({"dataset": {"path": str(path)}}), MAX_DATASET_BYTES),
}
each_reader = pytest.mark.parametrize("field", READERS)


def config(train: Path | str, held_out: Path | None = None) -> RunConfig:
    validation = f", validation: {{dataset: {held_out}, every: 1}}" if held_out else ""
    return parse_run_config(
        f"{{dataset: {{train: {train}}}, steps: 1, stages: [{{train: both, steps: 1}}]{validation}}}"
    )


def refusal(field: str, path: Path) -> str:
    read, _ = READERS[field]
    with pytest.raises(InvalidArgument) as caught:
        read(path)
    ((named, message),) = caught.value.violations
    assert named == field
    assert str(path) in message
    return message


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What reads without an end is stopped before the machine is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@each_reader
def test_a_pipe_that_nobody_writes_to_is_refused_at_once(field: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "no regular file: name one" in refusal(field, tmp_path / "pipe.jsonl")


@each_reader
def test_a_device_without_an_end_is_not_read(field: str, little_memory: None) -> None:
    assert "no regular file: name one" in refusal(field, Path("/dev/zero"))


@each_reader
def test_a_folder_and_a_file_that_is_not_there_are_told_apart(field: str, tmp_path: Path) -> None:
    assert "Is a directory" in refusal(field, tmp_path)
    assert "No such file or directory" in refusal(field, tmp_path / "none")


@each_reader
def test_a_file_above_the_limit_is_not_read(field: str, tmp_path: Path, little_memory: None) -> None:
    _, limit = READERS[field]
    file = tmp_path / "large.jsonl"
    file.touch()
    os.truncate(file, limit + 1)
    assert f"has {limit + 1} bytes, the maximum is {limit}: split it" in refusal(field, file)


@each_reader
def test_a_link_to_a_file_is_read(field: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_text(LINE)
    (tmp_path / "link.jsonl").symlink_to("data")
    read, _ = READERS[field]
    assert read(tmp_path / "link.jsonl")
