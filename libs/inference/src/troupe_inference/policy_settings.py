"""Which engine a policy service runs, as it is told by the environment; the executor and the designer share
it.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator
from troupe_contracts.settings import ServiceSettings

from troupe_inference.engines.registry import ENGINES


def _engine(name: str) -> str:
    ENGINES.find(name)
    return name


EngineName = Annotated[str, AfterValidator(_engine)]
"""Name of an engine that there is: built in, or a plug-in that loads."""


class PolicySettings(ServiceSettings):
    """Settings of a service that serves `troupe.v1.Policy`. Those of another engine than the chosen one are
    refused.
    """

    engine: EngineName = Field("vllm", description="vllm, remote, openai, or a plug-in's name")
    policy_id: str = Field("policy", min_length=1, description="which policy this replica serves")
    replica_id: str = Field("", description="stable identity of this replica; required where the engine holds weights")
    max_queued: int = Field(1024, ge=0, description="generations that may wait beyond those that run")
    turn_seconds: float = Field(300.0, gt=0, description="deadline of a turn at a remote policy or an endpoint")

    model: str | None = Field(None, description="Hugging Face folder or hub id")
    lineage: str | None = Field(None, description="lineage of the weights in the folder, which are its number 0")
    renderer: str | None = Field(None, description="renderer of the model's family; by default told from its config")
    dtype: str = Field("auto", description="auto (as saved), float32, bfloat16 or float16")
    context_length: int | None = Field(None, ge=16, description="tokens of prompt and reply together")
    kv_cache_gib: float | None = Field(None, gt=0, description="GiB for keys and values; 1 on a CPU by default")
    max_num_seqs: int = Field(128, ge=1, description="generations that run at once")
    prefix_caching: bool = Field(True, description="compute equal beginnings of prompts once")
    threads: int = Field(1, ge=1, description="threads of a CPU engine")
    binding: str = Field("nobind", description="cores of a CPU engine's threads: nobind, or such as 0-3")
    min_tokens_per_second: float = Field(0.0, ge=0, description="floor measured at start; below it the start fails")
    pause_seconds: float = Field(30.0, ge=0, description="what running generations get before new weights are loaded")

    remote_target: str | None = Field(None, description="host:port of the Policy service to forward to")

    openai_base_url: str | None = Field(None, description="endpoint up to and without /chat/completions")
    openai_model: str | None = Field(None, description="model's name at the endpoint")
    openai_key_file: Path | None = Field(None, description="file that holds the endpoint's key and nothing else")

    @model_validator(mode="after")
    def _has_what_its_engine_needs(self) -> Self:
        # Engines of plug-ins hold weights and are told of them as vLLM is.
        holding = ("model", "lineage", "replica_id")
        required = {
            "remote": ("remote_target",),
            "openai": ("openai_base_url", "openai_model"),
        }
        elsewhere = ("remote_target", "openai_base_url", "openai_model", "openai_key_file")
        foreign = {
            "remote": ("model", "lineage", "renderer", "openai_base_url", "openai_model", "openai_key_file"),
            "openai": ("model", "lineage", "renderer", "remote_target"),
        }
        missing = [_variable(name) for name in required.get(self.engine, holding) if not getattr(self, name)]
        if missing:
            raise ValueError(f"TROUPE_ENGINE={self.engine} needs {' and '.join(missing)}")
        unused = [_variable(name) for name in foreign.get(self.engine, elsewhere) if getattr(self, name) is not None]
        if unused:
            raise ValueError(f"TROUPE_ENGINE={self.engine} does not read {' and '.join(unused)}: unset it")
        return self


def _variable(field: str) -> str:
    return f"TROUPE_{field.upper()}"
