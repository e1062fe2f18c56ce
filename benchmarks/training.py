"""Training speed against the plain `transformers.Trainer`: same model, texts, batch size and threads.

    python -m benchmarks.training --repeats 3
    python -m benchmarks.training --epoch            one whole epoch each, and the accuracy it reaches

Every measurement is a process of its own; candidates take turns, so that a slow spell of the machine meets
all of them. Timed are the steps after the first five, without loading and without evaluation. CPU seconds
are saved too: they hardly change when other programs run beside the benchmark.

    trainer      Trainer with DataCollatorWithPadding, float32, otherwise its defaults
    trainer-bf16 the same with bf16=True
    ours         the `full` profile as it is
    ours-plain   `full` without frozen word embeddings and in float32: length grouping, fused AdamW, allocator
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.machine import describe
from leitstand import usecase
from leitstand.files import write_text
from leitstand.settings import S3Settings
from models.base import resolve_base
from models.batching import EncodedTexts, encode
from models.curves import Curves
from models.data import ingest, load_split
from models.distributed import open_workers
from models.encoder import TextEncoderClassifier, build_classifier, load_base_tokenizer
from models.finetune import finetune
from models.optimization import tune_process
from models.splitting import stratified_split
from models.task import Labelled, Task

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "training.json"
CANDIDATES = ("trainer", "trainer-bf16", "ours-plain", "ours")
WARM = 5


class _Clock:
    """Wall and CPU time between the end of step `WARM` and the last step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def tick(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def rates(self, examples: int) -> dict[str, float]:
        (wall, cpu), (wall_end, cpu_end) = self.marks[WARM - 1], self.marks[-1]
        timed = examples * (len(self.marks) - WARM) / len(self.marks)
        return {
            "examples_per_second": timed / (wall_end - wall),
            "examples_per_cpu_second": timed / (cpu_end - cpu),
            "seconds": wall_end - wall,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=64, help="steps per measurement")
    parser.add_argument("--epoch", action="store_true")
    parser.add_argument("--candidates", nargs="*", default=list(CANDIDATES), choices=CANDIDATES)
    parser.add_argument("--one", choices=CANDIDATES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measure(arguments.one, arguments.steps, whole=arguments.epoch)))
        return
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.candidates}
    for _ in range(1 if arguments.epoch else arguments.repeats):
        for name, runs in measured.items():
            runs.append(_in_process(name, arguments.steps, whole=arguments.epoch))
            print(name, {key: round(value, 4) for key, value in runs[-1].items()}, flush=True)
    result = {"kind": "epoch" if arguments.epoch else "steps", "machine": describe(), "runs": measured}
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    write_text(RESULTS, json.dumps([*known, result | {"ratios": _ratios(measured)}], indent=1) + "\n")
    print(json.dumps(_ratios(measured), indent=1))


def _ratios(measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Speed of each candidate over the plain Trainer's, round by round: median, least, greatest."""
    found: dict[str, Any] = {}
    for unit in ("examples_per_second", "examples_per_cpu_second"):
        for name in [n for n in measured if n != "trainer" and "trainer" in measured]:
            values = [a[unit] / b[unit] for a, b in zip(measured[name], measured["trainer"], strict=True)]
            found[f"{name}: {unit}"] = [round(f(values), 3) for f in (statistics.median, min, max)]
    return found


def _in_process(name: str, steps: int, *, whole: bool) -> dict[str, float]:
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.training", "--one", name, "--steps", str(steps)]
    command += ["--epoch"] if whole else []
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(name: str, steps: int, *, whole: bool) -> dict[str, float]:
    case = usecase.load(ROOT / "usecases" / "support" / "usecase.yaml")
    profile = case.profile("full").model_copy(update={"epochs": 1, "checkpoint_every_steps": 10**6})
    if name == "ours-plain":
        profile = profile.model_copy(update={"freeze_embeddings": False, "precision": "fp32"})
    with tempfile.TemporaryDirectory() as home:
        snapshot = ingest(case, home=Path(home), s3=S3Settings())
        split = load_split(snapshot, "train")
        base = resolve_base(case.model.base, home=Path(home), s3=S3Settings(), folder=case.folder)
        tokenizer = load_base_tokenizer(base.folder, case.model.max_tokens)
        rows, held_out = stratified_split(split.labels, 0.1, 17)
        if not whole:
            rows = np.random.default_rng(1).permutation(rows)[: steps * profile.batch_size]
            held_out = held_out[:77]
        train, validation = (
            Labelled(encode(tokenizer, [split.texts[i] for i in part]), torch.as_tensor(split.labels[part]))
            for part in (rows, held_out)
        )
        torch.manual_seed(17)
        model = build_classifier(base.folder, len(snapshot.labels), dropout=profile.dropout)
        clock = _Clock()
        if name.startswith("ours"):
            scores = _ours(model, train, validation, profile, Path(home), clock)
        else:
            scores = _trainer(model, train, validation, profile, Path(home), clock, bf16=name.endswith("bf16"))
    accuracy = float((scores.argmax(1) == validation.labels).float().mean())
    return clock.rates(len(rows)) | ({"validation_accuracy": accuracy} if whole else {})


def _ours(
    model: TextEncoderClassifier, train: Labelled, validation: Labelled, profile: usecase.TrainingProfile, home: Path,
    clock: _Clock,
) -> torch.Tensor:  # fmt: skip
    tune_process()
    steps = -(-len(train.texts) // profile.batch_size)

    def progress(done: int, total: int, numbers: object) -> None:
        if len(clock.marks) < done:
            clock.tick()

    with open_workers() as workers:
        curves = Curves(home / "curves.csv", None, steps, progress)
        task = Task(model, train, validation, profile, 17, home, workers, curves)
        return finetune(task).validation_logits


class _WithLoss(torch.nn.Module):
    """The same classifier in the form that Trainer wants."""

    def __init__(self, inner: TextEncoderClassifier, smoothing: float) -> None:
        super().__init__()
        self.inner, self.smoothing = inner, smoothing

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        logits = self.inner(input_ids, attention_mask)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        return {"loss": loss, "logits": logits}


def _trainer(
    model: TextEncoderClassifier, train: Labelled, validation: Labelled, profile: usecase.TrainingProfile, home: Path,
    clock: _Clock, *, bf16: bool,
) -> torch.Tensor:  # fmt: skip
    from transformers import (
        DataCollatorWithPadding,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    case = usecase.load(ROOT / "usecases" / "support" / "usecase.yaml")
    base = resolve_base(case.model.base, home=home, s3=S3Settings(), folder=case.folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base.folder)

    class Ticking(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.tick()

    arguments = TrainingArguments(
        output_dir=str(home / "trainer"), num_train_epochs=1, per_device_train_batch_size=profile.batch_size,
        learning_rate=profile.learning_rate, warmup_steps=profile.warmup_fraction, weight_decay=profile.weight_decay,
        report_to=[], save_strategy="no", seed=17, bf16=bf16, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        per_device_eval_batch_size=64,
    )  # fmt: skip
    trainer = Trainer(
        model=_WithLoss(model, profile.label_smoothing), args=arguments, train_dataset=_records(train),
        data_collator=DataCollatorWithPadding(tokenizer), callbacks=[Ticking()],
    )  # fmt: skip
    trainer.train()
    scores = trainer.predict(_records(validation))  # pyright: ignore[reportArgumentType]
    return torch.as_tensor(np.asarray(scores.predictions))


def _records(part: Labelled) -> list[dict[str, Any]]:
    texts: EncodedTexts = part.texts
    return [
        {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": int(label)}
        for ids, label in zip(texts.ids, part.labels, strict=True)
    ]


if __name__ == "__main__":
    main()
