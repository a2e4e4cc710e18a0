"""What the learner is told at start, as TROUPE_ environment variables.

Every field is read by the front or handed to the ranks; an unknown variable stops the start-up (`ServiceSettings`).
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from troupe_contracts.settings import ServiceSettings

EngineName = Literal["torch", "deepspeed"]
DtypeName = Literal["float32", "bfloat16"]
OldLogProbs = Literal["behaviour", "recompute"]


class LearnerSettings(ServiceSettings):
    """Settings of one learner: one policy, one gang of ranks."""

    model: str = Field(description="model folder, or a Hugging Face hub id")
    policy_id: str = Field("policy", min_length=1, description="name of the policy that this learner trains")
    work_dir: Path = Field(description="folder for batches, exports and rank logs; one learner per folder")
    engine: EngineName = Field("torch", description="torch or deepspeed")
    ranks: int = Field(1, ge=1, le=64, description="processes of the gang, 1 to 64")
    zero_stage: int = Field(0, ge=0, le=3, description="ZeRO stage of the deepspeed engine, 0 to 3")
    dtype: DtypeName = Field("float32", description="float32 or bfloat16: type of the weights that are served")
    threads: int = Field(1, ge=1, description="torch threads of each rank, 1 or more")
    tokens_per_microbatch: int = Field(
        2048, ge=1, description="padded tokens of one forward pass, 1 or more; a longer sequence goes alone"
    )
    old_log_probs: OldLogProbs = Field(
        "behaviour",
        description="what the ratio is taken against: behaviour (the engine's log-probabilities) or "
        "recompute (the learner's own, from before the step's first update)",
    )
    stall_seconds: float = Field(
        900.0,
        gt=0,
        description="seconds without a sign of progress after which ranks are ended and started again; more than one "
        "forward pass with its backward, the load of a rank's state, or the start of a rank takes",
    )
    lineage: str = Field("", description="name of the first lineage of versions; empty draws one")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1, in [0, 1)")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW beta2, in [0, 1)")
    adam_eps: float = Field(1e-8, gt=0, description="AdamW epsilon, above 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay, 0 or more")

    @model_validator(mode="after")
    def _options_fit_the_engine(self) -> Self:
        if self.engine == "torch" and self.zero_stage:
            raise ValueError(
                f"TROUPE_ZERO_STAGE={self.zero_stage} has no meaning for TROUPE_ENGINE=torch: "
                "unset it, or set TROUPE_ENGINE=deepspeed"
            )
        if self.engine == "deepspeed" and self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "TROUPE_DTYPE=bfloat16 with TROUPE_ENGINE=deepspeed needs float32 master weights: "
                "set TROUPE_ZERO_STAGE to 1, 2 or 3"
            )
        return self
