"""One rank of the engine comparison (`test_learner_engines.py`): every engine in turn, in one pair of processes.

For each case: two steps, a saved state, one step more; then the state is restored and that step repeated; then a step that
is not finite; then back to the model folder, and the first step again. Rank 0 writes what came out as `CASE.safetensors`.

    python gang_program.py RANK RANKS RENDEZVOUS BATCH.npz OUTPUT_FOLDER CASE=MODEL_FOLDER …
"""

import dataclasses
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist
from troupe_learner.batch_file import BatchArrays, read_batch
from troupe_learner.optimization import Optimization
from troupe_learner.rank.commands import Rank, reset
from troupe_learner.rank.engine import AdamW, Engine, copy_into, snapshot
from troupe_learner.rank.model import DTYPES, load_model, tensor_specs
from troupe_learner.rank.scorer import TokenScorer
from troupe_learner.rank.scoring import score
from troupe_learner.rank.torch_engine import TorchEngine
from troupe_learner.rank.training import StepRefused, train_step

# A large epsilon keeps AdamW's step proportional to the gradient: otherwise rounding in gradients near zero, divided by
# their own size, is all that a comparison sees.
ADAMW = AdamW(0.9, 0.95, 1e-2, 0.01)
STEP = Optimization(1e-2, 3, 0.2, 0.28, 0.5, 0.0, False, True)
BUDGET = 120


def build(case: str, folder: str, rank: int, ranks: int) -> Engine:
    """`torch`, or `zero0` to `zero3`; `-bfloat16` for that type, `-tied` says what the folder is."""
    engine, _, variant = case.partition("-")
    served = DTYPES["bfloat16" if variant == "bfloat16" else "float32"]
    if engine == "torch":
        return TorchEngine(TokenScorer(load_model(folder, torch.float32)), ADAMW, served, rank, ranks)
    from troupe_learner.rank.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(TokenScorer(load_model(folder, served)), ADAMW, served, int(engine[-1]), rank, ranks)


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: each.float().clone() for name, each in engine.weights()}


def step(engine: Engine, batch: BatchArrays) -> dict[str, float]:
    return train_step(engine, batch, STEP, token_budget=BUDGET, recompute_old=False, progress=lambda done: None)


def run(case: str, folder: str, rank: int, ranks: int, batch: BatchArrays) -> dict[str, Tensor]:
    engine = build(case, folder, rank, ranks)
    fresh = snapshot(engine)
    log_probs, _ = score(engine, batch.lengths, batch.token_ids, BUDGET, lambda done: None)
    metrics = step(engine, batch)
    results = {"one." + name: each for name, each in weights(engine).items()}
    results["log_probs"] = torch.from_numpy(log_probs.copy())
    results["metrics"] = torch.tensor(
        [metrics[name] for name in ("loss", "grad_norm", "ratio_max", "entropy", "trained_tokens")]
    )
    step(engine, batch)
    saved = snapshot(engine)
    step(engine, batch)
    three = weights(engine)
    copy_into(engine.live(), saved)
    step(engine, batch)
    again = weights(engine)
    results["restored"] = torch.tensor([torch.equal(three[name], again[name]) for name in three])

    before = snapshot(engine)
    advantages = batch.advantages.copy()
    advantages[-1] = np.float32(3e38)
    poisoned = dataclasses.replace(batch, advantages=advantages, weights=batch.weights * 100)
    try:
        step(engine, poisoned)
        raise AssertionError("a gradient that is not finite was applied")
    except StepRefused:
        after = snapshot(engine)
    results["undone"] = torch.tensor([torch.equal(before[name], after[name]) for name in before])
    step(engine, batch)
    copy_into(engine.live(), before)
    step(engine, batch)
    last = weights(engine)
    results["finite"] = torch.tensor([bool(torch.isfinite(each).all()) for each in last.values()])

    reset(as_started(case, folder, engine), {})
    like_new = snapshot(engine)
    step(engine, batch)
    first = weights(engine)
    results["reset"] = torch.tensor(
        [torch.equal(fresh[name], like_new[name]) for name in fresh]
        + [torch.equal(results["one." + name], first[name]) for name in first]
    )
    return results


def as_started(case: str, folder: str, engine: Engine) -> Rank:
    held = held_dtype(case)
    specs = tensor_specs(load_model(folder, held), held)
    return Rank(
        engine, partial(load_model, folder, held), torch.get_rng_state(), specs, False, BUDGET, False, lambda done: None
    )


def held_dtype(case: str) -> torch.dtype:
    return DTYPES["bfloat16" if case.startswith("zero") and case.endswith("-bfloat16") else "float32"]


def main() -> None:
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=ranks)
    batch = read_batch(Path(sys.argv[4]))
    for argument in sys.argv[6:]:
        case, _, folder = argument.partition("=")
        results = run(case, folder, rank, ranks, batch)
        if rank == 0:
            save_file(
                {name: each.contiguous() for name, each in results.items()},
                Path(sys.argv[5]) / f"{case}.safetensors",
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
