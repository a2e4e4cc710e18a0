"""`troupe eval` on the terminal: a bar over the items, then tables of success by family and of the patterns
used."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from troupe.v1 import common_pb2, evaluation_pb2

from troupe_client.eval_target import describe_target
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
    table.add_row("tokens of an item", f"{summary.generated_tokens / max(1, job.items_total - summary.faults):,.1f}")
    table.add_row("tokens per second", f"{summary.generated_tokens / max(summary.seconds, 1e-9):,.0f}")
    table.add_row("seconds", f"{summary.seconds:.1f}")
    if job.votes:
        like = f", the tokens of {job.equal_tokens.system_job}" if job.HasField("equal_tokens") else ""
        table.add_row("votes of an item", plain(f"{job.votes:.4g}{like}"))
    if summary.faults:
        left = f"{summary.faults} of {job.items_total}, coverage {percent(summary.coverage)}"
        table.add_row("left out: infrastructure faults", left, style="yellow")
    if job.HasField("designer_version"):
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


def state(job: evaluation_pb2.EvalJob) -> str:
    """A job's state as people write it."""
    return evaluation_pb2.EvalState.Name(job.state).removeprefix("EVAL_STATE_").lower()


def jobs(listed: Iterable[evaluation_pb2.EvalJob]) -> Table:
    """One row for each job."""
    table = Table("job", "state", "items", "success", "of", "data set", "reason")
    for job in listed:
        success = interval(job.summary.success, job.summary.success_low, job.summary.success_high)
        faulted = f", {job.items_faulted} faulted" if job.items_faulted else ""
        table.add_row(
            plain(job.job_id),
            state(job),
            f"{job.items_done} of {job.items_total}{faulted}",
            success if job.HasField("summary") else "–",
            plain(describe_target(job.target)),
            plain(job.dataset_name),
            plain(job.reason),
        )
    return table


def items(listed: Iterable[evaluation_pb2.EvalItem]) -> Table:
    """One row for each finished item."""
    table = Table("problem", "sample", "success", "status", "answer", "pattern", "tokens", "execution", "reason")
    for item in listed:
        table.add_row(
            plain(item.problem_id),
            str(item.sample),
            "yes" if item.success else "no",
            item.status,
            plain(item.answer.replace("\n", " ")[:40]),
            item.pattern,
            f"{item.generated_tokens:,}",
            item.execution_id,
            plain(item.reason.replace("\n", " ")[:80]),
        )
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
