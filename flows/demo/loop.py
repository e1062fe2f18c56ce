"""The parts of the product that the demo calls, each in one function: the demo itself decides nothing.

Every call is what a schedule, an automation or a person would start: the drift check, the report of a window, the
retraining, the rollout. The inference log is waited for, because a check in production looks back at a closed window.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Thread

from flows import stages
from flows.demo.automation import retrain_by_event
from flows.demo.case import NAME
from flows.demo.faulty import command as faulty_command
from flows.demo.place import Place
from flows.demo.scenario import Row
from flows.deploying import LocalDeployer
from flows.loop import Loop, open_loop
from flows.monitoring import DriftCheck, Window, check_drift, report_window
from flows.retraining import PlainSteps, retrain
from flows.rollout import controller, drive
from flows.wiring import Adapters, wire
from governance.audit.opening import trail_folder
from governance.audit.reading import Reader
from governance.audit.verify_standalone import read_public_keys, verify_trail
from leitstand.errors import IntegrityError, TransientBackendError
from leitstand.types import GateReport, ModelRef, ModelVersion, RunRecord, Snapshot, utc_now
from leitstand.usecase import UseCase
from models.ledger import open_ledger
from models.loading import open_classifier
from models.tracking.compare import compare
from models.tracking.reading import find_run, read_runs
from monitors.retrainings import Retraining
from monitors.rollout_rules import Rollout
from monitors.windows import read_window

__all__ = ["Machinery", "Trained", "following", "open_machinery"]

LOG_DEADLINE_S = 60.0
POLL_S = 0.5


@dataclass(frozen=True)
class Trained:
    """A version as the lifecycle's first half leaves it."""

    snapshot: Snapshot
    run: RunRecord
    verdict: GateReport
    files: dict[str, Path]
    version: ModelVersion


@dataclass(frozen=True)
class Machinery:
    """An installation's flows, bound to the demo's place; `by_event`: Prefect starts retrainings."""

    place: Place
    adapters: Adapters
    loop: Loop
    deployer: LocalDeployer
    by_event: bool = False

    def train(self, case: UseCase) -> Trained:
        """Ingests, trains, measures, judges and registers; promotes nothing."""
        steps = PlainSteps(self.adapters)
        snapshot = steps.ingest(case)
        run = steps.train(case, snapshot, case.training.default_profile, None)
        report = steps.evaluate(case, snapshot, run)
        stages.track_evaluation(self.adapters, case, run, report)
        verdict, files = steps.gate(case, snapshot, report)
        version = steps.register(case, snapshot, run, report, verdict, files)
        return Trained(snapshot, run, verdict, files, version)

    def promote(self, trained: Trained, alias: str, reason: str) -> None:
        """Moves an alias, if the gates passed.

        Raises:
            PolicyDenied: They did not.
        """
        stages.promote(self.adapters, trained.version, trained.verdict, alias=alias, reason=reason, actor="demo")

    def serve(self, case: UseCase, version: ModelVersion) -> str:
        """Packages the version and sends all traffic to it; returns the Bento's tag."""
        bento = stages.package(self.adapters, case, version)
        stages.deploy(self.adapters, self.deployer, case, bento)
        return bento.tag

    def check(self, case: UseCase, start: datetime, requests: int) -> DriftCheck:
        """The drift check of the window from `start` to now, once the log holds its requests."""
        end = utc_now() + timedelta(milliseconds=1)
        self._wait_for_log(start, end, requests)
        return check_drift(self.loop, case, Window(start, end), now=end)

    def report(self, case: UseCase, check: DriftCheck) -> Path:
        """The Evidently page of a checked window."""
        window = Window(check.report.window_start, check.report.window_end)
        return report_window(self.loop, case, window, now=utc_now())

    def retrain(self, case: UseCase, check: DriftCheck, say: Callable[[str], None]) -> Retraining | None:
        """What follows from a check that decided *retrain*: by Prefect's automation, or the same function here."""
        if self.by_event:
            return retrain_by_event(check, self.loop.retrainings, say)
        decision = check.decision
        reason = "; ".join(decision.reasons)[:500]
        control = controller(self.adapters)
        return retrain(self.loop, control, case, trigger=decision.report_digest, reason=reason)

    def reference(self, case: UseCase, version: int) -> None:
        """Makes what windows of the version are compared with, before traffic and not during a check."""
        from flows.reference import reference_of

        reference_of(self.adapters, case, version)

    def begin_without_gates(self, case: UseCase, version: ModelVersion) -> Rollout:
        """Starts a rollout of a version that the gates refused, whose Bento fails on some requests.

        Only the demo does this; `flows.rollout.start` refuses such versions.
        """
        bento = stages.package(self.adapters, case, version)
        control = controller(self.adapters, self._faulty)
        reason = "demo: gates bypassed on purpose, to show the canary's own judgement"
        return control.begin(case, tag=bento.tag, version=version.version, actor="demo", reason=reason)

    def drive(self, rollout_id: str, watch: Callable[[Rollout], None], *, faulty: bool = False) -> Rollout:
        """Takes a rollout to its end."""
        control = controller(self.adapters, self._faulty if faulty else self.deployer)
        return drive(control, rollout_id, watch=watch, poll_s=POLL_S)

    def fit(self, case: UseCase) -> RunRecord:
        """Ingests and trains; measures and registers nothing."""
        steps = PlainSteps(self.adapters)
        return steps.train(case, steps.ingest(case), case.training.default_profile, None)

    def right(self, case: UseCase, folder: Path, rows: Sequence[Row]) -> list[bool]:
        """Whether the model in `folder` sends each row to its true queue."""
        classifier = open_classifier(folder, engine=case.serving.engine, precision=case.serving.precision)
        labels = classifier.predict([row.text for row in rows]).labels
        return [label == row.label for label, row in zip(labels, rows, strict=True)]

    def model_folder(self, version: ModelVersion) -> Path:
        """Where a registered version's files lie, verified."""
        return stages.model_folder(self.adapters, version)

    def verify_ledger(self) -> int:
        """Checks the promotion ledger against itself and the registry; returns the number of entries.

        Raises:
            IntegrityError: It was changed.
        """
        count = open_ledger(self.place.settings).verify()
        self.adapters.registry.verify_moves(NAME)
        return count

    def verify_audit(self) -> tuple[int, frozenset[str]]:
        """Checks every audit record; returns their number, and the ids of the requests that have one.

        Raises:
            IntegrityError: A record was changed, removed or added.
        """
        folder = trail_folder(self.place.settings)
        result = verify_trail(folder, read_public_keys(sorted((folder / "public_keys").glob("*.pem"))))
        if result.all_problems:
            raise IntegrityError(f"The audit trail does not hold: {result.all_problems[0]}")
        return result.records, frozenset(record.request_id for record in Reader(folder).records())

    def ledger_rows(self) -> list[list[str]]:
        """One row per move of an alias: when, alias, from, to, by whom, why, hash."""
        return [
            [
                f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.alias, str(entry.previous or "–"), str(entry.version or "–"),
                entry.actor, entry.reason, entry.hash[:23],
            ]
            for entry in open_ledger(self.place.settings).entries(NAME)
        ]  # fmt: skip

    def compare(self, run_ids: Sequence[str], out: Path) -> Path:
        """Writes the page with training runs side by side."""
        known = read_runs(self.place.home, use_case=NAME)
        return compare([find_run(known, run_id) for run_id in dict.fromkeys(run_ids)], out)

    def version_pages(self, version: int) -> list[tuple[str, Path]]:
        """Gate report and model card of a version, copied from the registry."""
        ref = ModelRef(name=NAME, version=version)
        out = self.place.home / "reports" / f"{NAME}-{version}"
        out.mkdir(parents=True, exist_ok=True)
        titles = {"gate_report.html": "Gate report", "model_card.html": "Model card"}
        return [
            (f"{title} of {NAME}:{version}", self.adapters.registry.attachment(ref, name, out))
            for name, title in titles.items()
        ]

    @property
    def _faulty(self) -> LocalDeployer:
        """Knows the running Bentos as the ordinary deployer does, and starts new ones with a fault."""
        return LocalDeployer(self.place.settings, command=faulty_command)

    def _wait_for_log(self, start: datetime, end: datetime, requests: int) -> None:
        deadline = time.monotonic() + LOG_DEADLINE_S
        while True:
            rows = read_window(self.loop.log, NAME, start, end, route="stable", columns=["request_id"]).num_rows
            if rows >= requests:
                return
            if time.monotonic() > deadline:
                raise TransientBackendError(f"The inference log holds {rows} of {requests} answers after a minute")
            time.sleep(POLL_S)


def open_machinery(place: Place, *, by_event: bool = False) -> Machinery:
    """Builds the adapters of the demo's home; `open_place` has moved the process there."""
    wire.cache_clear()
    adapters = wire()
    return Machinery(place, adapters, open_loop(adapters), LocalDeployer(place.settings), by_event)


@contextmanager
def following(work: Callable[[], Rollout]) -> Iterator[list[Rollout]]:
    """Drives a rollout beside the block; the list holds its final state after the block.

    An error of the rollout is raised at the block's end.
    """
    final: list[Rollout] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            final.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, name="rollout", daemon=True)
    thread.start()
    yield final
    thread.join()
    if errors:
        raise errors[0]
