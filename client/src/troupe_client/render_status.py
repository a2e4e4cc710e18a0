"""`troupe status` and `troupe runs` on the terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from rich.table import Table
from troupe.v1 import training_pb2

from troupe_client.probe import Report
from troupe_client.render_runs import byte_size, state_name
from troupe_client.render_text import plain

if TYPE_CHECKING:
    from troupe_client.kubernetes.overview import PodReport

_POD_STYLES: Final = {"ready": "green", "done": "dim", "ending": "dim", "not ready": "yellow"}
_HEALTH_STYLES: Final = {"serving": "green", "starting": "yellow"}


def services(reports: Iterable[Report]) -> Table:
    """A row for each service: where it is, what it serves, how much of it is in use."""
    table = Table("service", "health", "", show_lines=True)
    for report in reports:
        where = f"{report.target or 'not serving yet'}, process {report.pid}"
        health = report.health.replace("_", " ")
        table.add_row(
            report.service,
            plain(health, _HEALTH_STYLES.get(report.health, "red")),
            plain("\n".join(filter(None, (where, report.serves, report.capacity, report.restarts)))),
        )
    return table


def pods(reports: Iterable["PodReport"]) -> Table:
    """A row for each pod: where it is, what it serves, or why it does not."""
    table = Table("service", "pod", "health", "restarts", "")
    for report in reports:
        remedy = f"→ {report.remedy}" if report.remedy else ""
        table.add_row(
            plain(report.service),
            plain("\n".join(filter(None, (report.pod, report.node and f"on {report.node}")))),
            plain(report.health, _POD_STYLES.get(report.health, "red")),
            str(report.restarts or ""),
            plain("\n".join(filter(None, (report.text, report.capacity, remedy)))),
        )
    return table


def runs(found: Iterable[training_pb2.Run]) -> Table:
    """A row for each run, newest first."""
    table = Table("run", "state", "steps", "started", "disk", "folder", "reason")
    for run in found:
        disk = run.disk_bytes
        table.add_row(
            plain(run.run_id),
            state_name(run.state),
            f"{run.committed_steps} of {run.total_steps}",
            run.create_time.ToDatetime().isoformat(" ", "seconds") + " UTC",
            byte_size(disk.trees + disk.batches + disk.checkpoints + disk.journal),
            plain(run.folder),
            plain(run.reason),
        )
    return table


def config_entries(entries: Iterable[training_pb2.ConfigEntry]) -> Table:
    """A row for each key of an effective config."""
    table = Table("key", "value", "origin")
    for entry in entries:
        table.add_row(
            plain(entry.key), plain(entry.value), plain(entry.origin, "dim" if entry.origin == "default" else "")
        )
    return table
