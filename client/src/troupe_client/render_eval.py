"""`troupe eval` on the terminal: a bar over the items, then tables of success by family and of the patterns
used."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from troupe.v1 import common_pb2, evaluation_pb2

from troupe_client.render_text import interval, percent, plain


def show_dataset_errors(console: Console, job: evaluation_pb2.EvalJob) -> None:
    """Each line of the file that could not be used."""
    for error in job.dataset_errors:
        console.print(plain(f"{error.file}:{error.line}: {error.message}", "yellow"))


def show_summary(console: Console, job: evaluation_pb2.EvalJob) -> None:
    """What came out."""
    summary = job.summary
    console.print(totals(job))
    if len(summary.groups) > 1:
        console.print(families(summary.groups))
    if any(group.patterns for group in summary.groups):
        console.print(patterns(summary.groups))


def totals(job: evaluation_pb2.EvalJob) -> Table:
    """The job in one table; intervals are 95 %, by bootstrap over problems."""
    summary = job.summary
    table = Table(title=f"{job.dataset_name}: {job.problems} problems × {job.samples}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("success", interval(summary.success, summary.success_low, summary.success_high))
    table.add_row("valid scripts", percent(summary.valid_scripts))
    table.add_row("parseable answers", percent(summary.parseable))
    table.add_row("success among parseable", percent(summary.success_parseable))
    table.add_row("generated tokens", f"{summary.generated_tokens:,}")
    table.add_row("tokens per second", f"{summary.generated_tokens / max(summary.seconds, 1e-9):,.0f}")
    table.add_row("seconds", f"{summary.seconds:.1f}")
    if summary.faults:
        table.add_row("left out: infrastructure faults", str(summary.faults), style="yellow")
    table.add_row("designer", version(job.designer_version))
    table.add_row("executor", version(job.executor_version))
    return table


def families(groups: Iterable[evaluation_pb2.EvalGroup]) -> Table:
    """Success of each family."""
    table = Table("family", title="by family")
    for heading in ("problems", "success", "parseable", "success among parseable"):
        table.add_column(heading, justify="right")
    for group in groups:
        table.add_row(
            plain(group.family),
            str(group.problems),
            interval(group.success, group.success_low, group.success_high),
            percent(group.parseable),
            percent(group.success_parseable),
        )
    return table


def patterns(groups: Iterable[evaluation_pb2.EvalGroup]) -> Table:
    """How often each executed workflow pattern occurred in each family, and how often it succeeded."""
    groups = list(groups)
    names = sorted({name for group in groups for name in group.patterns})
    table = Table("family", title="executed patterns (share of executions, success among them)")
    for name in names:
        table.add_column(plain(name), justify="right")
    for group in groups:
        total = sum(group.patterns.values())
        cells = [_pattern_cell(group, name, total) for name in names]
        table.add_row(plain(group.family), *cells)
    return table


def version(policy: common_pb2.PolicyVersion) -> str:
    """A policy version as people write it."""
    return f"{policy.lineage or '?'}:{policy.number}"


def _pattern_cell(group: evaluation_pb2.EvalGroup, name: str, total: int) -> str:
    count = group.patterns.get(name, 0)
    if not count:
        return "–"
    success = group.pattern_successes.get(name, 0) / count
    # Joined by no-break spaces: a cell stays on one line.
    return f"{100 * count / total:.0f} %\u00a0· {100 * success:.0f} %".replace(" ", "\u00a0")
