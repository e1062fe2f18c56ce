"""Feedback becomes a snapshot, the champion learns the new label from it and keeps the old ones, gates are fair."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from governance.feedback_log import open_feedback_log
from governance.input_store import open_input_store
from governance.lineage_datasets import snapshot_dataset, source_datasets
from governance.rows import normalise
from leitstand.errors import ConfigurationError, IntegrityError, ValidationFailed
from leitstand.files import digest_json
from leitstand.settings import MonitoringSettings, S3Settings, Settings
from leitstand.types import GateOutcome, RunRecord, Snapshot, utc_now
from leitstand.usecase import ChampionRule, FeedbackSpec, GateSpec, GoldenSpec, UseCase
from models.artifact import read_config
from models.card import write_card
from models.evaluation import Samples, evaluate
from models.feedback import FeedbackRow
from models.gate_report import write_gate_report
from models.gates import decide
from models.golden import Golden, draw_golden, load_golden, write_golden
from models.guesses import guess
from models.loading import open_classifier
from models.retraining import FeedbackReport, build_retraining_snapshot, collect_feedback
from models.snapshots import load_split
from models.training import train
from tests.fakes import InMemoryTracker
from tests.feedback_for_tests import START, said
from tests.training_for_tests import FILLER, LABELS, WORDS, tiny_base, tiny_snapshot, tiny_use_case

SMALL = Samples(latency_calls=20)
POLICY = FeedbackSpec(
    new_labels="allow", min_rows_per_new_label=10, max_source_share=0.5, half_life=timedelta(days=10),
    new_label_floor=0.5, new_label_min_examples=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def case(home: Path) -> UseCase:
    """The tiny use case with a golden set; the base knows `help` and `late` as words of no label."""
    golden = Golden(
        [f"please {word}" for words in WORDS.values() for word in words], [x for x in LABELS for _ in "abc"]
    )
    digest = write_golden(golden, home / "golden.csv", text_column="text", label_column="label")
    case = tiny_use_case(tiny_base(home / "base"), epochs=15)
    gates = (
        GateSpec(metric="accuracy", floor=0.4, min_examples=5, champion=ChampionRule(margin=0.4)),
        GateSpec(metric="accuracy", slice="golden", floor=0.4, min_examples=5, champion=ChampionRule(margin=0.4)),
    )
    data = case.data.model_copy(update={"golden": GoldenSpec(file="golden.csv", digest=digest)})
    return case.model_copy(update={"data": data, "feedback": POLICY, "gates": gates, "folder": home})


@pytest.fixture(scope="module")
def base(home: Path) -> Snapshot:
    return tiny_snapshot(home / "data" / "tiny" / "base")


def feedback(count: int = 40, source: str = "ann") -> list[FeedbackRow]:
    """Texts of a queue that the base does not have: they are about what is late."""
    random = np.random.default_rng(8)
    rows = []
    for number in range(count):
        words = [*random.choice(FILLER[:8], 3), "late", "help", "late", *random.choice(["today", "again", "now"], 2)]
        at = START + timedelta(hours=number)
        rows.append(FeedbackRow(" ".join(words), "delay", source, at, f"r{number}"))
    return rows


@pytest.fixture(scope="module")
def snapshot(home: Path, case: UseCase, base: Snapshot) -> Snapshot:
    rows = [
        *feedback(),
        FeedbackRow("please CARD", "cash", "ann", START),
        FeedbackRow("wire late", "transfer", "bob", START),
    ]
    return build_retraining_snapshot(case, base, rows, home=home, s3=S3Settings())


def fit(case: UseCase, snapshot: Snapshot, home: Path, **options: Any) -> RunRecord:
    if "profile" in options:
        old = case.training.profiles["tiny"]
        profiles = {"tiny": old.model_copy(update=options.pop("profile"))}
        case = case.model_copy(update={"training": case.training.model_copy(update={"profiles": profiles})})
    return train(
        case, snapshot, profile=None, home=home, tracker=InMemoryTracker(), commit="abc", s3=S3Settings(), **options
    )


@pytest.fixture(scope="module")
def champion(home: Path, case: UseCase, base: Snapshot) -> RunRecord:
    return fit(case, base, home)


@pytest.fixture(scope="module")
def candidate(home: Path, case: UseCase, snapshot: Snapshot, champion: RunRecord) -> RunRecord:
    return fit(case, snapshot, home, warm_start=champion.model_dir, profile={"epochs": 8})


def test_a_snapshot_holds_base_and_feedback_and_names_where_both_come_from(
    home: Path, base: Snapshot, snapshot: Snapshot
) -> None:
    assert snapshot.labels == (*LABELS, "delay")
    assert (snapshot.new_labels, snapshot.parent) == (("delay",), base.digest)
    assert snapshot.source_digests["base"] == base.digest
    before, after = load_split(base, "train"), load_split(snapshot, "train")
    assert after.texts[:60] == before.texts
    assert after.weights is not None
    assert set(after.weights[:60]) == {1.0}
    used = pq.read_table(Path(snapshot.sources["feedback"])).to_pylist()
    assert len(used) == len(after.texts) - 60 + snapshot.splits["test"].rows - 9
    assert {row["source"] for row in used} == {"ann", "bob"}
    weights = [row["weight"] for row in sorted(used, key=lambda row: row["at"])]
    assert weights == sorted(weights)
    digests = {name: info.digest for name, info in snapshot.splits.items()}
    assert snapshot.digest == digest_json({"labels": list(snapshot.labels), "splits": digests})
    kept_out = [json.loads(line) for line in (snapshot.quarantine_file or home).read_text().splitlines()]
    assert "also_in_golden" in {item["reason"] for item in kept_out}
    report = FeedbackReport.model_validate_json((snapshot.feedback_report or home).read_bytes())
    assert report.rows == 42
    assert report.new_labels == {"delay": sum(row["label"] == "delay" for row in used)}
    assert {source.source: source.quarantined for source in report.sources} == {"ann": False, "bob": False}


def test_the_same_feedback_in_another_order_gives_the_same_snapshot(
    home: Path, case: UseCase, base: Snapshot, tmp_path: Path
) -> None:
    rows = feedback()
    one = build_retraining_snapshot(case, base, rows, home=home, s3=S3Settings())
    other = build_retraining_snapshot(case, base, rows[::-1], home=home, s3=S3Settings())
    assert one == other
    assert not [path for path in (home / "data" / "tiny").iterdir() if path.name.startswith(".")]


def test_golden_and_test_texts_are_never_trained_on(case: UseCase, base: Snapshot, snapshot: Snapshot) -> None:
    golden = load_golden(case)
    assert golden is not None
    trained = {normalise(text) for text in load_split(snapshot, "train").texts[60:]}
    assert not trained & {normalise(text) for text in golden.texts}
    assert not trained & {normalise(text) for text in load_split(snapshot, "test").texts}


def test_a_warm_start_keeps_old_labels_and_learns_the_new_one(
    champion: RunRecord, candidate: RunRecord, snapshot: Snapshot
) -> None:
    assert candidate.warm_start == champion.weights_digest
    assert read_config(candidate.model_dir).labels == snapshot.labels
    classifier = open_classifier(candidate.model_dir)
    asked = [
        "my card chip plastic",
        "the coin cash note",
        "please send wire transfer",
        "where is my late help late again",
    ]
    assert classifier.predict(asked).labels == ["card", "cash", "transfer", "delay"]


def test_warm_starts_are_repeatable_and_part_of_the_training_key(
    home: Path,
    case: UseCase,
    base: Snapshot,
    snapshot: Snapshot,
    champion: RunRecord,
    candidate: RunRecord,
    tmp_path: Path,
) -> None:
    again = fit(case, snapshot, tmp_path, warm_start=champion.model_dir, profile={"epochs": 8})
    assert again.weights_digest == candidate.weights_digest
    frozen = {"method": "frozen", "epochs": 50, "refit": True}
    cold = fit(case, snapshot, tmp_path, profile=frozen)
    warm = fit(case, snapshot, tmp_path, profile=frozen, warm_start=champion.model_dir)
    assert cold.model_dir != warm.model_dir
    encoders = [load_file(record.model_dir / "model.safetensors") for record in (champion, warm)]
    name = next(name for name in encoders[0] if "attention" in name)
    assert torch.equal(encoders[0][name], encoders[1][name])


def test_a_warm_start_from_another_architecture_is_refused(
    case: UseCase, base: Snapshot, champion: RunRecord, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    other = tiny_base(tmp_path / "base")
    BertModel(
        BertConfig(vocab_size=27, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(other)
    changed = case.model_copy(update={"model": case.model.model_copy(update={"base": str(other)})})
    with pytest.raises(ConfigurationError, match="does not fit"):
        fit(changed, base, tmp_path, warm_start=champion.model_dir)


def test_recent_rows_weigh_more_in_training(home: Path, case: UseCase, base: Snapshot) -> None:
    """Two labels for the same words: the newer opinion wins because older rows hardly count."""
    words = ["again now late", "now late again", "late again now", "again late now", "late now again", "now again late"]
    old = [FeedbackRow(f"{w} {f}", "cash", "ann", START) for w in words for f in FILLER[:5]]
    new = [FeedbackRow(f"{w} {f}", "card", "ann", START + timedelta(days=90)) for w in words for f in FILLER[5:8]]
    snapshot = build_retraining_snapshot(case, base, [*old, *new], home=home, s3=S3Settings(), check_sources=False)
    record = fit(case, snapshot, home, profile={"method": "frozen", "epochs": 100, "refit": True})
    predicted = open_classifier(record.model_dir).predict([f"{word} help" for word in words]).labels
    assert predicted.count("card") >= 5


def test_a_champion_without_the_new_label_is_compared_and_the_reason_says_how(
    case: UseCase, snapshot: Snapshot, champion: RunRecord, candidate: RunRecord, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="different labels"):
        evaluate(case, snapshot, champion.model_dir, out=tmp_path / "no", samples=SMALL)
    old = evaluate(case, snapshot, champion.model_dir, out=tmp_path / "old", samples=SMALL, other_labels=True)
    new = evaluate(case, snapshot, candidate.model_dir, out=tmp_path / "new", samples=SMALL)
    assert (old.unknown_labels, new.unknown_labels) == (("delay",), ())
    unknown = snapshot.splits["test"].rows - 9
    held_out = new.metric("accuracy", "labels:new")
    assert held_out is not None
    assert held_out.examples >= unknown - 1
    verdict = decide(case, new, champion=old, champion_ref="tiny:1", now=utc_now())
    assert [result.slice for result in verdict.results] == [None, "golden", "labels:new"]
    assert verdict.outcome is GateOutcome.PASS, [result.reason for result in verdict.results]
    assert "labels that the champion lacks" in verdict.results[0].reason
    assert "lacks" not in verdict.results[1].reason


def test_the_card_of_a_retrained_model_names_feedback_new_labels_and_parent(
    case: UseCase, snapshot: Snapshot, candidate: RunRecord, tmp_path: Path
) -> None:
    report = evaluate(case, snapshot, candidate.model_dir, out=tmp_path, samples=SMALL)
    verdict = decide(case, report, now=utc_now())
    files = write_card(use_case=case, snapshot=snapshot, run=candidate, evaluation=report, gates=verdict, out=tmp_path)
    for file in files.values():
        text = file.read_text()
        wanted = (snapshot.parent, snapshot.source_digests["feedback"], "delay", candidate.warm_start)
        assert all(str(fact) in text for fact in wanted)
    assert all("labels:new" in path.read_text() for path in write_gate_report(verdict, report, case, tmp_path).values())
    assert {d.name for d in source_datasets(snapshot)} == set(snapshot.sources.values())
    assert snapshot_dataset(snapshot).facets["version"].datasetVersion == snapshot.digest


def test_a_model_with_more_labels_than_the_data_can_be_measured_as_champion(
    case: UseCase, base: Snapshot, candidate: RunRecord, tmp_path: Path
) -> None:
    report = evaluate(case, base, candidate.model_dir, out=tmp_path, samples=SMALL, other_labels=True)
    accuracy = report.metric("accuracy")
    assert accuracy is not None and accuracy.value is not None and accuracy.value > 0.6
    assert report.unknown_labels == ()


def test_forgetting_is_not_hidden_by_the_new_label(
    case: UseCase, snapshot: Snapshot, champion: RunRecord, tmp_path: Path, home: Path
) -> None:
    """A model of the new label alone beats the champion on all rows and fails for what it forgot."""
    old = evaluate(case, snapshot, champion.model_dir, out=tmp_path / "old", samples=SMALL, other_labels=True)
    forgetful = fit(case, snapshot, tmp_path, profile={"method": "frozen", "epochs": 1, "l2": 1e4})
    new = evaluate(case, snapshot, forgetful.model_dir, out=tmp_path / "new", samples=SMALL)
    gates = [GateSpec(metric="accuracy", slice="golden", floor=0.0, min_examples=1, champion=ChampionRule(margin=0.05))]
    verdict = decide(case.model_copy(update={"gates": tuple(gates)}), new, champion=old, now=utc_now())
    assert verdict.results[0].outcome is GateOutcome.FAIL


def test_unusable_feedback_is_refused_with_counts_and_a_second_layer_too(
    home: Path, case: UseCase, base: Snapshot, snapshot: Snapshot
) -> None:
    with pytest.raises(ValidationFailed, match=r"None of 2 .*new_label_too_rare: 2"):
        build_retraining_snapshot(case, base, feedback(2), home=home, s3=S3Settings())
    with pytest.raises(ConfigurationError, match="holds feedback already"):
        build_retraining_snapshot(case, snapshot, feedback(), home=home, s3=S3Settings())


def test_a_source_of_random_labels_is_quarantined_by_the_model_of_the_base(
    home: Path, case: UseCase, base: Snapshot
) -> None:
    random = np.random.default_rng(4)
    rows = []
    for number in range(40):
        label = LABELS[number % 3]
        text = f"{FILLER[number % 14]} {FILLER[number // 3 % 14]} {' '.join(WORDS[label])} {FILLER[number // 7]}"
        rows.append(FeedbackRow(text, label, "honest", START + timedelta(hours=number), f"h{number}"))
        said = LABELS[random.integers(3)]
        rows.append(FeedbackRow(f"{text} {text}", said, "mallory", START, f"m{number}"))
    strict = case.feedback.model_copy(update={"trust": case.feedback.trust.model_copy(update={"top_guesses": 1})})
    strict_case = case.model_copy(update={"feedback": strict})
    guesses = guess(strict_case, base, {row.key: row.text for row in rows}, home=home, s3=S3Settings())
    assert guesses.miss_rate < 0.2
    snapshot = build_retraining_snapshot(strict_case, base, rows, home=home, s3=S3Settings(), guesses=guesses)
    report = FeedbackReport.model_validate_json((snapshot.feedback_report or home).read_bytes())
    assert list(report.quarantined_sources) == ["mallory"]
    assert "outside the model's best guesses" in report.quarantined_sources["mallory"]
    assert report.set_aside["untrusted_source"] == 40


def test_texts_that_were_trained_on_outlive_the_store_and_changed_labels_count_as_they_stand(
    case: UseCase, base: Snapshot, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, monitoring=MonitoringSettings(keep_texts_days=7))
    log, store = open_feedback_log(settings), open_input_store(settings)
    rows = feedback()
    for row in rows:
        store.put("tiny", row.request_id, [row.text], row.at)
        log.record(said(row.request_id, "delay", "ann", 1))
    log.record(said("unknown", "delay", "ann", 1))
    collected, missing = collect_feedback(settings, "tiny")
    assert (len(collected), missing) == (40, 1)
    first = build_retraining_snapshot(case, base, collected, home=tmp_path, s3=S3Settings(), check_sources=False)
    log.record(said("r0", None, "ann", 2))
    log.record(said("r1", "card", "ann", 2))
    store.expire(START + timedelta(days=400))
    again, missing = collect_feedback(settings, "tiny")
    used = len({row["request_id"] for row in pq.read_table(Path(first.sources["feedback"])).to_pylist()} - {"r0"})
    assert len(again) == used
    assert missing == 40 - used
    assert next((row.label for row in again if row.request_id == "r1"), "card") == "card"


def test_the_golden_set_is_pinned_and_drawn_by_seed(home: Path, case: UseCase, base: Snapshot, tmp_path: Path) -> None:
    split = load_split(base, "test")
    drawn = draw_golden(split, base.labels, per_label=2, seed=1)
    assert drawn == draw_golden(split, base.labels, per_label=2, seed=1)
    assert sorted(drawn.labels) == sorted([*LABELS, *LABELS])
    changed = case.model_copy(update={"folder": tmp_path})
    (tmp_path / "golden.csv").write_text("text,label\nother,card\n")
    with pytest.raises(IntegrityError, match="not the pinned golden set"):
        load_golden(changed)


def test_a_retraining_snapshot_is_not_taken_for_an_ingested_one(home: Path, snapshot: Snapshot) -> None:
    assert not (home / "data" / "tiny" / "latest").exists()
    assert snapshot.report_html is None
