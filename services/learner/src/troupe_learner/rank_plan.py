"""What the ranks of a learner are told at their start, by its settings."""

from pathlib import Path

from troupe_learner.gang import RankPlan
from troupe_learner.model_folder import ModelFolder
from troupe_learner.settings import LearnerSettings


def rank_plan(settings: LearnerSettings, model: ModelFolder, folder: Path) -> RankPlan:
    """The plan of a generation whose ranks keep their files in `folder`."""
    return RankPlan(
        ranks=settings.ranks,
        threads=settings.threads,
        folder=folder,
        stall_seconds=settings.stall_seconds,
        start={
            "model": str(model.folder),
            "engine": settings.engine,
            "ranks": settings.ranks,
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
