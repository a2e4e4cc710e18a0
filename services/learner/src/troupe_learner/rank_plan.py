"""What the ranks of a learner are told at their start, by its settings; and this machine as one that has some of them."""

import socket
from pathlib import Path

from troupe_learner.gang import RankPlan
from troupe_learner.local_ranks import LocalHost
from troupe_learner.model_folder import ModelFolder
from troupe_learner.settings import LearnerSettings


def rank_plan(settings: LearnerSettings, model: ModelFolder, folder: Path) -> RankPlan:
    """The plan of a generation whose ranks keep their files in `folder`."""
    return RankPlan(
        ranks=settings.all_ranks,
        threads=settings.threads,
        folder=folder,
        stall_seconds=settings.stall_seconds,
        interface="lo" if settings.nodes == 1 else settings.gang_interface,
        start={
            "model": str(model.folder),
            "engine": settings.engine,
            "ranks": settings.all_ranks,
            "zero_stage": settings.zero_stage,
            "dtype": settings.dtype,
            "threads": settings.threads,
            "tokens_per_microbatch": settings.tokens_per_microbatch,
            "recompute_old": settings.old_log_probs == "recompute",
            "adamw": {
                "beta1": settings.adam_beta1,
                "beta2": settings.adam_beta2,
                "eps": settings.adam_eps,
                "weight_decay": settings.weight_decay,
            },
        },
    )


def this_machine(settings: LearnerSettings, plan: RankPlan) -> LocalHost:
    """Where ranks of this node start."""
    first = settings.node_rank * settings.ranks
    if settings.nodes == 1:
        return LocalHost(plan)
    machine = f", machine {settings.machine}" if settings.machine else ""
    return LocalHost(plan, first, f", pod {socket.gethostname()}{machine}")
