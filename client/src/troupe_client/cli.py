"""The `troupe` command: local services, single questions, evaluations, training runs, and what they left.

Every command talks gRPC to the orchestrator's public services. One that needs services uses those of
`--target`, or of the state folder's supervisor, or starts its own and stops them when it ends.
"""

from typing import Final

import typer

from troupe_client import cli_jobs, cli_records, cli_services
from troupe_client.quickstart import quickstart

app: Final = typer.Typer(
    name="troupe",
    help="Trains a designer and an executor of multi-agent systems, and uses them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    quickstart,
    cli_services.up,
    cli_services.down,
    cli_services.status,
    cli_jobs.solve,
    cli_jobs.evaluate,
    cli_jobs.train,
    cli_records.trace,
    cli_records.runs,
    cli_records.cancel,
    cli_records.config,
):
    app.command(name="eval" if command is cli_jobs.evaluate else None)(command)


def main() -> None:
    """Runs the command line."""
    app()
