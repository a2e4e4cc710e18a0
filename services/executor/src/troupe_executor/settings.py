"""What the executor reads from the environment."""

from troupe_inference.policy_settings import PolicySettings


class ExecutorSettings(PolicySettings):
    """The engine's settings and nothing more; the engine is vLLM unless told otherwise."""
