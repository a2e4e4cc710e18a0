"""What the designer reads from the environment."""

from pydantic import Field
from troupe_contracts.scripts import MAX_SCRIPT_CHARACTERS
from troupe_inference.policy_settings import EngineName, PolicySettings


class DesignerSettings(PolicySettings):
    """The engine's settings, and the prompt. By default the engine is the executor's, reached over gRPC."""

    engine: EngineName = Field("remote", description="vllm, remote, openai, or a plug-in's name")
    prompt: str = Field("default", description="name of a built-in prompt, or a folder with system.txt and user.txt")
    max_script_characters: int = Field(
        MAX_SCRIPT_CHARACTERS, ge=1, le=MAX_SCRIPT_CHARACTERS, description="longest script that is accepted"
    )
