"""Chooses training parameters on a split of the training rows; the test split is never read.

    python -m benchmarks.hyperparameters --list
    python -m benchmarks.hyperparameters full-lr1e-4 quick-l2-0.001

Each candidate trains on nine tenths of the training rows and is judged on the rest, by accuracy and by the
calibrated negative log likelihood, which tells candidates apart with fewer rows. Results are added to
``benchmarks/results/hyperparameters.json``, with machine and versions.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from leitstand import usecase
from leitstand.files import canonical_json, write_text
from leitstand.settings import S3Settings
from leitstand.usecase import UseCase
from models.data import ingest
from models.training import train
from tests.fakes import InMemoryTracker

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "hyperparameters.json"

_FULL = {
    "method": "finetune", "epochs": 4, "batch_size": 32, "learning_rate": 1e-4, "head_learning_rate": 1e-3,
    "label_smoothing": 0.1,
}  # fmt: skip
_LP_FT = _FULL | {"head_init": "frozen", "l2": 1e-3, "head_learning_rate": 5e-4}
_QUICK = {"method": "frozen", "epochs": 200}
CANDIDATES: dict[str, dict[str, Any]] = {
    "full-lr2e-4-frozen-head": _LP_FT | {"learning_rate": 2e-4, "head_learning_rate": 2e-3},
    "full-lr1e-4-frozen-head-7-epochs": _LP_FT | {"layer_decay": 0.95, "epochs": 7},
    "full-lr1e-4": _FULL,
    "full-lr3e-5-frozen-head": _LP_FT | {"learning_rate": 3e-5},
    "full-lr1e-4-smoothing0": _FULL | {"label_smoothing": 0.0},
    "full-lr1e-4-batch64": _FULL | {"batch_size": 64},
    "full-lr1e-4-ema": _FULL | {"ema_decay": 0.998},
    "full-lr1e-4-fp32": _FULL | {"precision": "fp32"},
    **{f"quick-l2-{l2:g}": _QUICK | {"l2": l2} for l2 in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)},
    **{f"quick-l2-{l2:g}-smoothing": _QUICK | {"l2": l2, "label_smoothing": 0.1} for l2 in (1e-4, 1e-3)},
}


def measure(use_case: UseCase, name: str, seed: int, home: Path) -> dict[str, Any]:
    """Trains candidate `name` and returns its validation numbers."""
    s3 = S3Settings()
    snapshot = ingest(use_case, home=home, s3=s3)
    profile = usecase.TrainingProfile.model_validate(CANDIDATES[name])
    training = use_case.training.model_copy(
        update={"profiles": {name: profile}, "validation_fraction": 0.1, "default_profile": name}
    )
    tracker, cpu = InMemoryTracker(), time.process_time()
    record = train(
        use_case.model_copy(update={"training": training}), snapshot, profile=name, home=home / name, tracker=tracker,
        commit="", s3=s3, seed=seed, progress=lambda done, total, numbers: None,
    )  # fmt: skip
    run = tracker.runs[record.run_id]
    return {
        "name": name,
        "seed": seed,
        "profile": CANDIDATES[name],
        "validation": record.metrics,
        "validation_accuracy_by_epoch": [round(v, 4) for _, v in run.series("validation/accuracy")],
        "seconds": round(record.training_seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "machine": describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CANDIDATES, []])
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{name}: {canonical_json(profile)}" for name, profile in CANDIDATES.items()))
        return
    use_case = usecase.load(ROOT / "usecases" / "support" / "usecase.yaml")
    for name in arguments.names:
        with tempfile.TemporaryDirectory() as home:
            result = measure(use_case, name, arguments.seed, Path(home))
        known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
        write_text(RESULTS, json.dumps([*known, result], indent=1) + "\n")
        numbers = result["validation"]
        print(f"{name}: accuracy {numbers['validation_accuracy']:.4f}, loss {numbers['validation_loss']:.4f}, "
              f"{result['seconds']} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
