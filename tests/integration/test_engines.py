"""Engines give the same answers, whatever the batch, the order, the length."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from leitstand.errors import ConfigurationError, IntegrityError
from models.accuracy_gate import accuracy_drop
from models.engines.cpus import available_cpus, quota_cpus
from models.engines.ir import ir_folder
from models.loading import Classifier, open_classifier
from tests.classifier_for_tests import TEXTS, tiny_classifier


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Classifier:
    return open_classifier(model_dir, engine="torch", threads=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "auto"])
def test_openvino_agrees_with_torch(model_dir: Path, reference: Classifier, precision: str) -> None:
    served = open_classifier(model_dir, engine="openvino", precision=precision, threads=2)
    tolerance = 1e-4 if precision == "fp32" else 0.15
    np.testing.assert_allclose(served.logits(TEXTS), reference.logits(TEXTS), atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_pooled_embedding_comes_with_the_same_logits(
    model_dir: Path, reference: Classifier, precision: str
) -> None:
    served = open_classifier(model_dir, engine="openvino", precision=precision, threads=1)
    ids = served.encode(TEXTS)
    logits, embedding = served.backend.run_with_embedding(ids)
    np.testing.assert_array_equal(logits, served.backend.run(ids))
    _, expected = reference.backend.run_with_embedding(ids)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, expected, atol=1e-4 if precision == "fp32" else 0.1)


def test_answers_do_not_depend_on_the_neighbours_or_the_order(model_dir: Path) -> None:
    served = open_classifier(model_dir, engine="openvino", threads=2)
    together = served.logits(TEXTS * 20)
    alone = np.vstack([served.logits([text]) for text in TEXTS])
    np.testing.assert_allclose(together, np.tile(alone, (20, 1)), atol=1e-4)


def test_first_calls_from_many_threads_do_not_block_each_other(model_dir: Path) -> None:
    served = open_classifier(model_dir, engine="openvino", threads=2)
    ids = served.encode(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: served.backend.run(ids), range(32)))
    for result in results:
        np.testing.assert_allclose(result, results[0], atol=1e-4)


def test_predictions_are_calibrated_and_abstain_below_the_threshold(reference: Classifier) -> None:
    made = reference.predict(TEXTS)
    logits = reference.logits(TEXTS) / 1.5
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(made.probabilities, expected, atol=1e-5)
    assert made.labels == [reference.config.labels[i] for i in expected.argmax(axis=1)]
    assert (made.abstain == (made.scores < 0.5)).all()


def test_no_texts_give_no_answers(reference: Classifier) -> None:
    assert reference.predict([]).labels == []


def test_a_truncated_weights_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        open_classifier(folder)


def test_a_graph_of_other_weights_or_a_cut_off_one_is_exported_again(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path)
    first = open_classifier(folder, engine="openvino", threads=1).logits(TEXTS)
    graph = ir_folder(folder, "fp32")
    (graph / "model.bin").write_bytes(b"cut off")
    np.testing.assert_array_equal(open_classifier(folder, engine="openvino", threads=1).logits(TEXTS), first)
    export = json.loads((graph / "export.json").read_text())
    (graph / "export.json").write_text(json.dumps(export | {"source": "sha256:other"}))
    open_classifier(folder, engine="openvino", threads=1)
    assert json.loads((graph / "export.json").read_text())["source"] == export["source"]


@pytest.mark.parametrize(("engine", "precision"), [("onnx", "fp32"), ("torch", "int8"), ("openvino", "fp8")])
def test_an_unknown_engine_or_precision_says_what_there_is(model_dir: Path, engine: str, precision: str) -> None:
    with pytest.raises(ConfigurationError, match="use "):
        open_classifier(model_dir, engine=engine, precision=precision)


def test_accuracy_drop_counts_answers_that_changed(model_dir: Path, reference: Classifier) -> None:
    assert accuracy_drop(model_dir, "openvino", "fp32", TEXTS, reference.predict(TEXTS).labels) == 0


def test_cpus_follow_the_containers_quota(tmp_path: Path) -> None:
    limits = tmp_path / "cpu.max"
    limits.write_text("150000 100000\n")
    assert quota_cpus(limits) == 1.5
    assert 1 <= available_cpus(limits) <= 2
    limits.write_text("max 100000\n")
    assert quota_cpus(limits) is None
