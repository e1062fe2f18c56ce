"""The demo's use case: the support use case without some of its queues, written into the demo's own folder.

Everything that differs from ``usecases/support/usecase.yaml`` is here: smaller data, gates at the level that less data
allows, a rollout of minutes instead of hours, and no cool-down. `DIFFERENCES` says so to readers.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.demo.scenario import Drawn, Row, Scenario
from leitstand.files import atomic_path, write_text
from leitstand.usecase import UseCase, load
from models.golden import Golden, write_golden

__all__ = ["DIFFERENCES", "NAME", "admit", "read_rows", "write_case"]

NAME = "support"
GOLDEN_ROWS = 4
SMALL_TEST = 500
"""Rows that a bad candidate is measured on: enough to see that it is bad."""
DIFFERENCES = (
    "profile `quick` throughout: only the head is trained, so a warm start saves nothing",
    "weights served as they were trained (fp32): whether bf16 is as good cannot be told on so few rows",
    "gates at the level that the smaller data allows; no counterfactual probes, which take half of the measuring time",
    "a minute of shadow or none, canary at 20 and 50 %, margins as wide as seconds of traffic can prove",
    "no cool-down between decisions: windows follow each other within seconds",
)


def read_rows(use_case: UseCase) -> list[Row]:
    """All labelled rows of a use case with local files, train first."""
    rows = []
    for uri in (use_case.data.train, use_case.data.test):
        with Path(use_case.resolve(uri)).open(encoding="utf-8", newline="") as file:
            columns = use_case.data.text_column, use_case.data.label_column
            rows += [Row(line[columns[0]], line[columns[1]]) for line in csv.DictReader(file)]
    return rows


def write_case(source: UseCase, folder: Path, drawn: Drawn, scenario: Scenario, *, port: int) -> UseCase:
    """Writes ``usecase.yaml`` and its data below `folder`, and returns the use case."""
    known = set(drawn.known)
    data = folder / "data"
    _write_rows(data / "train.csv", drawn.base)
    test = [row for row in drawn.measured if row.label in known]
    _write_rows(data / "test.csv", test)
    _write_rows(data / "small_test.csv", test[:SMALL_TEST])
    _write_rows(data / "everything.csv", drawn.everything)
    _write_rows(data / "measured.csv", drawn.measured)
    write_text(data / "labels.json", json.dumps(drawn.known, indent=1))
    write_text(data / "all_labels.json", json.dumps(drawn.labels, indent=1))
    golden = _golden(drawn.measured)
    digest = write_golden(golden, data / "golden.csv", text_column="text", label_column="label")
    document = yaml.safe_load((source.folder / "usecase.yaml").read_text(encoding="utf-8"))
    document |= {"name": NAME, "title": f"{source.title} (demo)"}
    document["data"] |= {
        "train": "data/train.csv", "test": "data/test.csv", "labels": "data/labels.json", "label_column": "label",
        "golden": {"file": "data/golden.csv", "digest": digest},
    }  # fmt: skip
    document["data"]["expectations"] |= {"min_rows": 100, "min_rows_per_label": 10}
    document["training"]["default_profile"] = "quick"
    document["evaluation"] = {
        "typo_rate": document["evaluation"]["typo_rate"],
        "bootstrap_samples": 300,
        "label_groups": _groups(document["evaluation"]["label_groups"], drawn),
    }
    document |= _policies(document, scenario)
    document["serving"] |= {"port": port, "precision": "fp32"}
    write_text(folder / "usecase.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return load(folder / "usecase.yaml")


def admit(use_case: UseCase, labels: Sequence[str]) -> UseCase:
    """Writes the labels into ``feedback.approved_labels``, as a person would, and reads the use case again."""
    file = use_case.folder / "usecase.yaml"
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    document["feedback"]["approved_labels"] = sorted(labels)
    write_text(file, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return load(file)


def _policies(document: dict[str, Any], scenario: Scenario) -> dict[str, Any]:
    floor = scenario.min_accuracy
    gates = [
        {"metric": "accuracy", "floor": floor, "champion": {"test": "mcnemar", "margin": 0.02}},
        {"metric": "macro_f1", "floor": floor - 0.02},
        {"metric": "ece", "ceiling": 0.08},
        {"metric": "accuracy", "slice": "golden", "floor": floor - 0.05, "min_examples": 30},
        {"metric": "accuracy", "slice": "typos", "floor": floor - 0.2},
        {"metric": "latency_p99_ms", "ceiling": 1000},
        {"metric": "size_mb", "ceiling": 120},
    ]
    rollout = {
        "approval": "automatic", "shadow_minutes": scenario.shadow_minutes, "canary_percent": [20, 50, 100],
        "step_deadline": "PT4M", "min_requests": 40, "slow_ms": 1500, "on_insufficient": "roll_back",
        "margins": {"errors": 0.05, "slow": 0.1, "doubt": 0.1},
    }  # fmt: skip
    drift = document["drift"] | {"min_window_rows": round(scenario.window * 0.8), "max_retrains_per_week": 5,
        "cool_down": "PT0S"}  # fmt: skip
    feedback = document["feedback"] | {"hold_out": 0.1, "max_source_share": 0.5, "approved_labels": []}
    retraining = {"profile": "quick", "warm_start": True}
    return {"gates": gates, "rollout": rollout, "drift": drift, "feedback": feedback, "retraining": retraining}


def _groups(groups: dict[str, list[str]], drawn: Drawn) -> dict[str, list[str]]:
    """Groups that have a known queue; withheld members count once they are labels."""
    there = set(drawn.labels)
    cut = {name: [label for label in labels if label in there] for name, labels in groups.items()}
    return {name: labels for name, labels in cut.items() if set(labels) & set(drawn.known)}


def _golden(measured: Iterable[Row]) -> Golden:
    """The first rows of every queue."""
    count: dict[str, int] = {}
    chosen = []
    for row in measured:
        count[row.label] = count.get(row.label, 0) + 1
        if count[row.label] <= GOLDEN_ROWS:
            chosen.append(row)
    return Golden([row.text for row in chosen], [row.label for row in chosen])


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row.text, row.label) for row in rows)
