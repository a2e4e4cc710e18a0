"""`troupe k8s`: what there is to do with the manifests beside applying them."""

from pathlib import Path
from typing import Annotated, Final

import typer

from troupe_client import frame
from troupe_client.kubernetes.overlays import RenderError, overlay_folder, render

k8s_app: Final = typer.Typer(
    name="k8s", help="The manifests of a deployment.", no_args_is_help=True, pretty_exceptions_enable=False
)


@k8s_app.callback()
def k8s() -> None:
    """The manifests of a deployment."""


@k8s_app.command("render")
def render_overlay(
    overlay: Annotated[
        str, typer.Argument(help="local, node-8gpu, cluster, …, or a folder with a kustomization.yaml.")
    ],
    checkout: Annotated[Path, typer.Option(help="Checkout that has k8s/overlays.")] = Path(),
) -> None:
    """Print all that `kubectl apply -k` would send, as YAML."""
    try:
        typer.echo(render(overlay_folder(overlay, checkout)), nl=False)
    except RenderError as error:
        frame.fail(str(error))
