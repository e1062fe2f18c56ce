"""False alarms, power and delay of the drift detectors on real texts, and of Evidently's and Alibi-Detect's defaults.

    python -m benchmarks.drift_power embed --model MODEL_DIR     once: embeddings of all texts, kept in --cache
    python -m benchmarks.drift_power ours                        false alarms, power, delay, ROC
    python -m benchmarks.drift_power peers --alibi PYTHON        the same windows, judged by the others' defaults
    python -m benchmarks.drift_power show

A head (logistic regression) is fitted on 3,000 Banking77 training texts over the frozen MiniLM encoder; the other
10,083 texts were never seen. Each reference is 3,000 of them, windows are drawn without replacement from the rest, so
that windows without drift are exactly exchangeable with the reference. Language detection is left out on purpose:
it would give German away.
"""

import argparse
import csv
import dataclasses
import json
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

from benchmarks.drift_peers import evidently_decides
from governance.text_statistics import text_statistics
from leitstand.usecase import DriftSpec
from models.perturb import generator, with_typos
from monitors.detection import DetectorSet, fit_detectors
from monitors.quality import wilson_interval
from monitors.sketches import Sample, Sketch, content_hash, decode_float16

ROOT = Path(__file__).parent
SUPPORT = ROOT.parent / "usecases" / "support" / "data"
RESULT = ROOT / "results" / "drift-power.json"
SIZES = (100, 250, 500, 1000, 2000)
ROC_SIZE = 500
ALPHA = 1 / 720
POLICY = DriftSpec(min_window_rows=100)
REFERENCE = 3000
TRAINED = 3000
AT = datetime(2026, 1, 1, tzinfo=UTC)
SCENARIOS = {  # name: (source of the drifted rows, their share)
    "out of scope 5 %": ("oos", 0.05), "out of scope 10 %": ("oos", 0.1), "out of scope 20 %": ("oos", 0.2),
    "typos in 15 % of words": ("typos", 1.0), "German 5 %": ("german", 0.05), "German 20 %": ("german", 0.2),
    "class prior, 10 labels x 3": ("prior", 1.0), "withheld queues 5 %": ("withheld", 0.05),
    "withheld queues 15 %": ("withheld", 0.15),
}  # fmt: skip
SHOWN = (
    "embedding/mmd", "embedding/centroid", "embedding/frechet", "embedding/ood_share", "embedding/ood_ks",
    "embedding/domain_auc", "label/jensen_shannon", "label/chi_square", "probabilities/label_shift", "score/psi",
    "score/ks", "score/wasserstein", "score/confidence_drop", "characters/ks",
)  # fmt: skip
PEER_SCENARIOS = (
    "out of scope 10 %",
    "typos in 15 % of words",
    "German 20 %",
    "class prior, 10 labels x 3",
    "withheld queues 15 %",
)


def _read(path: Path, column: str) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file)]


def embed(model: Path, cache: Path) -> None:
    from models.loading import open_classifier

    texts = _read(SUPPORT / "train.csv", "text") + _read(SUPPORT / "test.csv", "text")
    labels = _read(SUPPORT / "train.csv", "category") + _read(SUPPORT / "test.csv", "category")
    typos = [with_typos(text, 0.15, generator(5, i)) for i, text in enumerate(texts[-3080:])]
    groups = {
        "banking": texts, "typos": typos, "oos": _read(ROOT / "data" / "clinc150_out_of_scope.csv", "text"),
        "german": _read(ROOT / "data" / "banking77_german.csv", "text"),
    }  # fmt: skip
    classifier = open_classifier(model)
    arrays: dict[str, Any] = {"labels": np.array(labels)}
    for name, group in groups.items():
        ids = classifier.encode(group)
        order = np.argsort([len(i) for i in ids], kind="stable")
        rows = np.zeros((len(ids), 384), np.float32)
        for start in range(0, len(ids), 64):
            chunk = order[start : start + 64]
            rows[chunk] = classifier.backend.run_with_embedding([ids[i] for i in chunk])[1]
        stats = [text_statistics(text) for text in group]
        arrays[name] = rows
        arrays[f"{name}:stats"] = np.array(stats, np.float64)
        arrays[f"{name}:tokens"] = np.array([len(i) for i in ids])
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(cache / "embeddings.npz", **arrays)


class World:
    """One draw: a model, its reference, and traffic of each kind that neither has seen."""

    def __init__(self, data: dict[str, np.ndarray], seed: int, *, withheld: int = 0) -> None:
        rng = np.random.default_rng(seed)
        names = np.unique(data["labels"])
        held = set(rng.choice(names, withheld, replace=False).tolist())
        truth = data["labels"]
        inside = np.flatnonzero(~np.isin(truth, list(held)))
        order = rng.permutation(inside)
        self.data, self.truth = data, truth
        self.trained, self.reference = order[:TRAINED], order[TRAINED : TRAINED + REFERENCE]
        rest = order[TRAINED + REFERENCE :]
        unseen = set(rest.tolist())
        typo_rows = np.flatnonzero([i in unseen for i in range(len(truth) - 3080, len(truth))])
        self.head = LogisticRegression(C=20.0, max_iter=300, tol=1e-3)
        self.head.fit(data["banking"][self.trained], truth[self.trained])
        self.labels = tuple(self.head.classes_.tolist())
        favoured = set(rng.choice(names, 10, replace=False).tolist())
        weight = np.where(np.isin(truth[rest], list(favoured)), 3.0, 1.0)
        self.prior_weight = weight / weight.sum()
        self.sources = {
            "none": ("banking", rest), "prior": ("banking", rest), "typos": ("typos", typo_rows),
            "oos": ("oos", np.arange(len(data["oos"]))), "german": ("german", np.arange(len(data["german"]))),
            "withheld": ("banking", np.flatnonzero(np.isin(truth, list(held)))),
        }  # fmt: skip

    def table(self, group: str, rows: np.ndarray) -> pa.Table:
        embedding = self.data[group][rows]
        p = self.head.predict_proba(embedding)
        score, answer = p.max(axis=1), p.argmax(axis=1)
        stats = self.data[f"{group}:stats"][rows]
        fields = text_statistics("x")._fields
        columns = {name: pa.array(stats[:, i], pa.float32()) for i, name in enumerate(fields)}
        truth = self.truth[rows].tolist() if group == "banking" else [None] * len(rows)
        return pa.table(
            {
                "label": [self.labels[i] for i in answer], "score": pa.array(score, pa.float32()),
                "abstain": pa.array(score < 0.5), "language": [""] * len(rows),
                "tokens": pa.array(self.data[f"{group}:tokens"][rows], pa.int32()),
                "probabilities": _packed(p), "embedding": _packed(embedding),
                "feedback_label": pa.array(truth, pa.string()), **columns,
            }
        )  # fmt: skip


def _packed(rows: np.ndarray) -> pa.Array:
    return pa.array([row.tobytes() for row in rows.astype("<f2")], pa.binary())


class Rows:
    """Feature rows of one kind of traffic, from which windows are drawn as sketches, equal to those of a table."""

    def __init__(self, detectors: DetectorSet, world: World, kind: str) -> None:
        group, rows = world.sources[kind]
        table = world.table(group, rows)
        self.matrix = detectors.plan.matrix(table)
        self.sample = _all_rows(detectors, table)

    def __len__(self) -> int:
        return len(self.matrix)


def _all_rows(detectors: DetectorSet, table: pa.Table) -> np.ndarray:
    """The sample's rows of every row, in the order of the table."""
    found = dataclasses.replace(detectors.plan, sample_rows=table.num_rows).sample(table)
    _, vectors = decode_float16(table["embedding"].combine_chunks(), None, "embedding")
    rows = np.empty_like(found.rows)
    rows[np.argsort(content_hash(vectors, detectors.plan.seed), kind="stable")] = found.rows
    return rows


def draw(rng: np.random.Generator, size: int, normal: Rows, other: Rows | None, share: float, weights: Any) -> list:
    """(rows of which, indices) pairs of one window."""
    drifted = int(rng.binomial(size, share)) if other is not None else 0
    picks = [(normal, rng.choice(len(normal), size - drifted, replace=False, p=weights))]
    if other is not None:
        picks.append((other, rng.choice(len(other), drifted, replace=drifted > len(other))))
    return picks


def sketch(detectors: DetectorSet, picks: list, rng: np.random.Generator) -> Sketch:
    rows = sum(len(index) for _, index in picks)
    sums = np.sum([source.matrix[index].sum(axis=0, dtype=np.float64) for source, index in picks], axis=0)
    sample = np.concatenate([source.sample[index] for source, index in picks])
    keys = rng.integers(0, 2**63, len(sample)).astype(np.uint64)
    extras = np.zeros(detectors.plan.extra_slices["latency"].stop)
    return Sketch(rows, sums, extras, Sample.of(detectors.plan.sample_rows, keys, sample), AT, AT)


def _p_values(detectors: DetectorSet, found: Sketch, seed: int) -> dict[str, float]:
    return {f"{s.column}/{s.detector}": s.p_value or 0.0 for s in detectors.scores(found, seed)}


def _kept(found: list[dict[str, float]], size: int) -> dict[str, Any]:
    """What the ROC needs."""
    return {"p": [{name: float(f"{p[name]:.3g}") for name in SHOWN} for p in found]} if size == ROC_SIZE else {}


def _alarms(detectors: DetectorSet, p: dict[str, float], size: int) -> dict[str, bool]:
    least = min(p.values())
    return {str(a): least <= detectors.calibration.level(a, size, others=1) for a in (0.05, 0.01, ALPHA)}


def ours(cache: Path, worlds: int, quiet: int, loud: int, streams: int) -> None:
    data = dict(np.load(cache / "embeddings.npz"))
    result = _saved()
    result["machine"] = _machine()
    for seed in range(worlds):
        if str(seed) in result.setdefault("worlds", {}):
            continue
        begun = time.perf_counter()
        result["worlds"][str(seed)] = _one_world(data, seed, quiet, loud, streams)
        _save(_saved() | result)
        print(f"world {seed}: {time.perf_counter() - begun:.0f} s", flush=True)


def _one_world(data: dict, seed: int, quiet: int, loud: int, streams: int) -> dict[str, Any]:
    out: dict[str, Any] = {"quiet": {}, "loud": {}, "delay": {}}
    for withheld in (0, 12):
        world = World(data, seed, withheld=withheld)
        begun = time.perf_counter()
        detectors = fit_detectors(
            world.table("banking", world.reference), POLICY, labels=world.labels, seed=seed, resamples=5000
        )
        out["fit_s"] = time.perf_counter() - begun
        rng = np.random.default_rng([seed, withheld])
        normal = Rows(detectors, world, "none")
        if not withheld:
            for size in SIZES:
                found = [sketch(detectors, draw(rng, size, normal, None, 0, None), rng) for _ in range(quiet)]
                p = [_p_values(detectors, one, i) for i, one in enumerate(found)]
                out["quiet"][str(size)] = _kept(p, size) | {"alarms": [_alarms(detectors, x, size) for x in p]}
        for name, (kind, share) in SCENARIOS.items():
            if (kind == "withheld") != bool(withheld):
                continue
            weights = world.prior_weight if kind == "prior" else None
            other = None if kind == "prior" else Rows(detectors, world, kind)
            for size in SIZES:
                found = [sketch(detectors, draw(rng, size, normal, other, share, weights), rng) for _ in range(loud)]
                p = [_p_values(detectors, one, i) for i, one in enumerate(found)]
                alarms = [_alarms(detectors, x, size)[str(ALPHA)] for x in p]
                out["loud"].setdefault(name, {})[str(size)] = _kept(p, size) | {"alarms": alarms}
            for gradual in (False, True):
                out["delay"][f"{name}, {'gradual' if gradual else 'sudden'}"] = [
                    _delay(detectors, rng, normal, other, share, weights, gradual) for _ in range(streams)
                ]
    return out


def _delay(
    detectors: DetectorSet, rng: Any, normal: Rows, other: Any, share: float, weights: Any, gradual: bool
) -> int | None:
    """Rows from the onset until the first alarm; windows of the last 500 rows, checked every 100. None: not in 6,000.

    Gradual: the drift grows from nothing to its full strength over 4,000 rows.
    """
    recent = [draw(rng, 100, normal, None, 0, None) for _ in range(5)]
    for step in range(1, 61):
        strength = min(step / 40, 1.0) if gradual else 1.0
        if other is not None:
            picks = draw(rng, 100, normal, other, share * strength, None)
        else:
            mixed = strength * weights + (1 - strength) / len(weights)
            picks = draw(rng, 100, normal, None, 0, mixed)
        recent = [*recent[1:], picks]
        found = sketch(detectors, [pick for part in recent for pick in part], rng)
        if _alarms(detectors, _p_values(detectors, found, step), 500)[str(ALPHA)]:
            return step * 100
    return None


def peers(cache: Path, alibi: str, windows: int) -> None:
    """The same kinds of windows of 500 rows, judged by Evidently's and Alibi-Detect's defaults, and by ours."""
    data = dict(np.load(cache / "embeddings.npz"))
    tally: dict[str, dict[str, list[bool]]] = {}
    arrays: dict[str, np.ndarray] = {}
    for withheld in (0, 12):
        world = World(data, 0, withheld=withheld)
        reference = world.table("banking", world.reference)
        detectors = fit_detectors(reference, POLICY, labels=world.labels, seed=0, resamples=5000)
        arrays[f"reference{withheld}"] = data["banking"][world.reference]
        rng = np.random.default_rng([7, withheld])
        for name in ("none", *PEER_SCENARIOS):
            kind, share = SCENARIOS.get(name, ("none", 0.0))
            if (kind == "withheld") != bool(withheld):
                continue
            for number in range(windows * (3 if name == "none" else 1)):
                parts = _parts(rng, world, kind, share)
                table = pa.concat_tables([world.table(group, rows) for group, rows in parts])
                votes = {"ours": detectors.judge(table, start=AT, end=AT).drifted} | evidently_decides(reference, table)
                for who, vote in votes.items():
                    tally.setdefault(name, {}).setdefault(who, []).append(bool(vote))
                arrays[f"{name}|{withheld}|{number}"] = np.concatenate([data[group][rows] for group, rows in parts])
    _save(_saved() | {"peers": tally})
    np.savez(cache / "windows.npz", **arrays)
    judged = cache / "alibi.json"
    command = [alibi, str(ROOT / "drift_alibi.py"), str(cache / "windows.npz"), str(judged)]
    subprocess.run(command, check=True)
    for name, votes in json.loads(judged.read_text()).items():
        tally[name] |= votes
    _save(_saved() | {"peers": tally})


def _parts(rng: Any, world: World, kind: str, share: float) -> list[tuple[str, np.ndarray]]:
    group, rest = world.sources["none"]
    weights = world.prior_weight if kind == "prior" else None
    drifted = 0 if kind in ("none", "prior") else int(rng.binomial(500, share))
    parts = [(group, rng.choice(rest, 500 - drifted, replace=False, p=weights))] if drifted < 500 else []
    if drifted:
        other, rows = world.sources[kind]
        parts.append((other, rng.choice(rows, drifted, replace=drifted > len(rows))))
    return parts


def _saved() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.is_file() else {}


def _save(result: dict[str, Any]) -> None:
    RESULT.write_text(json.dumps(result, separators=(",", ":")) + "\n")


def _machine() -> dict[str, Any]:
    from benchmarks.machine import describe

    return describe()


def show() -> None:
    result = _saved()
    worlds = list(result["worlds"].values())
    print("False alarms per check (95 % interval, windows taken as independent), by wanted rate")
    for alpha in ("0.05", "0.01", str(ALPHA)):
        for size in (*map(str, SIZES), "all"):
            found = [a[alpha] for w in worlds for s, q in w["quiet"].items() if size in (s, "all") for a in q["alarms"]]
            span = wilson_interval(sum(found), len(found))
            counted = f"{sum(found):3d} of {len(found)} = {np.mean(found):.4f}"
            print(f"  {float(alpha):.4f}  {size:>5} rows: {counted} [{span.low:.4f}, {span.high:.4f}]")
    print("Alarms at 1/720 by window size; rows until the first alarm (median; of those found), sudden and gradual")
    for name in SCENARIOS:
        rates = [np.mean([a for w in worlds for a in w["loud"][name][str(s)]["alarms"]]) for s in SIZES]
        delays = [[d for w in worlds for d in w["delay"][f"{name}, {how}"]] for how in ("sudden", "gradual")]
        shown = [f"{np.median([d or 6000 for d in x]):.0f} ({sum(d is not None for d in x)}/{len(x)})" for x in delays]
        print(f"  {name:30} " + " ".join(f"{rate:5.2f}" for rate in rates) + "   " + "  ".join(shown))
    _show_roc(worlds)
    print("Decisions on the same windows of 500 rows: share of alarms")
    for name, votes in result.get("peers", {}).items():
        print(f"  {name:30} " + "  ".join(f"{who} {np.mean(v):.2f}" for who, v in votes.items()))


def _show_roc(worlds: list[dict[str, Any]]) -> None:
    from sklearn.metrics import roc_auc_score

    print("Area under the ROC per detector, windows of 500 rows (drifted against not)")
    print(" " * 31 + " ".join(name.split("/")[1][:9].rjust(9) for name in SHOWN))
    for name in SCENARIOS:
        areas = []
        for detector in SHOWN:
            scores, truth = [], []
            for world in worlds:
                for drifted, p in ((0, world["quiet"]["500"]["p"]), (1, world["loud"][name]["500"]["p"])):
                    scores += [-x[detector] for x in p]
                    truth += [drifted] * len(p)
            areas.append(roc_auc_score(truth, scores))
        print(f"  {name:29}" + " ".join(f"{area:9.2f}" for area in areas))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("embed", "ours", "peers", "show"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "leitstand-drift-power")
    parser.add_argument("--alibi", default="", help="a Python with alibi-detect[torch] installed")
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--quiet", type=int, default=100, help="windows without drift per world and size")
    parser.add_argument("--loud", type=int, default=10, help="windows per world, size and scenario")
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--windows", type=int, default=10, help="per scenario, for the peers")
    args = parser.parse_args()
    if args.command == "embed":
        embed(args.model, args.cache)
    elif args.command == "ours":
        ours(args.cache, args.worlds, args.quiet, args.loud, args.streams)
    elif args.command == "peers":
        peers(args.cache, args.alibi, args.windows)
    else:
        show()


if __name__ == "__main__":
    main()
