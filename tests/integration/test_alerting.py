"""The alert centre: every trouble reaches every living sink once; a dead one loses nothing and stops nobody."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from leitstand.errors import PermanentBackendError, TransientBackendError
from leitstand.settings import AlertSettings, Settings
from leitstand.types import Action, Alert, Decision, Finding, Severity
from monitors.alerting import AlertCentre, open_alert_centre
from monitors.alerts import AlertChange, AlertRules, change_of, make_alert

START = datetime(2026, 11, 24, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass
class Sink:
    """Remembers what it took; `failure` is raised while set."""

    name: str
    failure: Exception | None = None
    refused: str = "(none)"
    taken: list[tuple[str, bool]] = field(default_factory=list)
    tries: int = 0

    def send(self, alert: Alert) -> None:
        self.tries += 1
        if self.failure:
            raise self.failure
        if alert.title == self.refused:
            raise PermanentBackendError("refused")
        self.taken.append((alert.key, alert.resolved))


@dataclass
class Office:
    """A centre with two sinks and a clock that stands still until it is told to move."""

    centre: AlertCentre
    good: Sink
    bad: Sink
    now: datetime = START

    def wait(self, span: timedelta) -> None:
        self.now += span


def office_at(path: Path) -> Office:
    good, bad = Sink("good"), Sink("bad")
    made = Office(None, good, bad)  # type: ignore[arg-type]
    made.centre = AlertCentre(path, (good, bad), AlertRules(), clock=lambda: made.now)
    return made


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = office_at(tmp_path / "alerts.db")
    yield made
    made.centre.close()


def trouble(kind: str = "quality-loss", severity: Severity = Severity.WARNING, title: str = "trouble") -> AlertChange:
    return AlertChange(raised=(make_alert(kind, "support", severity, title, "why", now=START),))


CALM = AlertChange(cleared=("support/quality-loss",))
LOSS, LOSS_ENDED = ("support/quality-loss", False), ("support/quality-loss", True)


def test_trouble_reaches_every_sink_once_and_so_does_its_end(office: Office):
    for change in (trouble(), trouble(), CALM, CALM, CALM):
        office.centre.report(change)
    assert office.good.taken == office.bad.taken == [LOSS, LOSS_ENDED]
    assert office.centre.waiting() == 0 and office.centre.troubles() == []


@pytest.mark.parametrize("failure", [TransientBackendError("dead"), PermanentBackendError("no"), KeyError("a bug")])
def test_a_sink_that_fails_neither_breaks_the_caller_nor_the_other_sink(office: Office, failure: Exception):
    office.bad.failure = failure
    assert len(office.centre.report(trouble())) == 1
    assert office.good.taken == [LOSS] and office.centre.waiting() == 1
    office.bad.failure = None
    assert office.centre.deliver() == 1 and office.bad.tries == 1  # not due yet
    office.wait(MINUTE)
    assert office.centre.deliver() == 0
    assert office.bad.taken == [LOSS] and office.good.taken == [LOSS]


def test_pauses_grow_to_an_hour_and_end_with_the_time_to_keep(office: Office):
    office.bad.failure = TransientBackendError("dead")
    office.centre.report(trouble())
    for _ in range(8 * 24 * 60):
        office.wait(MINUTE)
        if office.centre.deliver() == 0:
            break
    assert office.now - START == timedelta(days=7) + MINUTE
    assert 7 * 24 <= office.bad.tries <= 7 * 24 + 8


def test_an_old_alarm_never_follows_its_end(office: Office):
    office.bad.failure = TransientBackendError("dead")
    office.centre.report(trouble())
    office.bad.failure = None
    office.centre.report(CALM)
    office.centre.report(CALM)
    office.wait(timedelta(hours=2))
    office.centre.deliver()
    assert office.bad.taken == [LOSS_ENDED]


def test_an_alert_that_is_refused_does_not_hold_up_the_others(office: Office):
    office.bad.refused = "poison"
    office.centre.report(AlertChange(raised=trouble(title="poison").raised + trouble("drift-detected").raised))
    assert office.bad.taken == [("support/drift-detected", False)] and office.centre.waiting() == 1


def test_a_dead_sink_is_tried_once_per_round(office: Office):
    office.bad.failure = TransientBackendError("dead")
    kinds = ("quality-loss", "drift-detected", "service-failing")
    office.centre.report(AlertChange(raised=tuple(trouble(kind).raised[0] for kind in kinds)))
    assert office.bad.tries == 1 and office.centre.waiting() == 3


def test_state_outlives_the_process(tmp_path: Path):
    first = office_at(tmp_path / "alerts.db")
    first.bad.failure = TransientBackendError("dead")
    first.centre.report(trouble())
    first.centre.close()
    second = office_at(tmp_path / "alerts.db")
    second.wait(timedelta(minutes=5))
    assert second.centre.report(trouble()) == []  # told already
    assert second.bad.taken == [LOSS] and second.good.taken == []
    assert [alert.key for alert in second.centre.troubles()] == ["support/quality-loss"]
    second.centre.close()


def test_the_same_trouble_seen_by_many_at_once_is_told_once(tmp_path: Path):
    offices = [office_at(tmp_path / "alerts.db") for _ in range(6)]
    gate = threading.Barrier(len(offices))

    def see(office: Office) -> int:
        gate.wait()
        told = office.centre.report(trouble())
        office.centre.close()
        return len(told)

    with ThreadPoolExecutor(len(offices)) as pool:
        assert sum(pool.map(see, offices)) == 1
    assert sum(len(office.good.taken) for office in offices) == 1


def test_an_alert_goes_out_even_when_its_state_cannot_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "alerts.db").mkdir()
    office = office_at(tmp_path / "alerts.db")
    office.bad.failure = TransientBackendError("dead")
    assert len(office.centre.report(trouble())) == 1
    assert office.good.taken == [LOSS] and office.centre.deliver() == 0
    assert "alert state cannot be written" in capsys.readouterr().out


def test_unreadable_state_does_not_silence_alerts(office: Office):
    office.centre.report(trouble())
    with office.centre._file.transaction() as connection:
        connection.execute("UPDATE troubles SET record = '{'")
    assert len(office.centre.report(trouble())) == 1
    assert office.good.taken == [LOSS, LOSS]


def test_decisions_drive_the_centre(office: Office):
    def decision(finding: Finding, action: Action) -> Decision:
        return Decision(use_case="support", version=3, at=office.now, action=action, reasons=("r",), finding=finding)

    for made in (decision(Finding.LOSS, Action.RETRAIN), *[decision(Finding.HEALTHY, Action.NOTHING)] * 2):
        office.centre.report(change_of(made))
    assert office.good.taken == [LOSS, LOSS_ENDED]


def test_without_sinks_the_log_is_told_and_nothing_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    centre = open_alert_centre(Settings(home=tmp_path, alerts=AlertSettings()))
    centre.report(trouble())
    assert centre.waiting() == 0 and centre.deliver() == 0
    assert "leitstand.alert.told" in capsys.readouterr().out
    centre.close()
