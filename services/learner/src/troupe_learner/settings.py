"""What the learner is told at start, as TROUPE_ environment variables.

Every field is read by the front or handed to the ranks; an unknown variable stops the start-up (`ServiceSettings`). Where
ranks are on several nodes, all nodes are told the same but for TROUPE_NODE_RANK, TROUPE_MACHINE, folders and addresses.
"""

import socket
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from troupe_contracts.settings import ServiceSettings, is_loopback, split_address

EngineName = Literal["torch", "deepspeed"]
DtypeName = Literal["float32", "bfloat16"]
OldLogProbs = Literal["behaviour", "recompute"]


class LearnerSettings(ServiceSettings):
    """Settings of one learner: one policy, one gang of ranks."""

    model: str = Field(description="model folder, or a Hugging Face hub id")
    policy_id: str = Field("policy", min_length=1, description="name of the policy that this learner trains")
    work_dir: Path = Field(description="folder for batches, exports and rank logs; one learner per folder")
    engine: EngineName = Field("torch", description="torch or deepspeed")
    ranks: int = Field(1, ge=1, le=64, description="processes of the gang on each node, 1 to 64")
    nodes: int = Field(1, ge=1, le=64, description="machines or pods that have ranks, 1 to 64; as many ranks on each")
    node_rank: int = Field(
        0, ge=0, description="which of the nodes this is: 0 has the front, which is called; the others have agents"
    )
    gang_address: str = Field(
        "",
        description="with several nodes: host:port where the agents of the others meet the front; the front listens on that "
        "port of all its addresses, or of loopback where the host is that",
    )
    gang_interface: str = Field(
        "",
        description="with several nodes: network interface on which ranks meet, such as eth0; empty takes that of the "
        "host's name",
    )
    machine: str = Field("", description="with several nodes: name of this machine, for messages")
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

    @field_validator("gang_address")
    @classmethod
    def _agents_can_dial(cls, value: str) -> str:
        if value and split_address(value)[1] == 0:
            raise ValueError("agents cannot know which port was free: name one")
        return value

    @field_validator("gang_interface")
    @classmethod
    def _is_here(cls, value: str) -> str:
        names = [name for _, name in socket.if_nameindex()]
        if value and value not in names:
            raise ValueError(f"this machine has no such interface, it has {', '.join(names)}")
        return value

    @model_validator(mode="after")
    def _nodes_fit(self) -> Self:
        if self.node_rank >= self.nodes:
            raise ValueError(
                f"TROUPE_NODE_RANK={self.node_rank} is beyond TROUPE_NODES={self.nodes}: nodes count from 0; set "
                "TROUPE_NODES to how many there are, on each of them, or start no more of them"
            )
        if self.nodes > 1 and not self.gang_address:
            raise ValueError(
                f"TROUPE_NODES={self.nodes} needs TROUPE_GANG_ADDRESS: where agents meet the front of node 0"
            )
        if self.node_rank > 0 and self.tokens is not None and self.token_file is None:
            raise ValueError(
                f"TROUPE_NODE_RANK={self.node_rank} with TROUPE_TOKENS needs TROUPE_TOKEN_FILE: the agent shows the front a "
                "token of the role learner"
            )
        for name in ("gang_address", "gang_interface", "machine"):
            if self.nodes == 1 and getattr(self, name):
                raise ValueError(
                    f"TROUPE_{name.upper()}={getattr(self, name)} has no meaning for TROUPE_NODES=1: unset it, or set "
                    "TROUPE_NODES"
                )
        return self

    @property
    def all_ranks(self) -> int:
        """Processes of the gang on all nodes together."""
        return self.nodes * self.ranks

    def _exposed(self) -> list[str]:
        exposed = super()._exposed()
        if self.gang_address and self.node_rank == 0 and not is_loopback(self.gang_address):
            exposed.append(f"TROUPE_GANG_ADDRESS={self.gang_address}")
        return exposed

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
