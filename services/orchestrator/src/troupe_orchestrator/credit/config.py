"""The config of credit: which estimator with which options, and how tokens are weighted."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from troupe_orchestrator.credit.normalization import Normalization
from troupe_orchestrator.credit.registry import ESTIMATORS
from troupe_orchestrator.credit.types import Advantages, Outcomes, Values


class CreditConfig(BaseModel):
    """Credit of a run. `options` are those of the chosen estimator; an unknown one is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    estimator: str = "hierarchical"
    options: dict[str, Any] = Field(default_factory=dict)
    normalization: Normalization = Normalization()
    filter_zero_variance: bool = False
    """Leave samples out of the batch that were in no group whose rewards differ. They are reported either way."""

    @model_validator(mode="after")
    def _options_fit_the_estimator(self) -> Self:
        self.parsed_options()
        return self

    def parsed_options(self) -> BaseModel:
        """The options, typed and with defaults."""
        return ESTIMATORS.find(self.estimator).options.model_validate(self.options)


def estimate(config: CreditConfig, outcomes: Outcomes, values: Values | None = None) -> Advantages:
    """Advantages by the configured estimator."""
    return ESTIMATORS.find(config.estimator).estimate(outcomes, config.parsed_options(), values)
