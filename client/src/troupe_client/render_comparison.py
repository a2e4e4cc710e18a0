"""Before and after: two eval jobs on the same held-out problems side by side, and the four of cross-play in a table."""

from rich.console import Console
from rich.table import Table
from troupe.v1 import evaluation_pb2

from troupe_client.cross_play import SIDES, Cells
from troupe_client.render_eval import patterns, version
from troupe_client.render_text import interval, percent, plain


def show_comparison(console: Console, before: evaluation_pb2.EvalJob, after: evaluation_pb2.EvalJob) -> None:
    """Success, validity and parseability, then families, then which patterns the designer picks."""
    console.print(_totals(before.summary, after.summary))
    console.print(_families(before.summary, after.summary))
    for name, job in (("before", before), ("after", after)):
        table = patterns(job.summary.groups)
        table.title = f"{name}: executed patterns (share of executions, success among them)"
        console.print(table)


def cross_table(cells: Cells) -> Table:
    """Success of each designer with each executor."""
    job = cells["after", "after"]
    table = Table("", title=f"{job.dataset_name}: {job.problems} problems × {job.samples}, success")
    table.caption = "95 % by bootstrap over problems"
    for side in SIDES:
        table.add_column(f"executor {side}\n{version(cells[side, side].executor_version)}", justify="right")
    for designer in SIDES:
        summaries = [cells[designer, executor].summary for executor in SIDES]
        table.add_row(
            f"designer {designer}\n{version(cells[designer, designer].designer_version)}",
            *(interval(each.success, each.success_low, each.success_high) for each in summaries),
        )
    return table


def _totals(before: evaluation_pb2.EvalSummary, after: evaluation_pb2.EvalSummary) -> Table:
    table = Table("held-out tasks", title="before and after training (95 % by bootstrap over problems)")
    for heading in ("before", "after", "points"):
        table.add_column(heading, justify="right")
    table.add_row(
        "success",
        interval(before.success, before.success_low, before.success_high),
        interval(after.success, after.success_low, after.success_high),
        _points(before.success, after.success),
        style="bold",
    )
    for label, name in (
        ("valid scripts", "valid_scripts"),
        ("parseable answers", "parseable"),
        ("success among parseable", "success_parseable"),
    ):
        first, last = getattr(before, name), getattr(after, name)
        table.add_row(label, percent(first), percent(last), _points(first, last))
    if before.faults or after.faults:
        table.add_row("left out: infrastructure faults", str(before.faults), str(after.faults), "", style="yellow")
    return table


def _families(before: evaluation_pb2.EvalSummary, after: evaluation_pb2.EvalSummary) -> Table:
    table = Table("family", title="by family")
    for heading in ("problems", "before", "after", "points"):
        table.add_column(heading, justify="right")
    firsts = {group.family: group for group in before.groups}
    for last in after.groups:
        first = firsts[last.family]
        table.add_row(
            plain(last.family),
            str(last.problems),
            interval(first.success, first.success_low, first.success_high),
            interval(last.success, last.success_low, last.success_high),
            _points(first.success, last.success),
        )
    return table


def _points(before: float, after: float) -> str:
    return f"{100 * (after - before):+.1f}"
