"""``streammon drift``: what models are held against."""

from __future__ import annotations

import typer

from streammon.cli.base import app

drift_app = typer.Typer(help="Drift of models: what they are held against.", no_args_is_help=True)
app.add_typer(drift_app, name="drift")
