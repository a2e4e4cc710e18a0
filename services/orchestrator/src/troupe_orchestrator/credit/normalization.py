"""Per-token weights: how much each trained token counts in the loss that the learner sums.

The learner adds up weight × loss over all tokens of all ranks and never divides, so what the weights of one role sum to
is decided here, per optimizer step:

| rule | weight of a token | sum over the role |
|---|---|---|
| `token_mean` | 1 / (trained tokens of the role) | scale |
| `sequence_mean` | 1 / (sequences · tokens of its sequence) | scale |
| `execution_mean` | 1 / (samples · tokens of its sample) | scale |
| `constant` | 1 / constant | scale · tokens / constant |

A *sample* is an execution with all its conversations, or a design. Only sequences that are trained on are passed in: a
padding copy or a sequence of the other role has no weight and enters no count. `docs/method.md`, equation 8.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from troupe_orchestrator.credit.types import Role

Rule = Literal["token_mean", "sequence_mean", "execution_mean", "constant"]


class RoleNormalization(BaseModel):
    """How the tokens of one role are weighted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rule: Rule = "token_mean"
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies all weights of the role."""
    constant: Annotated[float, Field(gt=0)] | None = None
    """Divisor of the rule `constant`, in tokens. Refused with another rule."""

    @model_validator(mode="after")
    def _constant_fits_the_rule(self) -> Self:
        if (self.rule == "constant") != (self.constant is not None):
            raise ValueError(
                "the rule `constant` needs a value of `constant`, and no other rule takes one; "
                f"got rule {self.rule} with constant {self.constant}"
            )
        return self


class Normalization(BaseModel):
    """One rule per role."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    designer: RoleNormalization = RoleNormalization()
    executor: RoleNormalization = RoleNormalization()


@dataclass(frozen=True, slots=True)
class TrainedSequence:
    """A sequence of the batch."""

    sequence_id: str
    sample_id: str
    """The execution or the design that it belongs to."""
    role: Role
    trained_tokens: int
    """Generated tokens, at least 1."""


def token_weights(sequences: Iterable[TrainedSequence], normalization: Normalization) -> dict[str, float]:
    """Weight of every trained token of each sequence, by sequence id.

    Args:
        sequences: all sequences of one optimizer step.

    Raises:
        ValueError: two sequences share an id, or one has no trained token.
    """
    batch = tuple(sequences)
    weights: dict[str, float] = {}
    roles: tuple[tuple[Role, RoleNormalization], ...] = (
        ("designer", normalization.designer),
        ("executor", normalization.executor),
    )
    for role, rule in roles:
        weights.update(_role_weights([sequence for sequence in batch if sequence.role == role], rule))
    if len(weights) != len(batch):
        raise ValueError("two sequences share one id: a copy would be trained on twice")
    return weights


def _role_weights(sequences: list[TrainedSequence], normalization: RoleNormalization) -> dict[str, float]:
    for sequence in sequences:
        if sequence.trained_tokens < 1:
            raise ValueError(f"sequence {sequence.sequence_id} has no trained token: leave it out")
    tokens_of_sample: dict[str, int] = {}
    for sequence in sequences:
        tokens_of_sample[sequence.sample_id] = tokens_of_sample.get(sequence.sample_id, 0) + sequence.trained_tokens
    tokens = sum(tokens_of_sample.values())
    weights = {}
    for sequence in sequences:
        match normalization.rule:
            case "token_mean":
                divisor = float(tokens)
            case "sequence_mean":
                divisor = float(len(sequences) * sequence.trained_tokens)
            case "execution_mean":
                divisor = float(len(tokens_of_sample) * tokens_of_sample[sequence.sample_id])
            case "constant":
                assert normalization.constant is not None
                divisor = normalization.constant
        weights[sequence.sequence_id] = normalization.scale / divisor
    return weights
