"""Writes the reference pages that follow from code: `python docs/generate.py` (`--check` only compares)."""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from leitstand import cli
from leitstand.settings import Settings
from leitstand.usecase import UseCase
from services import gateway_metrics
from services import metrics as bento_metrics

REFERENCE = Path(__file__).parent / "reference"
SHOWN: set[tuple[type[BaseModel], str]] = set()
NOTE = "<!-- Written by docs/generate.py; edit the code instead. -->\n"


def use_case_page() -> str:
    """Every key of `usecase.yaml`."""
    SHOWN.clear()
    intro = (
        "# The use-case file\n\n"
        "One `usecases/NAME/usecase.yaml` describes a use case completely. Unknown keys are errors.\n"
    )
    return NOTE + intro + "".join(_tables(UseCase, "", ""))


def settings_page() -> str:
    """Every environment variable."""
    intro = (
        "# Settings\n\nRead from the environment and from a `.env` file in the working directory. "
        "Nothing else reads the environment.\n"
    )
    return NOTE + intro + "".join(_tables(Settings, "LEITSTAND_", "__"))


def metrics_page() -> str:
    """Every metric of the gateway and of a Bento."""
    parts = [
        "# Metrics\n\nWhat `/metrics` exposes, in the text format of Prometheus. Counters are seen as `NAME_total`, "
        "histograms as `NAME_bucket`, `_sum` and `_count`, and all keep counting until the process ends.\n\n"
        "Labels take few values: what a client may choose freely, a path or the name of a use case, becomes none. "
        "`use_case` is a use case with routes, or empty; `version`, `route` and `upstream` stand in route tables; "
        "`reason` and `outcome` are words of the code or of a rule's list.\n"
    ]
    for title, module in (("The gateway", gateway_metrics), ("A model Bento", bento_metrics)):
        metrics = [value for value in vars(module).values() if isinstance(value, MetricWrapperBase)]
        parts.append(f"\n## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n")
        for metric in sorted(metrics, key=lambda each: each.describe()[0].name):
            family = metric.describe()[0]
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            parts.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |\n")
    return NOTE + "".join(parts)


def cli_page() -> str:
    """The help of every command."""
    runner = CliRunner()
    parts = [NOTE, "# Command line\n\n", _help(runner, [])]
    for name in cli.COMMANDS:
        parts.append(f"\n## leitstand {name}\n\n" + _help(runner, [name]))
        command: Any = cli.LazyGroup.get_command(typing.cast(Any, None), typing.cast(Any, None), name)
        for child in getattr(command, "commands", {}):
            parts.append(f"\n### leitstand {name} {child}\n\n" + _help(runner, [name, child]))
    return "".join(parts)


def _help(runner: CliRunner, command: list[str]) -> str:
    sys.argv = ["leitstand", *command, "--help"]
    done = runner.invoke(cli.app, [*command, "--help"], prog_name="leitstand", env={"COLUMNS": "100", "TERM": "dumb"})
    if done.exit_code:
        raise SystemExit(f"leitstand {' '.join(command)} --help failed: {done.output}\n{done.exception}")
    return "```\n" + "\n".join(line.rstrip() for line in done.stdout.strip().splitlines()) + "\n```\n"


def _tables(model: type[BaseModel], prefix: str, joiner: str) -> Iterator[str]:
    rows, nested = [], []
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        key = prefix + (name.upper() if joiner else name)
        inner = _model_in(field.annotation)
        if variants := _variants(field.annotation):
            listed = f"{field.description}: {', '.join(variants)}"
            rows.append(f"| `{key}` | list of rules | `{_plain(field.default)}` | {listed} |\n")
            described = {(each, f"rule {tag}: "): None for tag, each in variants.items()}
            nested += [pair for pair in described if pair not in SHOWN]
            SHOWN.update(described)
            continue
        if inner:
            nested.append((inner, key + (joiner or _part(field.annotation))))
            continue
        missing = field.default is PydanticUndefined and field.default_factory is None
        default = "required" if missing else f"`{_plain(field.get_default(call_default_factory=True))}`"
        rows.append(f"| `{key}` | {_type(field.annotation)} | {default} | {field.description or ''} |\n")
    if rows:
        title = prefix.rstrip("._: ") or "Top level"
        doc = (model.__doc__ or "").strip().splitlines()
        yield f"\n## {title}\n\n" + (doc[0] + "\n\n" if doc else "")
        yield "| key | type | default | meaning |\n|---|---|---|---|\n" + "".join(rows)
    for inner, key in nested:
        yield from _tables(inner, key, joiner)


def _variants(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models of a list of tagged ones, by tag; each is described once."""
    for inner in _arguments(annotation):
        models = [c for union in _arguments(inner) for c in _arguments(union) if isinstance(c, type)]
        if models and all(issubclass(model, BaseModel) for model in models):
            return {_arguments(model.model_fields["rule"].annotation)[0]: model for model in models}
    return {}


def _plain(value: object) -> str:
    text = ", ".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
    return text or "(empty)"


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation)


def _part(annotation: Any) -> str:
    """How a key continues below a field that holds one record, many in a list, or many by name."""
    return {tuple: "[].", list: "[].", dict: ".NAME."}.get(typing.get_origin(annotation), ".")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *_arguments(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" for argument in _arguments(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in _arguments(annotation))
    if origin is tuple:
        return f"list of {_type(_arguments(annotation)[0])}"
    if origin is dict:
        return f"map to {_type(_arguments(annotation)[1])}"
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


PAGES = {"use-case.md": use_case_page, "settings.md": settings_page, "cli.md": cli_page, "metrics.md": metrics_page}

if __name__ == "__main__":
    stale = []
    for file_name, page in PAGES.items():
        path, text = REFERENCE / file_name, page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(file_name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"{'Stale' if '--check' in sys.argv else 'Wrote'}: {', '.join(stale)}\n")
    sys.exit(1 if stale and "--check" in sys.argv else 0)
