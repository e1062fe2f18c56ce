"""How often the canary test errs, how soon it decides, and what a peeked z-test would do instead.

python -m benchmarks.canary [--runs 500] [--out benchmarks/results/canary.json] [--table]

Each run routes requests one by one at the canary's weight and looks after every canary request. ``--table`` prints the
table of sample sizes of docs/explanation/decisions.md from the saved result.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.machine import describe
from leitstand.files import write_text
from leitstand.usecase import RolloutSpec
from monitors.canary import harm_alpha
from monitors.sequential import log_evidence_harm, log_evidence_noninferior, log_mixture

RATE = 20.0
"""Requests per second of the whole service, as in the requirement."""
Arms = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Test = Callable[..., np.ndarray]


def arms(stable: float, canary: float, weight: float, runs: int, looks: np.ndarray, rng: np.random.Generator) -> Arms:
    """Running (sums, counts) of both arms when the canary has answered `looks` requests; (runs, looks)."""
    steps = np.diff(looks, prepend=0)
    between = rng.negative_binomial(steps, weight, (runs, len(looks)))  # stable requests meanwhile
    s_sum = np.cumsum(rng.binomial(between, stable), 1)
    c_sum = np.cumsum(rng.binomial(steps, canary, (runs, len(looks))), 1)
    return (s_sum, np.cumsum(between, 1)), (c_sum, np.broadcast_to(looks, (runs, len(looks))))


def every(length: int) -> np.ndarray:
    """A look after each canary request."""
    return np.arange(1, length + 1)


def reached(test: Test, counts: Arms, margin: float, threshold: float) -> np.ndarray:
    """Where the evidence is at least `threshold`. Computed only where its value at one point of the hypothesis is."""
    (s_sum, s_count), (c_sum, c_count) = counts
    mean = np.clip(s_sum / np.maximum(s_count, 1), 1e-9, 1 - margin - 1e-9)
    found = log_mixture(s_sum, s_count, mean) + log_mixture(c_sum, c_count, mean + margin) >= threshold
    some = (s_sum[found], s_count[found]), (c_sum[found], c_count[found])
    found[found] = test(*some, margin) >= threshold
    return found


def z_test(counts: Arms, margin: float, alpha: float) -> np.ndarray:
    """Whether the fixed-sample one-sided z-test (pooled, from 30 canary requests on) calls the canary worse."""
    (s_sum, s_count), (c_sum, c_count) = counts
    s_count = np.maximum(s_count, 1)
    pooled = (s_sum + c_sum) / (s_count + c_count)
    deviation = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / s_count + 1 / c_count))
    z = (c_sum / c_count - s_sum / s_count - margin) / deviation
    return (z > stats.norm.isf(alpha)) & (c_count >= 30)


def first(decided: np.ndarray) -> np.ndarray:
    """Canary requests until the first decision; infinite without one."""
    return np.where(decided.any(1), decided.argmax(1) + 1.0, np.inf)


def rate(decided: np.ndarray) -> dict[str, float]:
    """Share of runs that ever decided, with its 95 % Clopper-Pearson interval."""
    hits, runs = int(decided.any(1).sum()), decided.shape[0]
    interval = stats.binomtest(hits, runs).proportion_ci()
    return {"rate": hits / runs, "low": round(interval.low, 4), "high": round(interval.high, 4)}


def delays(taken: np.ndarray, weight: float) -> dict[str, Any]:
    """Quantiles of canary requests, and of seconds at 20 requests/s."""
    quantiles = {f"p{q}": float(np.quantile(taken, q / 100, method="higher")) for q in (10, 50, 90, 99)}
    shown = {name: (int(value) if np.isfinite(value) else None) for name, value in quantiles.items()}
    seconds = {
        name: (round(value / weight / RATE) if np.isfinite(value) else None) for name, value in quantiles.items()
    }
    return {"decided": float(np.isfinite(taken).mean()), "canary_requests": shown, "seconds_at_20_per_s": seconds}


def type_one(runs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Wrong calls under continuous peeking over 3,000 canary requests, at alpha 0.05."""
    rows = []
    for stable, margin, weight in ((0.01, 0.02, 0.01), (0.01, 0.02, 0.5), (0.2, 0.05, 0.5), (0.05, 0.0, 0.05)):
        at_margin = arms(stable, stable + margin, weight, runs, every(3000), rng)
        harm = reached(log_evidence_harm, at_margin, margin, -np.log(0.05))
        proven = reached(log_evidence_noninferior, at_margin, margin, -np.log(0.05))
        rows.append(
            {
                "stable": stable, "canary": stable + margin, "margin": margin, "weight": weight, "alpha": 0.05,
                "wrong_harm": rate(harm), "wrong_no_harm": rate(proven),
                "peeked_z_test_wrong_harm": rate(z_test(at_margin, margin, 0.05)),
                "z_test_at_the_end_only": rate(z_test(at_margin, margin, 0.05)[:, -1:]),
            }
        )  # fmt: skip
    return rows


def rollback(runs: int, rng: np.random.Generator, policy: RolloutSpec) -> list[dict[str, Any]]:
    """Canary requests until harm is proven, at the level that the default policy gives one test."""
    rows = []
    for stable, canary, margin, weight in (
        (0.001, 1.0, 0.02, 0.01), (0.01, 1.0, 0.02, 0.01), (0.1, 1.0, 0.02, 0.01), (0.01, 0.5, 0.02, 0.01),
        (0.01, 0.2, 0.02, 0.05), (0.01, 0.1, 0.02, 0.05), (0.01, 0.05, 0.02, 0.25), (0.01, 0.01, 0.02, 0.05),
    ):  # fmt: skip
        length = 3000 if canary < 0.1 else 1000 if canary < 0.2 else 400 if canary < 0.5 else 60
        counts = arms(stable, canary, weight, runs, every(length), rng)
        decided = reached(log_evidence_harm, counts, margin, -np.log(harm_alpha(policy)))
        decided[:, : policy.min_requests_harm - 1] = False
        rows.append(
            {"stable": stable, "canary": canary, "margin": margin, "weight": weight, **delays(first(decided), weight)}
        )
    return rows


def sizes(runs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Canary requests until an equal canary is proven, for error rates x margins (alpha 0.05)."""
    rows = []
    for share in (0.001, 0.01, 0.05, 0.1):
        for margin in (0.01, 0.02, 0.04, 0.08, 0.1):
            for weight in (0.01, 0.5):
                length = int(min(120_000, 120 * (share + margin) / margin**2 + 400))
                looks = np.unique(np.geomspace(5, length, 250).astype(int))
                counts = arms(share, share, weight, runs, looks, rng)
                decided = reached(log_evidence_noninferior, counts, margin, -np.log(0.05))
                taken = np.where(decided.any(1), looks[decided.argmax(1)].astype(float), np.inf)
                rows.append({"share": share, "margin": margin, "weight": weight, **delays(taken, weight)})
    return rows


def within_a_minute(policy: RolloutSpec, runs: int, rng: np.random.Generator) -> dict[str, float]:
    """How surely a canary of errors only is rolled back within 60 s at 20 requests/s and 1 %."""
    counts = arms(0.005, 1.0, 0.01, runs, every(30), rng)
    decided = reached(log_evidence_harm, counts, 0.02, -np.log(harm_alpha(policy)))
    decided[:, : policy.min_requests_harm - 1] = False
    needed = first(decided)
    total = np.take_along_axis(counts[0][1], (needed - 1).astype(int)[:, None], 1)[:, 0] + needed
    return {
        "canary_requests_needed": float(np.median(needed)),
        "decided_within_60_s": float(np.mean(total <= 60 * RATE)),
        "median_s": round(float(np.median(total)) / RATE, 1),
        "p99_s": round(float(np.quantile(total, 0.99)) / RATE, 1),
    }


def table(result: dict[str, Any]) -> str:
    """Median / 90 % of canary requests, per error rate and margin, at equal weights."""
    rows = [row for row in result["sizes"] if row["weight"] == 0.5]
    margins = sorted({row["margin"] for row in rows})
    lines = ["| error rate | " + " | ".join(f"margin {m:g}" for m in margins) + " |", "|---" * (len(margins) + 1) + "|"]
    for share in sorted({row["share"] for row in rows}):
        cells = [row["canary_requests"] for m in margins for row in rows if (row["share"], row["margin"]) == (share, m)]
        shown = " | ".join(f"{c['p50']:,} / {c['p90']:,}" if c["p90"] else f"{c['p50']} / more" for c in cells)
        lines.append(f"| {share:.1%} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/canary.json"))
    parser.add_argument("--table", action="store_true", help="print the table of the saved result")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return
    rng, policy, begin = np.random.default_rng(args.seed), RolloutSpec(), time.monotonic()
    result = {
        "machine": describe(), "runs": args.runs, "seed": args.seed, "harm_alpha": harm_alpha(policy),
        "broken_canary": within_a_minute(policy, max(args.runs, 2000), rng),
        "type_one": type_one(args.runs, rng),
        "rollback": rollback(args.runs, rng, policy),
        "sizes": sizes(max(50, args.runs // 5), rng),
    }  # fmt: skip
    result["seconds"] = round(time.monotonic() - begin, 1)
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"{result['seconds']} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
