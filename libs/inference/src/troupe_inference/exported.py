"""What a policy service exports of its generations and its weights, beside the calls that `troupe_contracts` counts.

Counted where tokens are sampled: a service that forwards to another's engine exports none of these.
"""

from typing import Final

from prometheus_client import Counter, Gauge

from troupe_inference.transcript import Version

GENERATED: Final = Counter("troupe_policy_generated_tokens_total", "Tokens sampled.", ["policy"])
PROMPTED: Final = Counter(
    "troupe_policy_prompt_tokens_total", "Tokens of prompts, prefixes in a cache too.", ["policy"]
)
IN_FLIGHT: Final = Gauge("troupe_policy_in_flight", "Generations that run or wait for the engine.", ["policy"])
CAPACITY: Final = Gauge("troupe_policy_capacity", "Generations that the engine runs at once.", ["policy"])
VERSION: Final = Gauge(
    "troupe_policy_version", "Number of the version that is served; absent while none is.", ["policy", "lineage"]
)
PAUSED: Final = Gauge("troupe_policy_load_paused_seconds", "For how long the last load of weights paused.", ["policy"])
PROBE_ERROR: Final = Gauge(
    "troupe_policy_probe_error",
    "Mean error, in nats, of the learner's log-probabilities as reproduced after the last load.",
    ["policy"],
)


def serves(policy: str, version: Version | None) -> None:
    """A replica serves a version from now on, or none. A process has one policy."""
    VERSION.clear()
    if version is not None:
        VERSION.labels(policy, version.lineage).set(version.number)
