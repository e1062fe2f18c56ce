"""A rollout in words and numbers, for the command line, Prefect's artifacts and machines. Reads only."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from flows.rollout import Controller
from monitors.gateway_counts import Arm, Tally
from monitors.rollout_evidence import arms, judge
from monitors.rollout_rules import Phase, Rollout, deadline

__all__ = ["evidence_rows", "history_rows", "markdown", "status"]


def status(control: Controller, rollout: Rollout) -> dict[str, Any]:
    """Everything that is known about a rollout, as plain values."""
    kept = control.store.evidence(rollout.rollout_id)
    tally = Tally.model_validate_json(kept) if kept else Tally()
    judgement = judge(rollout, tally)
    stable, candidate = arms(rollout, tally)
    table = control.routes.read(rollout.use_case)
    until = deadline(rollout)
    return {
        "rollout": rollout.model_dump(mode="json"),
        "percent": table.canary_percent if table else None,
        "routes": table.model_dump(mode="json") if table else None,
        "verdict": {"outcome": judgement.outcome, "reasons": judgement.reasons, "needed": judgement.needed},
        "evidence": {"stable": stable.model_dump(), "candidate": candidate.model_dump()},
        "deadline": until.isoformat() if until else None,
        "history": history_rows(control.store.history(rollout.rollout_id)),
    }


def history_rows(history: Sequence[Rollout]) -> list[list[str]]:
    """One row per revision: when, phase, weight, by whom, why."""
    return [
        [f"{each.at:%Y-%m-%d %H:%M:%S}", _phase(each), f"{each.percent:g} %", each.by, each.reason] for each in history
    ]


def evidence_rows(rollout: Rollout, stable: Arm, candidate: Arm) -> list[list[str]]:
    """One row per measure: its name, stable's value, the candidate's."""
    rows = [("requests", stable.requests, candidate.requests, "{:.0f}")]
    shares = (
        ("failed", "failed", "requests"),
        (f"slower than {rollout.slow_ms:g} ms", "slow", "requests"),
        ("doubt (mean of 1 - confidence)", "doubt", "texts"),
    )
    out = [[name, form.format(a), form.format(b)] for name, a, b, form in rows]
    out += [[name, _share(stable, part, whole), _share(candidate, part, whole)] for name, part, whole in shares]
    if candidate.compared:
        out.append(["agree with stable", "–", _share(candidate, "agree", "compared")])
    return out


def markdown(control: Controller, rollout: Rollout, now: datetime) -> str:
    """The rollout as a Markdown page: where it stands, and every step with its reason."""
    found = status(control, rollout)
    lines = [
        f"**{rollout.rollout_id}**: version {rollout.previous} → {rollout.version}, {_phase(rollout)}, "
        f"{found['percent'] or 0:g} % of requests to the candidate ({now:%Y-%m-%d %H:%M:%S} UTC)",
        "", "| when (UTC) | phase | weight | by | why |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in found["history"]]
    return "\n".join(lines)


def _phase(rollout: Rollout) -> str:
    words = rollout.phase.replace("_", " ")
    return f"{words} (was {rollout.held_from})" if rollout.phase is Phase.HELD and rollout.held_from else words


def _share(mine: Arm, part: str, whole: str) -> str:
    count = getattr(mine, whole)
    return f"{getattr(mine, part) / count:.2%}" if count else "–"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
