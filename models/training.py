"""Trains the model of a use case: from a validated snapshot to a sealed model folder and a `RunRecord`.

Everything a run needs and leaves lies in ``home/runs/<use case>/<16 digits of the training key>/``:

    record.json         the `RunRecord`; written last, its presence means that the run is finished
    model/              the classifier (`models.artifact`)
    curves.csv          every measured point
    tracking.json       the tracker's run id, so that a restart continues the same run
    checkpoints/        while running

The key covers data, base model, profile, seed, and the weights that a warm start begins with. The same key
again returns the record there is; after a kill it resumes. One process at a time works on a key; a second
one waits, and finds the first one's result. The test split is never read here. Under torchrun or
``accelerate launch``, processes share the work.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from pydantic import ValidationError

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError
from leitstand.files import digest_json, write_text
from leitstand.ports import ExperimentTracker, Progress, TrackedRun
from leitstand.settings import S3Settings
from leitstand.types import RunRecord, Snapshot
from leitstand.usecase import TrainingProfile, UseCase
from models.artifact import ClassifierConfig, read_manifest, verify
from models.base import BaseModel, resolve_base
from models.batching import encode
from models.calibration import expected_calibration_error, fit_temperature, negative_log_likelihood, softmax
from models.checkpoints import Checkpoints, disk_errors
from models.curves import Curves
from models.data import load_split
from models.distributed import Workers, open_workers
from models.encoder import build_classifier, load_base_tokenizer, save_classifier
from models.finetune import finetune
from models.frozen import fit_frozen
from models.optimization import autocast_dtype, tune_process
from models.splitting import stratified_split
from models.task import Fitted, Labelled, Task
from models.warm_start import load_weights

__all__ = ["train", "training_key"]

ALGORITHM = 1  # raise it when the same key would give other weights


def training_key(
    use_case: UseCase, snapshot: Snapshot, *, profile: str | None, seed: int | None, base_digest: str,
    warm_start: Path | None = None,
) -> str:  # fmt: skip
    """Digest over everything that decides the weights: data, base model, profile, seed, split, warm start."""
    return digest_json(
        ({"warm_start": verify(warm_start)} if warm_start else {})
        | {
            "algorithm": ALGORITHM,
            "use_case": use_case.name,
            "data": snapshot.digest,
            "labels": snapshot.labels,
            "base": base_digest,
            "model": use_case.model.model_dump(exclude={"base"}),
            "profile": use_case.profile(profile).model_dump(exclude={"checkpoint_every_steps"}),
            "seed": use_case.training.seed if seed is None else seed,
            "validation_fraction": use_case.training.validation_fraction,
        }
    )


def train(
    use_case: UseCase,
    snapshot: Snapshot,
    *,
    profile: str | None,
    home: Path,
    tracker: ExperimentTracker,
    commit: str,
    s3: S3Settings,
    seed: int | None = None,
    progress: Progress | None = None,
    warm_start: Path | None = None,
) -> RunRecord:
    """Trains, calibrates, and saves a classifier; or returns the finished run of the same key.

    Args:
        use_case: Says how.
        snapshot: The data; only its train split is read.
        profile: Name of a training profile; None: the default one.
        home: Runs are kept in ``home/runs``.
        tracker: Takes configuration, curves and final numbers.
        commit: Of the code, for the record.
        s3: For a base model behind ``s3://``.
        seed: Replaces the use case's.
        progress: Called with steps done, steps in total, latest numbers; None: a bar when stderr is a terminal.
        warm_start: Folder of a trained classifier to start from: its encoder, and its head rows of the labels that
            both know. None: start from the base model.

    Raises:
        NotFoundError: No such profile or base model.
        ConfigurationError: Base model or profile do not work here, or the warm start has another architecture.
        IntegrityError: The base weights, or those of the warm start, are damaged.
        PermanentBackendError: Training diverged, or the disk is full.
    """
    base = resolve_base(use_case.model.base, home=home, s3=s3, folder=use_case.folder)
    key = training_key(use_case, snapshot, profile=profile, seed=seed, base_digest=base.digest, warm_start=warm_start)
    folder = home / "runs" / use_case.name / key.removeprefix("sha256:")[:16]
    with open_workers() as workers, _alone(folder, workers):
        finished = workers.share(_finished(folder) if workers.leads else None)
        if finished is not None:
            return finished
        name = profile or use_case.training.default_profile
        job = _Job(use_case, snapshot, name, base, folder, commit, workers, warm_start)
        return job.run(use_case.training.seed if seed is None else seed, key, tracker, progress)


class _Job:
    """One unfinished run."""

    def __init__(
        self,
        use_case: UseCase,
        snapshot: Snapshot,
        name: str,
        base: BaseModel,
        folder: Path,
        commit: str,
        workers: Workers,
        warm_start: Path | None,
    ) -> None:
        self.use_case, self.snapshot, self.name, self.base = use_case, snapshot, name, base
        self.folder, self.commit, self.workers, self.warm_start = folder, commit, workers, warm_start
        self.parent = read_manifest(warm_start).digest if warm_start else None
        self.profile: TrainingProfile = use_case.profile(name)

    def run(self, seed: int, key: str, tracker: ExperimentTracker, progress: Progress | None) -> RunRecord:
        config = self._config(seed, key, tune_process())
        with _tracked(tracker, self, config) as run:
            torch.manual_seed(seed)
            self.tokenizer = load_base_tokenizer(self.base.folder, self.use_case.model.max_tokens)
            train, validation = self._rows(seed)
            steps = self.profile.epochs
            if self.profile.method == "finetune":
                steps *= -(-len(train.texts) // self.profile.batch_size)
            curves = Curves(self.folder / "curves.csv", run, steps, progress)
            model = build_classifier(self.base.folder, len(self.snapshot.labels), dropout=self.profile.dropout)
            if self.warm_start:
                load_weights(model, self.snapshot.labels, self.warm_start)
            model.to(self.workers.device)
            task = Task(model, train, validation, self.profile, seed, self.folder, self.workers, curves)
            try:
                fitted = finetune(task) if self.profile.method == "finetune" else fit_frozen(task)
            finally:
                curves.close()
            record = self._finish(task, fitted, run) if run is not None else None
        record = self.workers.share(record)
        if self.workers.leads:
            self._complete(record)
        return record

    def _rows(self, seed: int) -> tuple[Labelled, Labelled]:
        split = load_split(self.snapshot, "train")
        rows, held_out = stratified_split(split.labels, self.use_case.training.validation_fraction, seed)
        if not len(held_out):
            raise ConfigurationError(
                f"Use case '{self.use_case.name}': {len(split.texts)} training rows leave none for validation",
                hint="give every label at least two rows",
            )

        def pick(chosen: Any) -> Labelled:
            texts = [split.texts[row] for row in chosen]
            weights = None if split.weights is None else torch.as_tensor(split.weights[chosen], dtype=torch.float32)
            labels = torch.as_tensor(split.labels[chosen], dtype=torch.int64)
            return Labelled(encode(self.tokenizer, texts), labels, weights)

        return pick(rows), pick(held_out)

    def _config(self, seed: int, key: str, threads: int) -> dict[str, Any]:
        dtype = autocast_dtype(self.profile.precision, self.workers.device)
        return {
            "profile_name": self.name,
            **self.profile.model_dump(),
            "seed": seed,
            "base_model": self.base.name,
            "base_digest": self.base.digest,
            "data_digest": self.snapshot.digest,
            "warm_start": self.parent or "",
            "training_key": key,
            "commit": self.commit,
            "validation_fraction": self.use_case.training.validation_fraction,
            "max_tokens": self.use_case.model.max_tokens,
            "device": str(self.workers.device),
            "processes": self.workers.size,
            "threads": threads,
            "autocast": str(dtype).removeprefix("torch.") if dtype else "off",
            "torch": torch.__version__,
        }

    def _finish(self, task: Task, fitted: Fitted, run: TrackedRun) -> RunRecord:
        scores, labels = fitted.validation_logits.numpy(), task.validation.labels.numpy()
        temperature = fit_temperature(scores, labels)
        metrics = {
            "validation_accuracy": float((scores.argmax(1) == labels).mean()),
            "validation_loss": negative_log_likelihood(scores, labels, temperature),
            "validation_ece": expected_calibration_error(softmax(scores, temperature), labels),
            "validation_ece_uncalibrated": expected_calibration_error(softmax(scores), labels),
            "temperature": temperature,
            "steps": float(fitted.steps),
            "training_rows": float(len(task.train.texts)),
            "validation_rows": float(len(labels)),
        }
        config = ClassifierConfig(
            use_case=self.use_case.name,
            labels=self.snapshot.labels,
            max_tokens=self.use_case.model.max_tokens,
            temperature=temperature,
            abstain_below=self.use_case.model.abstain_below,
            base_model=self.base.name,
        )
        with disk_errors(self.folder / "model"):
            digest = save_classifier(task.model, self.tokenizer, config, self.folder / "model")
        curves = task.curves.write()
        run.log_artifact(f"{self.use_case.name}-curves", "curves", curves)
        run.summary({**metrics, "weights_digest": digest, "training_seconds": fitted.seconds})
        return RunRecord(
            run_id=run.run_id,
            use_case=self.use_case.name,
            profile=self.name,
            seed=task.seed,
            model_dir=self.folder / "model",
            weights_digest=digest,
            data_digest=self.snapshot.digest,
            base_model=self.base.name,
            base_digest=self.base.digest,
            warm_start=self.parent,
            commit=self.commit,
            tracking_url=run.url,
            metrics=metrics,
            training_seconds=fitted.seconds,
            resumed=fitted.resumed,
            stopped_early=fitted.stopped_early,
            curves=curves,
        )

    def _complete(self, record: RunRecord) -> None:
        with disk_errors(self.folder / "record.json"):
            write_text(self.folder / "record.json", record.model_dump_json(indent=1))
        Checkpoints(self.folder / "checkpoints").clear()
        (self.folder / "embeddings.safetensors").unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path, workers: Workers) -> Iterator[None]:
    """Keeps other runs of the same key out; a killed process lets go of the lock."""
    if not workers.leads:
        yield
        return
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def _finished(folder: Path) -> RunRecord | None:
    """The record in `folder` if its model is still whole."""
    try:
        record = RunRecord.model_validate_json((folder / "record.json").read_bytes())
        return record if verify(record.model_dir) == record.weights_digest else None
    except (OSError, ValidationError, NotFoundError, IntegrityError):
        return None


@contextlib.contextmanager
def _tracked(tracker: ExperimentTracker, job: _Job, config: dict[str, Any]) -> Iterator[TrackedRun | None]:
    """The tracker's run of this job, continued after a restart; None on processes that do not lead."""
    if not job.workers.leads:
        yield None
        return
    notes = job.folder / "tracking.json"
    known = json.loads(notes.read_text())["run_id"] if notes.is_file() else None
    run = tracker.start(use_case=job.use_case.name, job="train", config=config, tags=(job.name,), run_id=known)
    with disk_errors(notes):
        write_text(notes, json.dumps({"run_id": run.run_id}))
    try:
        yield run
    except BaseException:
        run.finish(failed=True)
        raise
    run.finish()
