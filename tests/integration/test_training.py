"""Training on a tiny random encoder: repeatable, resumable, calibrated, and clear about what went wrong."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError, PermanentBackendError
from leitstand.settings import S3Settings
from leitstand.types import RunRecord, Snapshot
from leitstand.usecase import UseCase
from models.artifact import read_config, verify
from models.checkpoints import Checkpoints
from models.encoder import load_classifier_module, load_tokenizer
from models.training import train
from tests.fakes import InMemoryTracker
from tests.training_for_tests import LABELS, tiny_base, tiny_snapshot, tiny_use_case

Fit = Callable[..., RunRecord]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return tiny_snapshot(tmp_path_factory.mktemp("data"))


@pytest.fixture
def fit(tmp_path: Path, base: Path, snapshot: Snapshot) -> Fit:
    """Trains below tmp_path/HOME with a fresh tracker."""

    def run(home: str = "home", use_case: UseCase | None = None, **options: Any) -> RunRecord:
        profile = options.pop("profile", {})
        return train(
            use_case or tiny_use_case(base, **profile), snapshot, profile=None, home=tmp_path / home, commit="abc",
            tracker=options.pop("tracker", InMemoryTracker()), s3=S3Settings(), **options,
        )  # fmt: skip

    return run


def weights(record: RunRecord) -> dict[str, torch.Tensor]:
    return load_file(record.model_dir / "model.safetensors")


@pytest.mark.parametrize("profile", [{}, {"method": "frozen", "epochs": 50, "refit": True}], ids=["finetune", "frozen"])
def test_a_trained_model_is_sealed_calibrated_and_better_than_chance(fit: Fit, profile: dict[str, Any]) -> None:
    record = fit(profile=profile)
    assert record.metrics["validation_accuracy"] > 0.6
    assert verify(record.model_dir) == record.weights_digest
    config = read_config(record.model_dir)
    assert (config.labels, config.temperature) == (LABELS, record.metrics["temperature"])
    model, _ = load_classifier_module(record.model_dir)
    encoded = load_tokenizer(record.model_dir).encode_batch(["where is my cash", "please send the wire again now"])
    ids = torch.tensor([item.ids for item in encoded])
    mask = torch.tensor([item.attention_mask for item in encoded])
    assert model(ids, mask).argmax(1).tolist() == [1, 2]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(fit: Fit) -> None:
    profile = {"ema_decay": 0.9, "label_smoothing": 0.1, "head_init": "frozen", "layer_decay": 0.9}
    first, second = fit("one", profile=profile), fit("two", profile=profile)
    assert first.weights_digest == second.weights_digest
    assert fit("one", profile=profile, seed=18).weights_digest != first.weights_digest


def test_a_finished_run_is_returned_without_training(fit: Fit) -> None:
    steps: list[int] = []
    tracker = InMemoryTracker()
    first = fit(tracker=tracker)
    again = fit(tracker=tracker, progress=lambda done, total, numbers: steps.append(done))
    assert (again, steps, len(tracker.runs)) == (first, [], 1)


def test_a_finished_run_whose_model_was_damaged_is_trained_again(fit: Fit) -> None:
    first = fit()
    with (first.model_dir / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert fit().weights_digest == first.weights_digest


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from leitstand.settings import S3Settings
from leitstand.types import Snapshot
from models.training import train
from tests.fakes import InMemoryTracker
from tests.training_for_tests import tiny_use_case

def die(done, total, numbers):
    if done == {step}:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads({threads})
snapshot = Snapshot.model_validate_json(Path({snapshot!r}).read_text())
train(tiny_use_case({base!r}, **{profile!r}), snapshot, profile=None,
      home=Path({home!r}), tracker=InMemoryTracker(), commit="abc", s3=S3Settings(), progress=die)
"""


def test_a_killed_run_resumes_and_ends_with_the_same_weights(
    fit: Fit, base: Path, snapshot: Snapshot, tmp_path: Path, project: Path
) -> None:
    profile = {"ema_decay": 0.9, "early_stopping_patience": 9}
    (tmp_path / "snapshot.json").write_text(snapshot.model_dump_json())
    code = KILLED.format(
        step=17,
        threads=torch.get_num_threads(),  # equal threads, or sums would round differently
        base=str(base),
        profile=profile,
        snapshot=str(tmp_path / "snapshot.json"),
        home=str(tmp_path / "killed"),
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=project, timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed").rglob("step-*"))) == 2

    steps: list[int] = []
    resumed = fit("killed", profile=profile, progress=lambda done, total, numbers: steps.append(done))
    whole = fit("whole", profile=profile)
    assert (resumed.resumed, steps[0]) == (True, 16)
    assert resumed.weights_digest == whole.weights_digest
    assert not list((tmp_path / "killed").rglob("step-*"))

    def points(record: RunRecord) -> list[tuple[str, str, str]]:
        assert record.curves is not None
        with record.curves.open() as file:
            return [(row["step"], row["split"], row["loss"]) for row in csv.DictReader(file)]

    assert points(resumed) == points(whole)


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        store.save(step, {"w": torch.full((3,), float(step))}, {"note": step})
    with (tmp_path / "step-00000003" / "state.safetensors").open("r+b") as file:
        file.truncate(20)
    found = store.newest()
    assert found is not None
    step, tensors, facts = found
    assert (step, tensors["w"].tolist(), facts) == (2, [2.0, 2.0, 2.0], {"note": 2})
    assert "step-00000003" in caplog.text
    assert not (tmp_path / "step-00000001").exists()


def test_a_restart_continues_the_same_tracked_run(fit: Fit) -> None:
    tracker = InMemoryTracker()

    def stop(done: int, total: int, numbers: object) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tracker=tracker, progress=stop)
    assert [run.state for run in tracker.runs.values()] == ["failed"]
    record = fit(tracker=tracker)
    (run,) = tracker.runs.values()
    assert (run.run_id, run.state, run.starts) == (record.run_id, "finished", 2)
    assert run.config["training_key"].startswith("sha256:")
    assert len(run.series("validation/accuracy")) == 4
    assert run.summaries["validation_accuracy"] == record.metrics["validation_accuracy"]


TWO = """
import sys
from models.train_main import main
from tests.fakes import InMemoryTracker
sys.exit(main(sys.argv[1:], tracker=InMemoryTracker()))
"""


def test_two_processes_compute_what_one_computes(
    fit: Fit, base: Path, snapshot: Snapshot, tmp_path: Path, project: Path
) -> None:
    use_case = tiny_use_case(base, dropout=0.0, ema_decay=0.9, batch_size=7, token_budget=40, class_weights="balanced")
    one = fit("one", use_case)
    (tmp_path / "main.py").write_text(TWO)
    (tmp_path / "snapshot.json").write_text(snapshot.model_dump_json())
    (tmp_path / "usecase.yaml").write_text(use_case.model_dump_json())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", str(tmp_path / "main.py")]
    command += ["--use-case", str(tmp_path / "usecase.yaml"), "--snapshot", str(tmp_path / "snapshot.json")]
    command += ["--home", str(tmp_path / "two"), "--record", str(tmp_path / "record.json"), "--commit", "abc"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, timeout=180, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = RunRecord.model_validate_json((tmp_path / "record.json").read_bytes())
    ours, theirs = weights(one), weights(two)
    # Attention does not depend on the key bias; its gradient is rounding noise, which Adam scales to full steps.
    for name, value in ((n, v) for n, v in ours.items() if not n.endswith("key.bias")):
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert two.metrics["validation_accuracy"] == one.metrics["validation_accuracy"]


def test_early_stopping_keeps_the_best_weights(fit: Fit) -> None:
    tracker = InMemoryTracker()
    record = fit(tracker=tracker, profile={"epochs": 60, "early_stopping_patience": 2, "learning_rate": 0.02})
    losses = [loss for _, loss in tracker.runs[record.run_id].series("validation/loss")]
    assert record.stopped_early
    assert len(losses) < 60
    assert losses.index(min(losses)) == len(losses) - 3


def test_divergence_says_what_to_change(fit: Fit) -> None:
    with pytest.raises(PermanentBackendError, match=r"diverged.*step \d+ of 24") as caught:
        fit(profile={"learning_rate": 1e30, "max_grad_norm": 1e30})
    assert "lower learning_rate (now 1e+30)" in str(caught.value.hint)


def test_truncated_base_weights_are_named(fit: Fit, base: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(base, tmp_path / "broken")
    with (broken / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(IntegrityError, match=r"model\.safetensors are truncated or damaged \(5000 bytes\)"):
        fit(use_case=tiny_use_case(broken))


def test_pickled_base_weights_are_refused(fit: Fit, base: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(base, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"lacks \*\.safetensors.*\n.*convert pytorch_model\.bin"):
        fit(use_case=tiny_use_case(pickled))


def test_an_unknown_profile_lists_those_there_are(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="choose one of: tiny"):
        train(
            tiny_use_case(base), snapshot, profile="huge", home=tmp_path, tracker=InMemoryTracker(), commit="",
            s3=S3Settings(),
        )  # fmt: skip


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from models.checkpoints import Checkpoints
from pathlib import Path
import torch
Checkpoints(Path({folder!r})).save(1, {{"w": torch.zeros(100_000)}}, {{}})
"""


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path, project: Path) -> None:
    code = LIMITED.format(folder=str(tmp_path / "checkpoints"))
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=project, timeout=120, check=False, capture_output=True, text=True
    )
    assert "PermanentBackendError: Writing" in child.stderr
    assert "MiB free" in child.stderr
    assert list((tmp_path / "checkpoints").iterdir()) == []
