"""What a gate may say: which metrics and slices exist, which way is better, what can be compared how.

`check_gates` finds a gate that could never be decided before anything is trained.
"""

import difflib

from leitstand.errors import ConfigurationError, bounded
from leitstand.usecase import ChampionRule, GateSpec, UseCase
from models.slices import catalog

__all__ = ["FACTS", "LABELLED", "UNIT_MEANS", "check_gates", "show", "sign_of"]

FACTS = frozenset({"size_mb"})
"""Metrics without sampling error: no minimum of rows, no interval."""

UNIT_MEANS = frozenset(
    {"accuracy", "coverage", "brier", "nll", "robustness_flip_rate", "counterfactual_flip_rate",
     "counterfactual_misroute_rate", "counterfactual_bias", "counterfactual_accuracy"}
)  # fmt: skip
"""Metrics that are a mean over units, so that any slice of them can be compared in pairs."""

LABELLED = frozenset(
    {"accuracy", "brier", "nll", "counterfactual_accuracy", "macro_f1", "weighted_f1", "ece", "accuracy_answered"}
)
"""Metrics that compare answers with true labels; the others only look at answers."""

_ROW_STATISTICS = frozenset({"macro_f1", "weighted_f1", "ece", "accuracy_answered"})
_MORE_IS_BETTER = frozenset(
    {"accuracy", "coverage", "accuracy_answered", "macro_f1", "weighted_f1", "throughput", "counterfactual_accuracy"}
)
_NOT_SHARES = frozenset({"brier", "nll", "latency_p50_ms", "latency_p99_ms", "throughput", "size_mb"})


def sign_of(gate: GateSpec) -> int:
    """1 when more is better (a floor), -1 when less is (a ceiling)."""
    return 1 if gate.floor is not None else -1


def show(metric: str, value: float | None) -> str:
    """The value as a reason prints it: four digits for shares, one for milliseconds and megabytes."""
    if value is None:
        return "nothing"
    if metric == "throughput":
        return f"{value:.0f}"
    return f"{value:.1f}" if metric in _NOT_SHARES - {"brier", "nll"} else f"{value:.4f}"


def check_gates(use_case: UseCase) -> None:
    """Checks every gate of the use case against what an evaluation measures.

    Raises:
        ConfigurationError: Naming each gate that cannot be decided, and what exists instead.
    """
    known = catalog(use_case)
    problems = [
        f"gates.{place} ({gate.name}): {problem}"
        for place, gate in enumerate(use_case.gates)
        for problem in _problems(gate, known)
    ]
    if problems:
        raise ConfigurationError(
            "\n".join([f"Use case '{use_case.name}' has gates that cannot be decided:", *problems]),
            hint="correct these gates in usecase.yaml",
        )


def _problems(gate: GateSpec, known: dict[str, tuple[str | None, ...]]) -> list[str]:
    if gate.metric not in known:
        return [f"unknown metric '{gate.metric}'; {_instead(gate.metric, list(known))}"]
    if gate.slice not in known[gate.metric]:
        slices = [at for at in known[gate.metric] if at]
        if not slices:
            return [f"'{gate.metric}' has no slices; remove `slice: {gate.slice}`"]
        if gate.slice is None:
            return [f"'{gate.metric}' is measured on slices only; add `slice:` with one of: {bounded(slices, 40)}"]
        return [f"unknown slice '{gate.slice}' of {gate.metric}; {_instead(gate.slice, slices)}"]
    found = []
    better, bound = gate.metric in _MORE_IS_BETTER, gate.floor if gate.floor is not None else gate.ceiling
    if better != (gate.floor is not None):
        found.append(f"{'more' if better else 'less'} is better here; use `{'floor' if better else 'ceiling'}`")
    if gate.metric not in _NOT_SHARES and not 0 <= (bound or 0) <= 1:
        found.append(f"a share lies between 0 and 1; {bound} does not (92 % is written 0.92)")
    return found + _champion_problems(gate, gate.champion)


def _champion_problems(gate: GateSpec, rule: ChampionRule | None) -> list[str]:
    if rule is None:
        return []
    whole_only = gate.metric in _ROW_STATISTICS and gate.slice is None
    if gate.metric not in UNIT_MEANS and not whole_only:
        able = sorted(UNIT_MEANS | _ROW_STATISTICS)
        return [
            f"cannot be compared with the champion row by row; remove `champion` (possible for {bounded(able, 20)})"
        ]
    binary = gate.metric in {"accuracy", "coverage"} or (gate.metric == "robustness_flip_rate" and gate.slice)
    if rule.test == "mcnemar" and not binary:
        return ["McNemar's test needs a yes or no per row; use `test: bootstrap`"]
    return []


def _instead(wrong: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    return (f"did you mean '{close[0]}'? " if close else "") + f"there are: {bounded(sorted(known), 40)}"
