"""Plain torch on one rank is the oracle: two ranks, and DeepSpeed at every ZeRO stage, train the same."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from troupe.v1 import learner_pb2
from troupe_learner.batch_file import write_batch
from troupe_learner.batches import as_arrays

PROGRAM = Path(__file__).with_name("gang_program.py")
# A group of cases trains in one pair of processes.
FIRST = ("torch", "zero2", "torch-tied", "zero3-tied", "zero2-bfloat16")
FURTHER = ("zero0", "zero1", "zero3", "torch-bfloat16")
CASES = [*FIRST, *(pytest.param(case, marks=pytest.mark.long) for case in FURTHER)]
ROUNDED = ["zero2-bfloat16", pytest.param("torch-bfloat16", marks=pytest.mark.long)]
EXACT = [case for case in CASES if case not in ROUNDED]

Results = dict[str, dict[str, Tensor]]
Trained = Callable[[str], dict[str, Tensor]]


def run_gang(ranks: int, folder: Path, batch: Path, cases: dict[str, Path]) -> Results:
    folder.mkdir()
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    logs = [folder / f"log-{rank}" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        arguments = [str(rank), str(ranks), str(folder / "rendezvous"), str(batch), str(folder)]
        arguments += [f"{case}={model}" for case, model in cases.items()]
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), *arguments], stdout=output, stderr=output, env=environment
                )
            )
    try:
        codes = [process.wait(240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks, "\n".join(log.read_text()[-3000:] for log in logs)
    return {case: load_file(folder / f"{case}.safetensors") for case in cases}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[bool], Path], batch_path: Path) -> Results:
    cases = {case: tiny_model(case.endswith("-tied")) for case in ("torch", "torch-tied", "zero2")}
    return run_gang(1, tmp_path_factory.mktemp("one") / "ranks", batch_path, cases)


@pytest.fixture(scope="module")
def two_ranks(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[bool], Path], batch_path: Path
) -> Trained:
    """What a case gave on two ranks; its group trains when the first of it is asked for."""

    @cache
    def group(cases: tuple[str, ...]) -> Results:
        models = {case: tiny_model(case.endswith("-tied")) for case in cases}
        return run_gang(2, tmp_path_factory.mktemp("two") / "ranks", batch_path, models)

    return lambda case: group(FIRST if case in FIRST else FURTHER)[case]


@pytest.fixture(scope="module")
def batch_path(tmp_path_factory: pytest.TempPathFactory, batch_of: Callable[..., list[learner_pb2.Sequence]]) -> Path:
    path = tmp_path_factory.mktemp("batch") / "batch.npz"
    write_batch(path, as_arrays(batch_of(9, seed=3)))
    return path


def closest(left: dict[str, Tensor], right: dict[str, Tensor], prefix: str = "one.") -> float:
    names = {name for name in left if name.startswith(prefix)}
    assert names == {name for name in right if name.startswith(prefix)}
    return max(float((left[name] - right[name]).abs().max()) for name in names)


@pytest.mark.parametrize("case", EXACT)
def test_two_ranks_of_any_engine_train_as_one_rank_of_plain_torch(
    case: str, one_rank: Results, two_ranks: Trained, tiny_model: Callable[[bool], Path]
) -> None:
    oracle = one_rank["torch-tied" if case.endswith("-tied") else "torch"]
    found = two_ranks(case)
    start = load_file(tiny_model(case.endswith("-tied")) / "model.safetensors")
    moved = closest({f"one.{name}": each for name, each in start.items()}, oracle)
    assert moved > 1e-3, "the step must be large against the tolerance"
    assert closest(oracle, found) < 1e-3 * moved
    assert torch.allclose(oracle["log_probs"], found["log_probs"], atol=2e-5)
    assert torch.allclose(oracle["metrics"], found["metrics"], rtol=1e-3, atol=1e-5)


def test_one_rank_of_deepspeed_trains_as_plain_torch(one_rank: Results) -> None:
    assert closest(one_rank["torch"], one_rank["zero2"]) < 1e-5


@pytest.mark.parametrize("case", ROUNDED)
def test_bfloat16_stays_near_float32(case: str, one_rank: Results, two_ranks: Trained) -> None:
    found = two_ranks(case)
    assert closest(one_rank["torch"], found) < 2e-2
    assert float((one_rank["torch"]["log_probs"] - found["log_probs"]).abs().mean()) < 0.05


@pytest.mark.parametrize("case", CASES)
def test_every_engine_restores_bit_for_bit_and_undoes_a_step_that_is_not_finite(case: str, two_ranks: Trained) -> None:
    found = two_ranks(case)
    assert bool(found["restored"].all())
    assert bool(found["undone"].all())
    assert bool(found["finite"].all())


@pytest.mark.parametrize("case", CASES)
def test_every_engine_goes_back_to_its_start_bit_for_bit(case: str, two_ranks: Trained) -> None:
    assert bool(two_ranks(case)["reset"].all())
