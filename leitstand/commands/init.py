"""`leitstand init NAME`: a folder below ``usecases/`` that runs as it is."""

import csv
import json
import shutil
from pathlib import Path

import typer

from leitstand.errors import ConfigurationError, ConflictError, NotFoundError
from leitstand.files import atomic_dir, write_text
from leitstand.pages import TEMPLATES
from leitstand.settings import load_settings
from leitstand.usecase import NAME_PATTERN, load, names

app = typer.Typer(add_completion=False)

SAMPLE_LABELS = 8
SAMPLE_SPLITS = ("train", "test")


@app.command("init")
def init(
    name: str = typer.Argument(help="Lower-case letters, digits and _"),
    train: Path | None = typer.Option(None, help="CSV file with labelled texts; a sample of Banking77 without it"),
    test: Path | None = typer.Option(None, help="CSV file with other labelled texts; never used to choose anything"),
    text_column: str = typer.Option("text", help="Column of the texts"),
    label_column: str = typer.Option("label", help="Column of the labels"),
    owner: str = typer.Option("unnamed-team", help="Who answers for this use case"),
) -> None:
    """Writes a new use case that runs: `leitstand run NAME`."""
    import re

    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigurationError(f"'{name}' is no name for a use case", hint="use lower-case letters, digits and _")
    if (train is None) != (test is None):
        raise ConfigurationError("--train and --test come together", hint="give both, or neither for a sample")
    settings = load_settings()
    folder = settings.usecases / name
    if folder.exists():
        raise ConflictError(f"{folder} exists already", hint="choose another name, or edit the use case there")
    with atomic_dir(folder) as part:
        (part / "data").mkdir()
        if train and test:
            facts = _own_data(part / "data", train, test, text_column, label_column)
        else:
            facts = _sample(part / "data", settings.usecases / "support" / "data")
        used = [load(settings.usecases / other / "usecase.yaml").serving.port for other in names(settings.usecases)]
        facts |= {"name": name, "title": name.replace("_", " ").capitalize(), "owner": owner}
        write_text(part / "usecase.yaml", _render(**facts, port=max(used, default=2999) + 1))
        write_text(part / "prefect.yaml", _deployments(name))
        load(part / "usecase.yaml")
    typer.echo(folder / "usecase.yaml")
    typer.echo(f"Wrote {folder}; run it with `leitstand run {name}`", err=True)


def _render(**values: object) -> str:
    import jinja2

    # No HTML escaping: the template is YAML, and every value is written as JSON.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    template = environment.from_string((TEMPLATES / "usecase.yaml").read_text(encoding="utf-8"))
    return template.render({key: json.dumps(value, ensure_ascii=False) for key, value in values.items()})


def _deployments(name: str) -> str:
    """The project's Prefect deployments, for another use case."""
    source = Path("prefect.yaml")
    if not source.is_file():
        raise NotFoundError("No prefect.yaml in this folder", hint="run `leitstand init` in the project's root")
    lines = source.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.replace("support", name) for line in lines) + "\n"


def _own_data(data: Path, train: Path, test: Path, text_column: str, label_column: str) -> dict[str, object]:
    labels: set[str] = set()
    for split, source in (("train", train), ("test", test)):
        if not source.is_file():
            raise NotFoundError(f"--{split} {source} does not exist")
        with source.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for column in (text_column, label_column):
                if column not in (reader.fieldnames or ()):
                    raise ConfigurationError(
                        f"{source} has no column '{column}'",
                        hint=f"it has: {', '.join(reader.fieldnames or ())}; see --text-column and --label-column",
                    )
            if split == "train":
                labels = {row[label_column] for row in reader if row[label_column]}
        shutil.copy(source, data / f"{split}.csv")
    write_text(data / "labels.json", json.dumps(sorted(labels), indent=1))
    return _facts("Routes texts to labels.", text_column, label_column, "unknown", "", 2 * len(labels))


def _sample(data: Path, source: Path) -> dict[str, object]:
    """A few labels of Banking77, with its licence."""
    labels = sorted(json.loads((source / "categories.json").read_text(encoding="utf-8")))[:SAMPLE_LABELS]
    for split in SAMPLE_SPLITS:
        with (source / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = [(row["text"], row["category"]) for row in csv.DictReader(file) if row["category"] in labels]
        with (data / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    write_text(data / "labels.json", json.dumps(labels, indent=1))
    for file_name in ("LICENSE", "README.md"):
        shutil.copy(source / file_name, data / file_name)
    attribution = f"Banking77 by PolyAI (Casanueva et al. 2020), {len(labels)} of its 77 labels"
    return _facts("Routes a banking question to a queue.", "text", "label", "CC-BY-4.0", attribution, 100)


def _facts(
    description: str, text_column: str, label_column: str, licence: str, attribution: str, min_rows: int
) -> dict[str, object]:
    return {
        "description": description, "text_column": text_column, "label_column": label_column, "licence": licence,
        "attribution": attribution, "min_rows": min_rows, "train": "data/train.csv", "test": "data/test.csv",
    }  # fmt: skip
