"""Trains the classifier of prompt injections that the guards carry: `python -m benchmarks.guard_model`.

On the development part of `data/prompt_injections.csv` and, as texts that are no injections, 500 questions of
Banking77's training split. The penalty was chosen by cross-validation on that part; the held-out part is only read by
`benchmarks/guards.py`. Writes `governance/guards/data/injection_model.*`, in seconds.
"""

import csv
import json
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from governance.guards.classifier import BINS, DATA, features

HERE = Path(__file__).parent
BANKING = HERE.parent / "usecases" / "support" / "data" / "train.csv"
PENALTY_C, SEED, ORDINARY = 30.0, 17, 500


def development() -> tuple[list[str], list[int]]:
    """Texts and labels (1: injection)."""
    with (HERE / "data" / "prompt_injections.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "development"]
    with BANKING.open(encoding="utf-8", newline="") as file:
        questions = [row["text"] for row in csv.DictReader(file)]
    chosen = np.random.default_rng(SEED).choice(len(questions), ORDINARY, replace=False)
    texts = [row["text"] for row in rows] + [questions[index] for index in chosen]
    return texts, [int(row["label"]) for row in rows] + [0] * ORDINARY


def matrix(texts: list[str]) -> csr_matrix:
    found = [features(text) for text in texts]
    values = np.concatenate([np.full(len(places), len(places) ** -0.5) for places in found])
    ends = np.cumsum([0] + [len(places) for places in found])
    return csr_matrix((values, np.concatenate(found).astype(int), ends), shape=(len(texts), BINS))


def train() -> dict[str, object]:
    texts, labels = development()
    model = LogisticRegression(C=PENALTY_C, max_iter=2000, class_weight="balanced")
    x, y = matrix(texts), np.asarray(labels)
    folds = StratifiedKFold(5, shuffle=True, random_state=SEED)
    said = cross_val_predict(model, x, y, cv=folds) == 1
    model.fit(x, y)
    np.save(DATA / "injection_model.npy", model.coef_[0].astype(np.float16))
    about = {
        "bias": float(model.intercept_[0]),
        "licence": "Apache-2.0 (texts: deepset prompt-injections, Apache-2.0; Banking77 by PolyAI, CC-BY-4.0)",
        "trained_on": {"injections": int(y.sum()), "other": int(len(y) - y.sum())},
        "penalty_c": PENALTY_C,
        "cross_validated": {"precision": float(y[said].mean()), "recall": float(said[y == 1].mean())},
    }
    (DATA / "injection_model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


if __name__ == "__main__":
    print(json.dumps(train(), indent=2))
