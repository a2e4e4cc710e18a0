"""The learning curve of a run as a PNG: success and valid scripts per step, the stages as bands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BANDS = {"executor": "#dbe9f6", "designer": "#fde8d0", "both": "#e6e6e6"}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One committed step."""

    step: int
    stage: int
    trains: str
    success: float
    valid_scripts: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out evaluation: success with its 95 % interval."""

    step: int
    success: float
    low: float
    high: float


def write_curve(path: Path, points: Sequence[CurvePoint], held_out: Sequence[HeldOut]) -> None:
    """Draw the curve; success on training tasks is of one step's rollouts and so noisy."""
    # Imported here: it takes two seconds, which every other command would pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for first, last, trains in _stages(points):
        axes.axvspan(first - 0.5, last + 0.5, color=_BANDS[trains], lw=0)
        axes.text((first + last) / 2, 1.02, trains, ha="center", va="bottom", fontsize=8, color="#555555")
    steps = [point.step for point in points]
    axes.plot(steps, [point.success for point in points], color="#1f4e79", label="success, training tasks")
    axes.plot(
        steps,
        [point.valid_scripts for point in points],
        color="#b35900",
        lw=1,
        ls="--",
        label="valid scripts",
    )
    axes.errorbar(
        [each.step for each in held_out],
        [each.success for each in held_out],
        yerr=[
            [each.success - each.low for each in held_out],
            [each.high - each.success for each in held_out],
        ],
        fmt="o",
        color="black",
        capsize=4,
        label="success, held-out tasks (95 %)",
    )
    axes.set_ylim(0, 1)
    axes.set_xlabel("step")
    axes.set_ylabel("share")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=140)


def _stages(points: Sequence[CurvePoint]) -> list[tuple[int, int, str]]:
    """(first step, last step, what it trains) of each stage."""
    spans: dict[int, tuple[int, int, str]] = {}
    for point in points:
        first = spans[point.stage][0] if point.stage in spans else point.step
        spans[point.stage] = (first, point.step, point.trains)
    return list(spans.values())
