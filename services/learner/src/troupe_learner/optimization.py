"""How one batch is turned into optimizer steps: the contract's message as a value, checked."""

import math
from dataclasses import asdict, dataclass
from typing import Final

from troupe_contracts.errors import InvalidArgument

MAX_MINI_BATCHES: Final = 1024
LARGEST: Final = 1e30
"""Of any number: ranks reckon with it in float32, where what is made of it has to fit, too."""


@dataclass(frozen=True)
class Optimization:
    """Field for field the contract's `Optimization`; see there."""

    learning_rate: float
    mini_batches: int
    clip_low: float
    clip_high: float
    max_grad_norm: float
    importance_cap: float
    reset_optimizer: bool
    scale_by_mini_batches: bool

    def check(self) -> None:
        """Refuses what would train nothing, or nonsense.

        Raises:
            InvalidArgument: every field that is out of bounds.
        """
        problems = [
            (f"optimization.{name}", f"is {value:g}: send {wanted}")
            for name, value, good, wanted in (
                ("learning_rate", self.learning_rate, self.learning_rate > 0, "a number above 0"),
                (
                    "mini_batches",
                    self.mini_batches,
                    1 <= self.mini_batches <= MAX_MINI_BATCHES,
                    f"1 to {MAX_MINI_BATCHES}",
                ),
                ("clip_low", self.clip_low, 0 < self.clip_low <= 1, "a number above 0, at most 1"),
                ("clip_high", self.clip_high, self.clip_high > 0, "a number above 0"),
                ("max_grad_norm", self.max_grad_norm, self.max_grad_norm >= 0, "a norm, or 0 for off"),
                ("importance_cap", self.importance_cap, self.importance_cap >= 0, "a cap, or 0 for off"),
            )
            if not (good and math.isfinite(value))
        ]
        problems += [
            (f"optimization.{name}", f"is {value:g}: send at most {LARGEST:g}")
            for name, value in asdict(self).items()
            if math.isfinite(value) and value > LARGEST
        ]
        if problems:
            raise InvalidArgument.every(problems)
