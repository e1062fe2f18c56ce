"""`leitstand env`: the environment in which `prefect`, `bentoml` and `wandb` meet this installation."""

import shlex

import typer

from leitstand.settings import load_settings, quiet_environment

app = typer.Typer(add_completion=False)


@app.command("env")
def env() -> None:
    """Print export lines for a shell: `eval "$(leitstand env)"`."""
    for name, value in quiet_environment(load_settings(), base={}).items():
        typer.echo(f"export {name}={shlex.quote(value)}")
