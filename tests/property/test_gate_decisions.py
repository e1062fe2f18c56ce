"""A better number never gets a worse verdict, whatever the gate."""

from pathlib import Path

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from leitstand.files import digest_bytes
from leitstand.types import EvaluationReport, GateOutcome, Metric, utc_now
from leitstand.usecase import ChampionRule, GateSpec
from models.evidence import Evidence
from models.gates import judge
from models.metrics import wilson

RANK = {GateOutcome.FAIL: 0, GateOutcome.INSUFFICIENT: 1, GateOutcome.PASS: 2}
N = 200


def evidence(right: np.ndarray) -> Evidence:
    labels = np.arange(N) % 2
    units = {("accuracy", None): (np.arange(N), right.astype(float))}
    return Evidence(labels, np.where(right == 1, labels, 1 - labels), np.full(N, 0.9), np.ones(N), 2, units)


def report(right: np.ndarray, name: str) -> EvaluationReport:
    metric = Metric(name="accuracy", value=float(right.mean()), examples=N, interval=wilson(int(right.sum()), N))
    digest = digest_bytes(name.encode())
    return EvaluationReport(
        use_case="x", weights_digest=digest, data_digest=digest, split="test", evaluated_at=utc_now(), engine="fake",
        metrics=(metric,), predictions=Path("none"),
    )  # fmt: skip


@given(
    seed=st.integers(0, 2**16),
    floor=st.floats(0, 1),
    margin=st.sampled_from([0.0, 0.01, 0.1]),
    decide_by=st.sampled_from(["estimate", "interval"]),
    minimum=st.sampled_from([50, 500]),
    alpha=st.sampled_from([0.01, 0.05, 0.2]),
)
def test_one_more_right_answer_never_worsens_the_verdict(
    seed: int, floor: float, margin: float, decide_by: str, minimum: int, alpha: float
) -> None:
    rng = np.random.default_rng(seed)
    champion, mine = (rng.random((2, N)) < rng.random()).astype(int)
    assume((mine == 0).any())
    better = mine.copy()
    better[rng.choice(np.flatnonzero(mine == 0))] = 1
    gate = GateSpec.model_validate(
        {"metric": "accuracy", "floor": floor, "decide_by": decide_by, "min_examples": minimum}
        | {"champion": ChampionRule(test="mcnemar", margin=margin, alpha=alpha)}
    )
    rival = (report(champion, "champion"), evidence(champion))
    before, after = (judge(gate, report(r, "candidate"), evidence(r), rival) for r in (mine, better))
    assert RANK[after.outcome] >= RANK[before.outcome]
    assert (before.missed_by is None) == (float(mine.mean()) >= floor)
