"""Retraining on feedback, on Banking77: withhold some queues, train, let agents label them, retrain, judge.

    python -m benchmarks.retraining --profile quick --rows 60 --out benchmarks/results/retraining.json

The champion is trained without `--withheld` queues. Then four agents label questions of these queues (2 % wrong)
and of the known ones, and one more labels at random. Measured: the time of each stage, who was quarantined,
accuracy of champion and candidate on the test rows of known and of withheld queues, beside a model that was
trained with all rows from the start, and what the gates on accuracy say.
"""

import argparse
import csv
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from benchmarks.machine import describe
from leitstand.settings import S3Settings
from leitstand.types import RunRecord, Snapshot, utc_now
from leitstand.usecase import UseCase, load
from models.data import ingest
from models.evaluation import Samples, evaluate
from models.feedback import FeedbackRow
from models.gates import decide
from models.loading import open_classifier
from models.retraining import FeedbackReport, build_retraining_snapshot
from models.snapshots import load_split
from models.training import train
from tests.fakes import InMemoryTracker

SUPPORT = Path("usecases/support")
START = datetime(2026, 11, 1, tzinfo=UTC)
KNOWN_ROWS = 300
SMALL = Samples(pii=50, robustness=50, counterfactual_texts=5, counterfactual_sentences=75, latency_calls=50)


def read(name: str) -> list[tuple[str, str]]:
    with (SUPPORT / "data" / name).open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *rows])


def world(folder: Path, labels: list[str], rows: list[tuple[str, str]]) -> UseCase:
    """The support use case with these labels and training rows, and the test rows of these labels."""
    folder.mkdir(parents=True)
    write(folder / "train.csv", rows)
    write(folder / "test.csv", [row for row in read("test.csv") if row[1] in labels])
    case = load(SUPPORT / "usecase.yaml")
    limits = case.data.expectations.model_copy(update={"min_rows": 500, "min_rows_per_label": 5})
    data = case.data.model_copy(
        update={"train": str(folder / "train.csv"), "test": str(folder / "test.csv"), "labels": tuple(labels),
            "expectations": limits}
    )  # fmt: skip
    feedback = case.feedback.model_copy(update={"new_labels": "allow"})
    return case.model_copy(update={"data": data, "feedback": feedback})


def agents(rows: list[tuple[str, str]], labels: list[str], random: np.random.Generator) -> list[FeedbackRow]:
    found = []
    for number, place in enumerate(random.permutation(len(rows))):
        text, label = rows[place]
        source = "mallory" if number % 10 == 9 else f"agent{number % 4}"
        if source == "mallory" or random.random() < 0.02:
            label = str(random.choice(labels))
        found.append(FeedbackRow(text, label, source, START + timedelta(minutes=10 * number), f"r{number}"))
    return found


def accuracy(model: RunRecord, rows: list[tuple[str, str]]) -> float:
    predicted = open_classifier(model.model_dir).predict([text for text, _ in rows]).labels
    return float(np.mean([a == b for a, (_, b) in zip(predicted, rows, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="quick", help="of the champion")
    parser.add_argument("--retrain", default="quick", help="profile of the retraining")
    parser.add_argument("--withheld", type=int, default=12)
    parser.add_argument("--rows", type=int, default=60, help="feedback rows of each withheld queue")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    home, seconds = Path(mkdtemp(prefix="leitstand-retraining-")), {}
    source, test = read("train.csv"), read("test.csv")
    everything = sorted({label for _, label in test})
    withheld = sorted(random.choice(everything, given.withheld, replace=False).tolist())
    known = [label for label in everything if label not in withheld]
    rows = [source[place] for place in random.permutation(len(source))]
    old = [row for row in rows if row[1] in known]
    base_rows, more = old[KNOWN_ROWS:], old[:KNOWN_ROWS]
    new = [row for label in withheld for row in [r for r in rows if r[1] == label][: given.rows]]
    case = world(home / "before", known, base_rows)
    whole = world(home / "whole", everything, [*base_rows, *more, *new])
    s3 = S3Settings()

    def timed(name: str, work):
        started = time.monotonic()
        result = work()
        seconds[name] = round(time.monotonic() - started, 1)
        print(name, seconds[name], "s", flush=True)
        return result

    def fit(use_case: UseCase, snapshot: Snapshot, profile: str, warm_start: Path | None = None) -> RunRecord:
        return train(
            use_case, snapshot, profile=profile, home=home, tracker=InMemoryTracker(), commit="benchmark", s3=s3,
            progress=lambda *_: None, warm_start=warm_start,
        )  # fmt: skip

    base = ingest(case, home=home / "before", s3=s3)
    champion = timed("champion", lambda: fit(case, base, given.profile))
    feedback = agents([*more, *new], everything, random)
    snapshot = timed("snapshot", lambda: build_retraining_snapshot(case, base, feedback, home=home, s3=s3))
    candidate = timed("retraining", lambda: fit(case, snapshot, given.retrain, champion.model_dir))
    ideal = timed("all rows", lambda: fit(whole, ingest(whole, home=home / "whole", s3=s3), given.profile))
    parts = {
        "known": [r for r in test if r[1] in known],
        "withheld": [r for r in test if r[1] in withheld],
        "all": test,
    }
    models = {"champion": champion, "candidate": candidate, "all rows": ideal}
    accuracies = {name: {part: round(accuracy(model, chosen), 4) for part, chosen in parts.items()}
        for name, model in models.items()}  # fmt: skip
    theirs = evaluate(case, snapshot, champion.model_dir, out=home / "e1", samples=SMALL, other_labels=True)
    mine = timed("evaluation", lambda: evaluate(case, snapshot, candidate.model_dir, out=home / "e2", samples=SMALL))
    gates = [
        gate
        for gate in case.gates
        if gate.metric in ("accuracy", "macro_f1") and not (gate.slice or "").startswith("p")
    ]
    verdict = decide(case.model_copy(update={"gates": tuple(gates)}), mine, champion=theirs, now=utc_now())
    report = FeedbackReport.model_validate_json(Path(str(snapshot.feedback_report)).read_bytes())
    result = {
        "machine": describe(), "arguments": {k: str(v) for k, v in vars(given).items()},
        "withheld": withheld, "seconds": seconds, "accuracy": accuracies,
        "train_rows": len(load_split(snapshot, "train").texts), "feedback": report.model_dump(mode="json"),
        "gates": {r.gate: [str(r.outcome), r.value, r.reason] for r in verdict.results},
    }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(accuracies, indent=1))
    for gate in verdict.results:
        print(gate.outcome, gate.gate, gate.reason)


if __name__ == "__main__":
    main()
