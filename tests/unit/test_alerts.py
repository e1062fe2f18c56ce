"""Trouble is told when it begins, worsens, lasts and ends: neither lost nor repeated without need."""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leitstand.settings import AlertSettings, Settings, SmtpSettings
from leitstand.types import Action, Alert, Decision, Finding, Severity
from monitors.alerts import KINDS, AlertRules, Trouble, change_of, cleared, make_alert, raised

NOW = datetime(2026, 11, 24, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RULES = AlertRules(repeat_after=timedelta(hours=12), cool_down=timedelta(hours=1), steady=2)


def alert(severity: Severity = Severity.WARNING, at: datetime = NOW) -> Alert:
    return make_alert("quality-loss", "support", severity, "quality loss", "accuracy 0.80", now=at)


class Story:
    """Observations minute by minute, and what was told."""

    def __init__(self) -> None:
        self.trouble: Trouble | None = None
        self.told: list[tuple[int, str, bool]] = []

    def see(self, minute: int, severity: Severity | None) -> None:
        now = NOW + minute * MINUTE
        if severity is None:
            self.trouble, out = cleared(self.trouble, RULES, now)
        else:
            self.trouble, out = raised(self.trouble, alert(severity, now), RULES, now)
        if out:
            self.told.append((minute, out.severity.value, out.resolved))


def told(*seen: Severity | None, every: int = 1) -> list[tuple[int, str, bool]]:
    story = Story()
    for position, severity in enumerate(seen):
        story.see(position * every, severity)
    return story.told


W, C = Severity.WARNING, Severity.CRITICAL


def test_lasting_trouble_is_told_once():
    assert told(*[W] * 50) == [(0, "warning", False)]


def test_lasting_trouble_is_told_again_after_a_while():
    assert told(*[W] * 26, every=60) == [(0, "warning", False), (720, "warning", False), (1440, "warning", False)]


def test_a_worse_severity_is_told_at_once_and_a_milder_one_is_not():
    assert told(W, C, W, C) == [(0, "warning", False), (1, "critical", False)]


def test_the_end_is_told_once_after_steady_calm():
    assert told(W, None, W, None, None, None) == [(0, "warning", False), (4, "warning", True)]


def test_what_never_began_does_not_end():
    assert told(None, None, None) == []


def test_trouble_that_flaps_is_held_back_until_it_lasts():
    assert told(W, None, None, W, None, None, W, None, None) == [(0, "warning", False), (2, "warning", True)]
    assert told(W, None, None, W, W)[2:] == [(4, "warning", False)]


def test_critical_trouble_is_never_held_back():
    assert told(W, None, None, C)[2:] == [(3, "critical", False)]


def test_trouble_that_returns_later_is_new():
    assert told(W, None, None, None, W, every=61)[2:] == [(244, "warning", False)]


def test_a_clock_that_went_back_tells_again_rather_than_never():
    trouble, _ = raised(None, alert(), RULES, NOW + timedelta(days=400))
    _, out = raised(trouble, alert(), RULES, NOW)
    assert out is not None and out.notification == 2


def test_the_beginning_and_the_count_stay_with_the_trouble():
    trouble, first = raised(None, alert(), RULES, NOW)
    trouble, second = raised(trouble, alert(C, NOW + MINUTE), RULES, NOW + MINUTE)
    assert first is not None and second is not None
    assert (first.notification, second.notification) == (1, 2) and second.starts_at == NOW
    for _ in range(2):
        trouble, end = cleared(trouble, RULES, NOW + 3 * MINUTE)
    assert end is not None and (end.notification, end.resolved_at, end.starts_at) == (3, NOW + 3 * MINUTE, NOW)


@given(st.lists(st.sampled_from([None, *Severity]), max_size=60))
def test_what_is_told_alternates_and_what_lasts_was_told(seen: list[Severity | None]):
    story = Story()
    for minute, severity in enumerate(seen):
        story.see(minute, severity)
    ends = [resolved for _, _, resolved in story.told]
    assert not any(a and b for a, b in pairwise(ends)) and (not ends or not ends[0])
    assert sum(not end for end in ends) <= 3 * (1 + sum(ends))  # once per severity between two ends
    if len(seen) >= 2 and seen[-1] is not None and seen[-2] is not None:
        assert story.told and not story.told[-1][2]
    if story.trouble:
        assert Trouble.model_validate_json(story.trouble.model_dump_json()) == story.trouble


@pytest.mark.parametrize(
    ("finding", "action", "kind", "severity"),
    [
        (Finding.HARMLESS, Action.WARN, "drift-detected", Severity.INFO),
        (Finding.UNCERTAIN, Action.ASK, "drift-detected", Severity.WARNING),
        (Finding.LOSS, Action.RETRAIN, "quality-loss", Severity.WARNING),
        (Finding.LOSS, Action.ASK, "quality-loss", Severity.CRITICAL),
        (Finding.LOSS, Action.ROLL_BACK, "quality-loss", Severity.CRITICAL),
        (Finding.FAILING, Action.ASK, "service-failing", Severity.CRITICAL),
        (Finding.UNJUDGED, Action.WARN, "monitoring-blind", Severity.WARNING),
    ],
)
def test_a_decision_raises_the_alert_of_its_finding(finding: Finding, action: Action, kind: str, severity: Severity):
    made = Decision(use_case="support", version=3, at=NOW, action=action, reasons=("a", "b"), finding=finding)
    change = change_of(made)
    assert [(a.key, a.severity) for a in change.raised] == [(f"support/{kind}", severity)]
    assert change.raised[0].body == "Version 3. a; b" and f"support/{kind}" not in change.cleared


def test_a_healthy_window_clears_and_an_unjudged_one_does_not():
    made = Decision(
        use_case="support", version=3, at=NOW, action=Action.NOTHING, reasons=("a",), finding=Finding.HEALTHY
    )
    assert "support/quality-loss" in change_of(made).cleared and not change_of(made).raised
    assert not change_of(made.model_copy(update={"finding": Finding.UNJUDGED})).cleared
    assert not change_of(made.model_copy(update={"finding": None})).cleared


def test_every_kind_has_a_runbook_and_every_runbook_an_alert(project: Path):
    pages = {path.stem for path in (project / "docs" / "runbooks").glob("*.md")} - {"README"}
    rules = (project / "deploy" / "prometheus" / "rules.yml").read_text()
    of_prometheus = set(re.findall(r"runbook_url: docs/runbooks/([a-z-]+)\.md", rules))
    assert pages == set(KINDS) | of_prometheus


def test_an_alert_of_no_kind_is_refused():
    with pytest.raises(ValueError, match="no alert is called 'x'; there are drift-detected"):
        make_alert("x", "support", W, "t", "b", now=NOW)
    link = make_alert("quality-loss", "support", W, "t", "b", now=NOW, runbooks="https://host/r/").runbook
    assert link == "https://host/r/quality-loss.md"


def test_a_password_is_not_sent_unencrypted_outside_local():
    smtp = SmtpSettings.model_validate({"host": "h", "password": "p", "starttls": False})
    with pytest.raises(ValueError, match=r"alerts\.smtp\.starttls"):
        Settings(environment="production", alerts=AlertSettings(smtp=smtp))
