"""A trained tiny version with its reference, and traffic for it in a real inference log."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flows.loop import Loop, open_loop
from flows.reference import reference_rows
from flows.rollout_store import open_rollout_store
from flows.wiring import Adapters
from governance.inference_log import ROW_SCHEMA, open_inference_log
from governance.lineage import open_lineage
from leitstand.files import digest_json, short_digest, write_text
from leitstand.settings import MonitoringSettings, Settings
from leitstand.types import ModelCandidate, ModelVersion, RouteTable, RunRecord, Snapshot, SplitInfo, Target, WindowRow
from leitstand.usecase import UseCase
from models.loading import Classifier, open_classifier
from models.snapshots import Split, split_digest
from models.training import train
from tests.fakes import InMemoryRegistry, InMemoryRouteStore, InMemoryTracker
from tests.rollout_for_tests import InMemoryCounts
from tests.training_for_tests import FILLER, LABELS, WORDS, tiny_base, tiny_use_case

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DRIFT = {"check_every": "PT1H", "min_window_rows": 200, "false_alarms_per_month": 1.0}


def normal_texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts like those of the training, and their labels."""
    random = np.random.default_rng(seed)
    labels = [LABELS[place] for place in random.integers(0, len(LABELS), count)]
    texts = [
        " ".join(
            [*random.choice(FILLER[:8], random.integers(1, 4)), *random.choice(WORDS[label], random.integers(2, 6))]
        )
        for label in labels
    ]
    return texts, labels


def withheld_texts(count: int, seed: int) -> list[str]:
    """Texts of a queue that the version does not know."""
    random = np.random.default_rng(seed)
    return [" ".join([*random.choice(FILLER[:8], 2), *random.choice(FILLER[8:], 5)]) for _ in range(count)]


def snapshot(home: Path) -> Snapshot:
    """120 rows to train on and 600 to test on, where a version's data is looked for."""
    splits, tables = {}, {}
    for split, count, seed in (("train", 120, 1), ("test", 600, 2)):
        texts, labels = normal_texts(count, seed)
        digest = split_digest(zip(texts, labels, strict=True))
        splits[split] = SplitInfo(path=Path(f"{split}.parquet"), rows=count, digest=digest)
        tables[split] = pa.table({"text": texts, "label": labels})
    digest = digest_json({"labels": list(LABELS), "splits": {name: info.digest for name, info in splits.items()}})
    found = Snapshot(
        use_case="tiny", digest=digest, labels=LABELS, splits=splits, sources={}, source_digests={"train": digest}
    )
    folder = home / "data" / "tiny" / short_digest(digest)
    folder.mkdir(parents=True)
    for split, table in tables.items():
        pq.write_table(table, folder / f"{split}.parquet")
    write_text(folder / "snapshot.json", found.model_dump_json())
    placed = {name: info.model_copy(update={"path": folder / info.path}) for name, info in splits.items()}
    return found.model_copy(update={"splits": placed})


@dataclass(frozen=True)
class Trained:
    """What every world of a module shares: use case, data and the trained run."""

    use_case: UseCase
    snapshot: Snapshot
    run: RunRecord
    home: Path
    classifier: Classifier


def trained(folder: Path) -> Trained:
    """Trains once; takes two seconds."""
    home = folder / ".leitstand"
    plain = tiny_use_case(tiny_base(folder / "base"), method="frozen", epochs=100, refit=True)
    case = UseCase.model_validate(plain.model_dump() | {"drift": DRIFT})
    data = snapshot(home)
    settings = Settings(home=home)
    run = train(case, data, profile=None, home=home, tracker=InMemoryTracker(), commit="abc", s3=settings.s3)
    target = folder / "usecases" / "tiny" / "usecase.yaml"
    write_text(target, yaml.safe_dump(case.model_dump(mode="json")))
    return Trained(case, data, run, home, open_classifier(run.model_dir, threads=1))


def registered(registry: InMemoryRegistry, run: RunRecord, data: Snapshot, key: str = "") -> ModelVersion:
    return registry.register(
        ModelCandidate(
            name="tiny", key=digest_json([run.weights_digest, data.digest, key]), model_dir=run.model_dir,
            weights_digest=run.weights_digest, data_digest=data.digest, base_model="tiny", commit="abc",
            run_id=run.run_id, profile=run.profile,
        )
    )  # fmt: skip


@dataclass
class World:
    """One installation: version 1 serves, and its traffic goes to a real log."""

    loop: Loop
    use_case: UseCase
    version: ModelVersion
    counts: InMemoryCounts
    snapshot: Snapshot
    classifier: Classifier

    @property
    def adapters(self) -> Adapters:
        return self.loop.adapters

    def answer(self, texts: Sequence[str], start: datetime, length: timedelta, *, tag: str = "r") -> list[WindowRow]:
        """Answers texts as the gateway would, spread over `length`, and logs them."""
        split = Split(list(texts), np.zeros(len(texts), dtype=np.int64))
        languages = [""] * len(texts)
        table = reference_rows(self.version, self.classifier, split, self.snapshot.labels, languages)
        step = length / len(texts)
        rows = [
            WindowRow(
                **row | {"request_id": f"{tag}{place}", "at": start + place * step, "latency_ms": 5.0}
            )
            for place, row in enumerate(table.select(ROW_SCHEMA.names).to_pylist())
        ]  # fmt: skip
        log = open_inference_log(self.adapters.settings)
        log.append(rows)
        log.flush()
        log.close()
        return rows


def world(shared: Trained, home: Path) -> World:
    """A fresh installation below `home` with the shared version; its data is the shared one."""
    (home / "data").mkdir(parents=True)
    (home / "data" / "tiny").symlink_to(shared.home / "data" / "tiny")
    settings = Settings(
        home=home, usecases=shared.home.parent / "usecases", monitoring=MonitoringSettings(languages_per_s=0)
    )
    registry, routes = InMemoryRegistry(), InMemoryRouteStore()
    adapters = Adapters(
        settings=settings, registry=registry, tracker=InMemoryTracker(),
        lineage=open_lineage(settings, commit="abc"), routes=routes, rollouts=open_rollout_store(settings),
        commit="abc",
    )  # fmt: skip
    version = registered(registry, shared.run, shared.snapshot)
    registry.set_alias(version.ref, "champion", actor="tests", reason="first")
    table = RouteTable(
        use_case="tiny", stable=Target(version=1, url="http://127.0.0.1:9"), changed_at=NOW - timedelta(days=9),
        actor="tests", reason="first",
    )  # fmt: skip
    routes.write(table, expected=0)
    counts = InMemoryCounts()
    loop = replace(open_loop(adapters), counts=counts)
    return World(loop, shared.use_case, version, counts, shared.snapshot, shared.classifier)
