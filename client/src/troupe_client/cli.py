"""The `troupe` command: local services, single questions, evaluations, training runs, and what they left.

Every command talks gRPC to the orchestrator's public services. One that needs services uses those of
`--target`, or of the state folder's supervisor, or starts its own and stops them when it ends.
"""

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from troupe_contracts.identity import assume, read_identity
from troupe_contracts.tokens import CredentialError
from typer.core import TyperGroup

from troupe_client import (
    cli_doctor,
    cli_eval,
    cli_jobs,
    cli_kubernetes,
    cli_records,
    cli_runs,
    cli_services,
    frame,
)
from troupe_client.kubernetes.place import ClusterPlace, choose
from troupe_client.quickstart import quickstart


class Commands(TyperGroup):
    """All commands; what is no text is refused before any of them sees it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError as error:
                raise typer.BadParameter(f"{argument!r:.80} is not UTF-8 text") from error
        return super().parse_args(ctx, args)


app: Final = typer.Typer(
    name="troupe",
    cls=Commands,
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
    cli_eval.evaluate,
    cli_jobs.train,
    cli_records.trace,
    cli_records.config,
    cli_doctor.doctor,
):
    app.command(name="eval" if command is cli_eval.evaluate else None)(command)
app.add_typer(cli_runs.runs_app)
app.add_typer(cli_kubernetes.k8s_app)


@app.callback()
def credentials(
    token_file: Annotated[
        Path | None, typer.Option(envvar="TROUPE_TOKEN_FILE", help="File with the token to show at --target.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="TROUPE_TLS_CA", help="PEM file of the authority that --target must have.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="TROUPE_TLS_CERT", help="PEM file of a certificate to show at --target.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="TROUPE_TLS_KEY", help="PEM file of that certificate's key.")
    ] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(envvar="TROUPE_TLS_SERVER_NAME", help="Name in --target's certificate, if not its host."),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context of the kubeconfig: use the deployment on that cluster.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Namespace of the deployment, if not the context's own.")
    ] = None,
) -> None:
    """What every command shows at `--target`, and where its services are if not on this machine."""
    choose(None if context is None and namespace is None else ClusterPlace(context, namespace))
    try:
        assume(read_identity(token_file, tls_ca, tls_cert, tls_key, tls_server_name))
    except CredentialError as error:
        frame.fail(str(error))


def main() -> None:
    """Runs the command line."""
    app()
