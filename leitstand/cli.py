"""The `leitstand` command. Subcommands are imported when called, so that `--help` answers at once.

Data goes to stdout, messages to stderr. Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 a gate or
policy said no, 4 insufficient evidence, 5 the data set is not valid.
"""

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from leitstand import __version__
from leitstand.errors import LeitstandError

__all__ = ["app", "main"]

# name: (module below leitstand.commands, help line). The help stands here so that listing imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("local", "Start everything on this machine: Prefect, a worker, the gateway, the deployed Bentos."),
    "down": ("local", "Stop what `up` started."),
    "status": ("local", "Show what runs, where, and whether it is ready."),
    "doctor": ("doctor", "Check this installation and say how to mend what is wrong."),
    "demo": ("demo", "Show the whole loop on real data in ten minutes: drift, retraining, canary, promotion."),
    "env": ("env", "Print export lines, so that `prefect` and `bentoml` meet this installation."),
    "init": ("init", "Write a new use case that runs."),
    "run": ("run", "Run the lifecycle of a use case in this process: data, training, gates, registry, Bento."),
    "data": ("data", "Ingest and validate data sets."),
    "label": ("label", "Say what is right about logged answers, in the terminal or by CSV."),
    "runs": ("runs", "List, compare and sync training runs."),
    "models": ("models", "List, show, promote and verify registered model versions."),
    "rollout": ("rollout", "Bring a version into traffic: shadow, canary steps, promotion or rollback."),
    "gateway": ("gateway", "Run the gateway, which routes requests to model versions."),
    "worker": ("worker", "Answer the jobs of the request queue."),
    "jobs": ("jobs", "List, show, cancel and replay the jobs of the request queue."),
    "routes": ("routes", "Show and change who answers a use case."),
    "budgets": ("budgets", "Show what is used of each limit, and grant exceptions for a day."),
    "token": ("token", "Issue tokens of the built-in issuer, for this machine only."),
    "keys": ("keys", "Create, list, rotate and revoke API keys."),
    "guards": ("guards", "Show a use case's guards, try them on a text, list what awaits a person."),
    "package": ("package", "Build a Bento from a registered version."),
    "predict": ("predict", "Send texts to a served Bento and print the answers."),
    "bundle": ("bundle", "Move Bentos and versions through S3 or a folder."),
    "drift": ("drift", "Judge windows of traffic, and see what was judged and decided."),
    "retrain": ("retrain", "Train a challenger on base and labelled feedback, and start its rollout."),
    "audit": ("audit", "Verify, show, export, anchor and prune the audit trail; erase a subject; bundle evidence."),
    "explain": ("explain", "Walk from a request to its model version, data, code, run, gates and approver."),
    "replay": ("replay", "Run a recorded input again on the version that answered it."),
    "checks": ("checks", "Run the nightly checks by hand; list and restore backups of the state."),
    "reports": ("reports", "List drift reports, find their pages, show their history."),
}


class LazyGroup(TyperGroup):
    """Lists subcommands without importing them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The help lines of `COMMANDS`."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports the module of a command and returns the command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"leitstand.commands.{COMMANDS[cmd_name][0]}")
        module.app.rich_markup_mode = None  # plain help: the same text in a terminal, a pipe and the docs
        command: Any = typer.main.get_command(module.app)
        if cmd_name in getattr(command, "commands", {}):
            command = command.commands[cmd_name]
        command.name = cmd_name
        command.help = command.help or COMMANDS[cmd_name][1]
        return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Runs language models responsibly in production: data to served model, and back."""


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command and maps errors to exit codes; a known error prints no traceback."""
    try:
        app(args=arguments)
    except LeitstandError as error:
        typer.secho(f"Error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
