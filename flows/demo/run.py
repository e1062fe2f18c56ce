"""The demo's story, step by step. Each step says what it will do and why, does it with real parts, and checks it.

A step whose promise is not kept ends the demo with an error that names it; what it had started is stopped.
"""

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from flows.demo.agents import POISONED, Said, labels_of
from flows.demo.automation import start_prefect
from flows.demo.case import DIFFERENCES, NAME, admit, read_rows, write_case
from flows.demo.loop import Machinery, Trained, following, open_machinery
from flows.demo.place import Place
from flows.demo.scenario import Drawn, Row, Scenario, draw
from flows.demo.timeline import Link, Timeline
from flows.demo.traffic import Answer, Client, Stream, accuracy
from flows.monitoring import DriftCheck
from leitstand.errors import LeitstandError, PolicyDenied
from leitstand.files import atomic_path
from leitstand.types import Action, Finding, ModelRef, ModelVersion, utc_now
from leitstand.usecase import UseCase
from monitors.retrainings import Retraining
from monitors.rollout_rules import Phase, Rollout

__all__ = ["Demo", "StepFailed", "paired_gap", "run_demo"]

BAD_ROWS_PER_QUEUE = 12
ROUTES_SECONDS = 20.0
Say = Callable[[str], None]
logger = structlog.get_logger()


class StepFailed(LeitstandError):
    """A step of the demo did not happen as promised."""


@dataclass
class Demo:
    """One demo while it runs, and what it leaves.

    Args:
        place: Its home.
        source: The use case that the demo's is made from.
        scenario: Sizes.
        seed: Of everything that is drawn.
        bad_by: Which bad candidates are tried: ``gate`` and ``canary``.
        say: Takes each line for the reader.
        prefect: Whether a Prefect server, its automation and a worker start the retraining.
    """

    place: Place
    source: UseCase
    scenario: Scenario
    seed: int
    bad_by: Sequence[str]
    say: Say
    prefect: bool = False
    timeline: Timeline = field(default_factory=lambda: Timeline(utc_now()))

    def __post_init__(self) -> None:
        self.drawn: Drawn = draw(read_rows(self.source), self.scenario, self.seed)
        folder = self.place.home / "usecases" / NAME
        self.case = write_case(self.source, folder, self.drawn, self.scenario, port=self.place.bento_port)
        self.machinery: Machinery = open_machinery(self.place, by_event=self.prefect)
        self.client = Client(self.place.gateway, NAME)
        self.said: list[Said] = []
        self.runs: list[str] = []

    @contextmanager
    def step(self, title: str, why: str) -> Iterator[None]:
        """Tells the step, times it, and names it in errors."""
        step = self.timeline.begin(title, why, utc_now())
        self.say(f"\n{step.number}. {title}\n   {why}")
        try:
            yield
        except StepFailed as error:
            raise StepFailed(
                f"Step {step.number} '{title}' did not happen: {error.message}", hint=error.hint
            ) from error
        except LeitstandError as error:
            raise StepFailed(
                f"Step {step.number} '{title}' did not happen: {error.message}",
                hint=error.hint or f"see the logs below {self.place.home / 'run' / 'logs'}",
            ) from error
        step.ended, step.happened = utc_now(), True

    def note(self, text: str, kind: str = "") -> None:
        """Tells one thing that happened."""
        now = utc_now()
        self.timeline.note(text, now, kind)
        seconds = (now - self.timeline.started).total_seconds()
        self.say(f"   {seconds:5.0f} s  {text}")

    def expect(self, condition: bool, otherwise: str) -> None:
        """Ends the step with `otherwise` unless the condition holds."""
        if not condition:
            raise StepFailed(otherwise)

    def link(self, title: str, path: Path, what: str) -> None:
        """Adds a page to open at the end."""
        self.timeline.links.append(Link(title, path.resolve().as_uri(), what))

    def champion(self) -> ModelVersion:
        """The version that has the alias."""
        return self.machinery.adapters.registry.get(ModelRef(name=NAME, alias="champion"))


def run_demo(demo: Demo) -> Timeline:
    """Plays all steps; the timeline has every number.

    Raises:
        StepFailed: A step did not happen; the message names it.
    """
    with demo.step(
        f"A champion that does not know {demo.scenario.withheld} of {demo.scenario.queues} queues",
        "Data, training, gates, registry, Bento, gateway: the first half of the loop.",
    ):
        first = _first_champion(demo)
    with demo.step(
        "Ordinary traffic", "Customers ask about the queues that the champion knows. Drift checks must say nothing."
    ):
        _calm(demo)
    if "gate" in demo.bad_by or "canary" in demo.bad_by:
        with demo.step(
            "A bad candidate meets the gates",
            "Somebody trains on a table whose labels slipped: every text has the label of another row.",
        ):
            bad = _bad_at_the_gate(demo)
        if "canary" in demo.bad_by:
            with demo.step(
                "The bad candidate meets the canary",
                "Now the gates are bypassed on purpose, and its Bento answers every third request with an error.",
            ):
                _bad_in_the_canary(demo, bad)
    with demo.step(
        "New queues appear", f"From here on, {demo.scenario.drift_share:.0%} of the traffic is about withheld queues."
    ):
        detected = _drift(demo)
    with demo.step(
        "Agents say what was right",
        "Their labels arrive by POST /v1/support/feedback: mostly right, and one source sends wrong ones on purpose.",
    ):
        check = _feedback(demo, detected)
    with demo.step(
        "The model is retrained", "Base and trusted feedback, through the same gates, against the champion."
    ):
        retrained = _retrain(demo, check)
    with demo.step(
        "Shadow, canary, promotion", "The new version earns its traffic; clients go on asking and must notice nothing."
    ):
        _roll_out(demo, retrained)
    with demo.step(
        "What it was worth", "Accuracy on rows that nobody trained on, beside a model trained with everything."
    ):
        _measure(demo, first, retrained)
    return demo.timeline


def _first_champion(demo: Demo) -> Trained:
    drawn, numbers = demo.drawn, demo.timeline.numbers
    demo.note(f"withheld (seed {demo.seed}): {', '.join(drawn.withheld)}")
    demo.note(
        f"{len(drawn.base):,} rows to learn, {len(drawn.measured):,} only measured on, "
        f"{len(drawn.calm) + len(drawn.drifting):,} texts of traffic to come"
    )
    demo.say("   Other than in production: " + "; ".join(DIFFERENCES))
    trained = demo.machinery.train(demo.case)
    demo.runs.append(trained.run.run_id)
    value = trained.version.metrics["accuracy"]
    demo.note(f"{trained.version.ref} trained: accuracy {value:.4f} on its own queues; gates {trained.verdict.outcome}")
    demo.machinery.promote(trained, "challenger", "gates passed")
    demo.machinery.serve(demo.case, trained.version)
    demo.machinery.promote(trained, "champion", "the first version")
    if demo.prefect:
        address = start_prefect(demo.place)
        demo.note(f"Prefect's server, a worker and the automation that retrains are up: {address}")
    demo.place.start_gateway()
    _wait_for_routes(demo)
    demo.note(f"it answers at {demo.place.gateway}/v1/{NAME}/predict", "served")
    demo.machinery.reference(demo.case, trained.version.version)
    demo.note("drift detectors fitted on its answers to the measured rows")
    numbers |= {"withheld": list(drawn.withheld), "champion_own_queues": value}
    demo.link("Gate report of the first champion", trained.files["gate_report.html"], "its numbers and gates")
    return trained


def _calm(demo: Demo) -> None:
    window = demo.scenario.window
    alarms = 0
    for number in range(demo.scenario.calm_windows):
        rows = demo.drawn.calm[number * window : (number + 1) * window]
        check, answers = _window(demo, rows)
        alarms += check.report.drifted
        verdict = "drift" if check.report.drifted else "no drift"
        demo.note(
            f"window {number + 1}: {len(answers)} requests, {verdict}, accuracy {accuracy(answers) or 0:.3f}; "
            f"decision: {check.decision.action}"
        )
    demo.timeline.numbers |= {"calm_windows": demo.scenario.calm_windows, "calm_alarms": alarms}
    demo.expect(alarms == 0, f"{alarms} of {demo.scenario.calm_windows} windows without drift raised an alarm")


def _bad_at_the_gate(demo: Demo) -> Trained:
    file = demo.case.folder / "data" / "slipped.csv"
    _write_slipped(file, demo.drawn.base)
    data = {"train": f"data/{file.name}", "test": "data/small_test.csv"}
    case = demo.case.model_copy(update={"data": demo.case.data.model_copy(update=data)})
    bad = demo.machinery.train(case)
    demo.runs.append(bad.run.run_id)
    try:
        demo.machinery.promote(bad, "challenger", "hoped to be better")
    except PolicyDenied as denied:
        demo.note(f"refused: {denied.message.splitlines()[0]}", "gate")
    else:
        raise StepFailed(f"the gates let {bad.version.ref} pass")
    accuracy_ = bad.version.metrics["accuracy"]
    demo.note(f"{bad.version.ref} (accuracy {accuracy_:.3f}) is registered without an alias; the champion answers on")
    demo.timeline.numbers["bad_accuracy"] = accuracy_
    demo.link("Gate report of the bad candidate", bad.files["gate_report.html"], "why it was refused")
    return bad


def _bad_in_the_canary(demo: Demo, bad: Trained) -> None:
    case = demo.case.model_copy(update={"rollout": demo.case.rollout.model_copy(update={"shadow_minutes": 0})})
    rows = [row for row in demo.drawn.measured if row.label in set(demo.drawn.known)]
    rollout = demo.machinery.begin_without_gates(case, bad.version)
    demo.timeline.rollouts.append(rollout.rollout_id)
    with demo.client.streaming(rows, rate=demo.scenario.rate, into=demo.timeline.answers) as stream:
        final = demo.machinery.drive(rollout.rollout_id, _watch(demo), faulty=True)
    failed = _settled(demo, stream)
    demo.expect(final.phase is Phase.ROLLED_BACK, f"{final.rollout_id} ended as {final.phase}: {final.reason}")
    seen = sum(answer.version == bad.version.version for answer in stream.answers)
    states = demo.machinery.adapters.rollouts.history(final.rollout_id)
    began = next(state.at for state in states if state.phase is Phase.CANARY)
    decided = next(state.at for state in states if state.phase is Phase.ROLLING_BACK)
    seconds = (decided - began).total_seconds()
    demo.note(
        f"rolled back after {seconds:.0f} s in traffic: of {len(stream.answers)} requests meanwhile {failed} failed "
        f"for the client, and the candidate answered {seen}",
        "rolled back",
    )
    demo.expect(failed == 0, f"{failed} client requests failed")
    demo.timeline.numbers |= {
        "bad_canary_seconds": seconds, "bad_canary_requests": len(stream.answers), "bad_canary_failed": failed,
        "bad_canary_answers": seen,
    }  # fmt: skip


def _drift(demo: Demo) -> DriftCheck:
    window, rows = demo.scenario.window, demo.drawn.drifting
    demo.note("the first withheld queue is asked about", "onset")
    for done in range(window, window * demo.scenario.drift_windows + 1, window):
        check, answers = _window(demo, rows[done - window : done])
        estimate = check.report.estimated_accuracy
        told = f"{estimate.value:.3f}" if estimate and estimate.value is not None else "unknown"
        demo.note(
            f"window {done // window}: {len(answers)} requests, accuracy fell to {accuracy(answers) or 0:.3f} "
            f"(estimated without labels: {told})"
        )
        if check.report.drifted:
            return _detected(demo, check, done)
    raise StepFailed(f"the drift was not seen within {demo.scenario.drift_windows} windows")


def _detected(demo: Demo, check: DriftCheck, requests: int) -> DriftCheck:
    """Tells what was seen and decided, builds the report, and tries what was decided."""
    found = sorted((score for score in check.report.scores if score.drifted), key=lambda s: s.p_value or 1.0)
    names = ", ".join(dict.fromkeys(f"{score.detector} of {score.column}" for score in found[:3]))
    demo.note(f"drift is detected after {requests} requests ({names})", "detected")
    demo.note(f"decision: {check.decision.action}, because {_short(check.decision.reasons)}")
    demo.timeline.numbers |= {"onset_to_detected_requests": requests, "detectors": len(found)}
    page = demo.machinery.report(demo.case, check)
    demo.note(f"Evidently report: {page}")
    demo.link("Evidently report of the drifted window", page, "what moved, drawn by Evidently")
    demo.link("All windows with a report", page.parent / "index.html", "the index")
    if check.decision.action is Action.RETRAIN:
        refused = demo.machinery.retrain(demo.case, check, demo.note)
        outcome = refused.outcome if refused else "nothing"
        demo.note(f"the automation tries at once: {outcome}; nobody has labelled the new queues yet")
        demo.expect(outcome == "too little feedback", f"a retraining without labels ended as '{outcome}'")
    return check


def _feedback(demo: Demo, detected: DriftCheck) -> DriftCheck:
    rows = demo.drawn.drifting
    done = demo.timeline.numbers["onset_to_detected_requests"]
    start = utc_now()
    answers = demo.client.replay(rows[done:])
    demo.timeline.answers += answers
    demo.expect(not any(answer.failed for answer in answers), "requests failed")
    demo.note(f"{len(answers)} more requests, accuracy {accuracy(answers) or 0:.3f}")
    drifted = demo.timeline.answers[-len(rows) :]
    calm = demo.timeline.answers[: len(demo.drawn.calm)]
    _post(demo, labels_of([*calm, *drifted], demo.drawn.known, demo.scenario, demo.seed))
    agents = {said.source for said in demo.said} - {POISONED}
    demo.note(
        f"{len(demo.said):,} labels of {len(agents)} agents and of '{POISONED}' are recorded; "
        f"{demo.scenario.wrong_share:.0%} of the agents' are wrong"
    )
    demo.case = admit(demo.case, demo.drawn.withheld)
    demo.note(f"a person admits the {len(demo.drawn.withheld)} new queues: feedback.approved_labels in usecase.yaml")
    check = demo.machinery.check(demo.case, start, len(answers))
    measured = check.report.measured_accuracy
    demo.note(f"the next check has labels: accuracy {measured.value if measured else 0:.3f} measured")
    demo.note(f"decision: {check.decision.action}, because {_short(check.decision.reasons)}", "decided")
    demo.timeline.numbers["accuracy_during"] = accuracy(drifted)
    demo.expect(check.decision.finding is Finding.LOSS, f"the loss was not found, but: {check.decision.finding}")
    demo.expect(check.decision.action is Action.RETRAIN, f"decided was '{check.decision.action}'")
    return check


def _retrain(demo: Demo, check: DriftCheck) -> Retraining:
    from models.retraining import FeedbackReport
    from models.snapshots import open_snapshot, short

    done = demo.machinery.retrain(demo.case, check, demo.note)
    demo.expect(done is not None, "the decision had had its retraining already")
    assert done is not None  # noqa: S101 -- for the type checker; `expect` said it
    demo.expect(done.outcome == "rollout started", f"it ended as '{done.outcome}': {done.detail}")
    version = demo.machinery.adapters.registry.get(ModelRef(name=NAME, version=done.version))
    demo.runs.append(version.run_id)
    snapshot = open_snapshot(demo.place.home / "data" / NAME / short(version.data_digest))
    report = FeedbackReport.model_validate_json((snapshot.feedback_report or Path()).read_bytes())
    demo.note(
        f"feedback: {report.rows:,} labels, {report.train_rows:,} rows to train on, {report.test_rows:,} held out, "
        f"{len(snapshot.new_labels)} new queues admitted"
    )
    for source, reason in report.quarantined_sources.items():
        demo.note(f"'{source}' is quarantined: {reason}", "quarantined")
    demo.expect(set(report.quarantined_sources) == {POISONED}, f"quarantined: {list(report.quarantined_sources)}")
    demo.expect(set(snapshot.new_labels) == set(demo.drawn.withheld), f"new queues: {snapshot.new_labels}")
    value = version.metrics["accuracy"]
    demo.note(f"{version.ref} retrained: accuracy {value:.4f} on old and new queues; gates passed", "retrained")
    demo.timeline.numbers |= {
        "retrained_version": version.version, "feedback_labels": report.rows, "feedback_rows": report.train_rows,
    }  # fmt: skip
    return done


def _roll_out(demo: Demo, retrained: Retraining) -> None:
    machinery, rows = demo.machinery, demo.drawn.fresh
    demo.timeline.rollouts.append(retrained.rollout)
    with demo.client.streaming(rows, rate=demo.scenario.rate, into=demo.timeline.answers) as stream:
        with following(lambda: machinery.drive(retrained.rollout, _watch(demo))) as final:
            pass
        _until(lambda: _answered(stream, retrained.version) >= demo.scenario.window, "answers of the new champion")
    failed = _settled(demo, stream)
    state = final[0]
    demo.expect(state.phase is Phase.PROMOTED, f"{state.rollout_id} ended as {state.phase}: {state.reason}")
    demo.expect(demo.champion().version == retrained.version, "the alias is not on the new version")
    demo.note(
        f"{NAME}:{retrained.version} is champion and answers everything; {len(stream.answers)} requests meanwhile, "
        f"{failed} failed",
        "promoted",
    )
    demo.expect(failed == 0, f"{failed} client requests failed")
    demo.timeline.numbers |= {"rollout_requests": len(stream.answers), "rollout_failed": failed}


def _measure(demo: Demo, first: Trained, retrained: Retraining) -> None:
    machinery, drawn = demo.machinery, demo.drawn
    registry = machinery.adapters.registry
    everything = _yardstick(demo)
    folders = {
        "champion": first.run.model_dir,
        "retrained": machinery.model_folder(registry.get(ModelRef(name=NAME, version=retrained.version))),
        "everything": everything,
    }
    known = set(drawn.known)
    numbers = demo.timeline.numbers
    right = {name: machinery.right(demo.case, folder, drawn.measured) for name, folder in folders.items()}
    for name, marks in right.items():
        old = [ok for ok, row in zip(marks, drawn.measured, strict=True) if row.label in known]
        new = [ok for ok, row in zip(marks, drawn.measured, strict=True) if row.label not in known]
        numbers[f"accuracy_{name}"] = sum(marks) / len(marks)
        numbers[f"accuracy_{name}_old_queues"] = sum(old) / len(old)
        numbers[f"accuracy_{name}_new_queues"] = sum(new) / len(new)
    gap, error = paired_gap(right["everything"], right["retrained"])
    numbers |= {"accuracy_gap": gap, "accuracy_gap_error": error}
    for name, title in (
        ("champion", "first champion"), ("retrained", "retrained"), ("everything", "trained with everything"),
    ):  # fmt: skip
        demo.note(
            f"{title}: {numbers[f'accuracy_{name}']:.4f} on all queues ({numbers[f'accuracy_{name}_old_queues']:.4f} "
            f"on old ones, {numbers[f'accuracy_{name}_new_queues']:.4f} on new ones)"
        )
    for name, pair in {"detected": ("onset", "detected"), "retrained": ("onset", "retrained"),
        "promoted": ("onset", "promoted")}.items():  # fmt: skip
        numbers[f"onset_to_{name}_minutes"] = demo.timeline.minutes_between(*pair)
    count = machinery.verify_ledger()
    demo.note(f"promotion ledger: {count} entries, chain intact, aliases where it put them", "verified")
    numbers["ledger_entries"] = count
    _audited(demo)
    page = machinery.compare(demo.runs, demo.place.home / "reports" / "compare.html")
    demo.link("Compare page", page, "the training runs side by side")
    for title, path in machinery.version_pages(retrained.version or 0):
        demo.link(title, path, "of the retrained version")
    demo.note(f"that is {gap:+.4f} (± {2 * error:.4f}) short of everything; the aim is {demo.scenario.tolerance:g}")
    demo.expect(
        gap - 2 * error <= demo.scenario.tolerance,
        f"the retrained model is {gap:.4f} below one trained with everything, which is no chance",
    )


def _audited(demo: Demo) -> None:
    """Whether every answer that a client got has its record, in a chain that holds."""
    count, recorded = demo.machinery.verify_audit()
    answered = [answer.request_id for answer in demo.timeline.answers if not answer.failed]
    missing = [each for each in answered if each not in recorded]
    demo.expect(
        not missing, f"{len(missing)} of {len(answered)} answers have no audit record, the first: {missing[:1]}"
    )
    demo.note(
        f"audit trail: {count:,} records, chains intact; each of the {len(answered):,} answers has one "
        f"(why the last one: leitstand explain {answered[-1]})",
        "verified",
    )
    demo.timeline.numbers |= {"audit_records": count, "answers": len(answered)}


def paired_gap(better: Sequence[bool], worse: Sequence[bool]) -> tuple[float, float]:
    """How much more often the first is right on the same rows, and the standard error of that."""
    differences = [a - b for a, b in zip(better, worse, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    variance = sum((value - mean) ** 2 for value in differences) / count
    return mean, (variance / count) ** 0.5


def _yardstick(demo: Demo) -> Path:
    """A model with the same profile, trained on every row that is not measured, with true labels."""
    data = demo.case.data.model_copy(
        update={"train": "data/everything.csv", "test": "data/measured.csv", "labels": "data/all_labels.json"}
    )
    run = demo.machinery.fit(demo.case.model_copy(update={"data": data}))
    demo.runs.append(run.run_id)
    return run.model_dir


def _window(demo: Demo, rows: Sequence[Row]) -> tuple[DriftCheck, list[Answer]]:
    """Replays one window and checks it."""
    start = utc_now()
    answers = demo.client.replay(rows)
    demo.timeline.answers += answers
    failed = [answer.problem for answer in answers if answer.failed]
    demo.expect(not failed, f"{len(failed)} requests failed, the first with: {failed[0] if failed else ''}")
    return demo.machinery.check(demo.case, start, len(answers)), answers


def _post(demo: Demo, said: Sequence[Said]) -> None:
    demo.client.say_all([(each.request_id, each.label, each.source, each.feedback_id) for each in said])
    demo.said += said


def _settled(demo: Demo, stream: Stream) -> int:
    """How many requests of a stream failed; tells the first ones."""
    failed = [answer for answer in stream.answers if answer.failed]
    for answer in failed[:3]:
        demo.note(f"a client's request failed: {answer.problem}")
    return len(failed)


def _answered(stream: Stream, version: int | None) -> int:
    return sum(answer.version == version for answer in list(stream.answers))


def _watch(demo: Demo) -> Callable[[Rollout], None]:
    told = [""]

    def tell(state: Rollout) -> None:
        weight = f" at {state.percent:g} %" if state.percent else ""
        reason = f": {_short([state.reason])}" if state.reason != told[0] else ""
        told[0] = state.reason
        demo.note(f"{state.rollout_id}: {state.phase.replace('_', ' ')}{weight}{reason}", "rollout")

    return tell


def _wait_for_routes(demo: Demo) -> None:
    row = replace(demo.drawn.measured[0])
    _until(lambda: not demo.client.ask(row).failed, "the gateway to answer")


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + ROUTES_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise StepFailed(f"waited {ROUTES_SECONDS:.0f} s for {what}, in vain")
        time.sleep(0.1)


def _write_slipped(target: Path, base: Sequence[Row]) -> None:
    """Some rows of each queue, each with the label of a row of the next queue."""
    by_label: dict[str, list[Row]] = {}
    for row in base:
        by_label.setdefault(row.label, []).append(row)
    names = sorted(by_label)
    chosen = [(row.text, names[(place + 1) % len(names)]) for place, name in enumerate(names)
        for row in by_label[name][:BAD_ROWS_PER_QUEUE]]  # fmt: skip
    with atomic_path(target) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *chosen])


def _short(reasons: Sequence[str], limit: int = 220) -> str:
    text = "; ".join(reasons).replace("\n", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"
