"""The nightly checks of a use case and the housekeeping of its stores; plain functions.

Each check stands alone: one that cannot be made says so, and the others go on. The served version is asked directly,
not through the gateway, so that texts of the golden set are not taken for traffic. What degraded raises an alert;
everything is kept as a record below
``home/monitors/nightly/USE_CASE/``, and a degradation is entered into the promotion ledger, with the record's digest.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict

from flows.backup import back_up
from flows.loop import Loop, serving_version
from flows.rollout import gateway_urls
from flows.served_version import ServedVersion, measure_behaviour
from governance.input_store import open_input_store
from leitstand.errors import BackendError, LeitstandError, NotFoundError
from leitstand.files import digest_bytes, write_text
from leitstand.own_calls import ask_gateway
from leitstand.types import EvaluationReport, ModelRef
from leitstand.usecase import UseCase
from monitors import sanity
from monitors.compaction import compact
from monitors.sanity import Check
from monitors.windows import iterate_window

__all__ = ["NightlyRecord", "run_checks"]

ACTOR = "nightly checks"
logger = structlog.get_logger()


class NightlyRecord(BaseModel):
    """What one night's checks said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    use_case: str
    version: int | None
    at: AwareDatetime
    checks: tuple[Check, ...]
    dropped_total: float | None = None

    @property
    def degraded(self) -> tuple[Check, ...]:
        """What a person should look at."""
        return tuple(check for check in self.checks if check.outcome == "degraded")


def run_checks(loop: Loop, use_case: UseCase, *, now: datetime) -> NightlyRecord:
    """Runs every check and the housekeeping, keeps the record, and tells people what degraded."""
    name, settings = use_case.name, loop.adapters.settings
    folder = loop.home / "monitors" / "nightly" / name
    before = _last(folder)
    version = None
    with contextlib.suppress(NotFoundError):
        version = serving_version(loop.adapters, name)
    total = _dropped_total(loop)
    within = timedelta(days=settings.checks.expiry_days)
    plan: list[tuple[str, Callable[[], Check | Sequence[Check]]]] = [
        ("served version", lambda: _served(loop, use_case, version)),
        ("safety", lambda: _safety(use_case)),
        ("bias and robustness", lambda: _behaviour(loop, use_case)),
        ("requests", lambda: _requests(loop, use_case, now)),
        ("feedback", lambda: _feedback(loop, use_case, now)),
        ("disk space", lambda: sanity.disk_space(shutil.disk_usage(loop.home).free, settings.checks.min_free_gb)),
        ("inference log", lambda: sanity.dropped_rows(before.dropped_total if before else None, total)),
        ("certificates", lambda: [_certificate(path, within, now) for path in settings.checks.certificates]),
        ("W&B key", lambda: _wandb_key(loop)),
        ("backup", lambda: Check("backup", "ok", f"{back_up(settings, now=now)} was restored and verified")),
        ("retention", lambda: _retention(loop, name, now)),
        ("audit trail", lambda: _audit(loop, now)),
    ]
    checks: list[Check] = []
    for title, make in plan:
        found = _guarded(title, make)
        checks += [found] if isinstance(found, Check) else found
    record = NightlyRecord(use_case=name, version=version, at=now, checks=tuple(checks), dropped_total=total)
    file = write_text(folder / f"{now:%Y%m%dT%H%M%SZ}.json", record.model_dump_json(indent=1))
    _enter(loop, record, file)
    loop.alerts.report(sanity.changes(checks, name, now=now, runbooks=settings.alerts.runbooks))
    logger.info(
        "Nightly checks were made", use_case=name, degraded=[check.name for check in record.degraded],
        skipped=[check.name for check in checks if check.outcome == "skipped"],
    )  # fmt: skip
    return record


def _enter(loop: Loop, record: NightlyRecord, file: Path) -> None:
    """Puts a degradation into the ledger, beside the moves that may have caused it."""
    if record.degraded and record.version is not None:
        from models.ledger import open_ledger

        why = "degraded: " + "; ".join(f"{check.name}: {check.text}" for check in record.degraded)
        open_ledger(loop.adapters.settings).note(
            record.use_case, record.version, actor=ACTOR, reason=why[:1000], evidence=digest_bytes(file.read_bytes())
        )


def _guarded(title: str, make: Callable[[], Check | Sequence[Check]]) -> Check | Sequence[Check]:
    """A check that breaks is a degraded check: it says that something is wrong, and the others go on."""
    try:
        return make()
    except LeitstandError as error:
        return Check(title, "degraded", error.message)
    except Exception as error:
        logger.exception("A nightly check broke", check=title)
        return Check(title, "degraded", f"the check broke: {type(error).__name__}: {error}")


def _served(loop: Loop, use_case: UseCase, version: int | None) -> list[Check]:
    """Golden set and canary prompts, asked of the version that answers as stable."""
    from models.golden import load_golden

    table = loop.adapters.routes.read(use_case.name)
    if version is None or table is None:
        return [sanity.skipped(each, "nothing serves the use case") for each in ("golden set", "canary prompts")]
    prompts, golden = use_case.nightly.prompts, load_golden(use_case)
    served = ServedVersion(table.stable.url, use_case.name, loop.adapters.settings)
    said = served.answers([prompt.text for prompt in prompts])
    checks = [sanity.canary_prompts(prompts, said)]
    if golden is None:
        return [sanity.skipped("golden set", "the use case has none (data.golden)"), *checks]
    report = _evaluation(loop, use_case.name, version)
    metric = report.metric("accuracy", "golden") if report else None
    answers, tolerance = served.answers(golden.texts), use_case.nightly.golden_tolerance
    measured = metric.value if metric else None
    return [sanity.golden_accuracy(golden.labels, answers, measured, tolerance), *checks]


def _safety(use_case: UseCase) -> Check:
    """The guards as the use-case file has them now; what a model itself says is for its gates."""
    from governance.guards import Chain

    chain = Chain(use_case.guards)
    looked = [chain.check_input([each.text]).verdicts for each in use_case.nightly.safety]
    return sanity.safety(use_case.nightly.safety, [{v.reason for v in verdicts if v.reason} for verdicts in looked])


def _behaviour(loop: Loop, use_case: UseCase) -> Check:
    """The gates on bias, robustness and personal data, once more, on what serves."""
    from models.golden import load_golden

    title, wanted = "bias and robustness", use_case.nightly.behaviour_texts
    table, golden = loop.adapters.routes.read(use_case.name), load_golden(use_case)
    if table is None:
        return sanity.skipped(title, "nothing serves the use case")
    if golden is None or not wanted:
        missing = "nightly.behaviour_texts is 0" if golden else "the use case has no golden set (data.golden)"
        return sanity.skipped(title, missing)
    served = ServedVersion(table.stable.url, use_case.name, loop.adapters.settings)
    return sanity.behaviour(use_case.gates, measure_behaviour(served, use_case, golden, texts=wanted))


def _evaluation(loop: Loop, name: str, version: int) -> EvaluationReport | None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = loop.adapters.registry.attachment(
                ModelRef(name=name, version=version), "evaluation.json", Path(folder)
            )  # fmt: skip
            return EvaluationReport.model_validate_json(path.read_bytes())
    except (LeitstandError, ValueError):
        return None


def _requests(loop: Loop, use_case: UseCase, now: datetime) -> Check:
    """When the last answer was logged; looks at the newest days only."""
    last = None
    for day in loop.log.days(use_case.name)[-2:]:
        start = datetime(day.year, day.month, day.day, tzinfo=now.tzinfo)
        window = iterate_window(loop.log, use_case.name, start, start + timedelta(days=1), columns=["at"], now=now)
        moments = [_latest(batch) for batch in window if batch.num_rows]
        last = max([*moments, *([last] if last else [])], default=None)
    return sanity.freshness("requests", last, use_case.nightly.max_quiet, now=now)


def _latest(batch: Any) -> datetime:
    return max(batch.column("at").to_pylist())


def _feedback(loop: Loop, use_case: UseCase, now: datetime) -> Check:
    last = max((entry.at for entry in loop.feedback.entries(use_case.name)), default=None)
    return sanity.freshness("feedback", last, use_case.nightly.max_feedback_age, now=now)


def _certificate(path: Path, within: timedelta, now: datetime) -> Check:
    name = f"certificate {path.name}"
    try:
        from cryptography import x509

        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return Check(name, "degraded", f"{path} cannot be read: {error}")
    return sanity.expiry(name, found.not_valid_after_utc, within, now=now)


def _wandb_key(loop: Loop) -> Check:
    settings = loop.adapters.settings
    if settings.registry.kind != "wandb":
        return sanity.skipped("W&B key", "the registry is not W&B; runs stay offline without a key")
    if settings.tracking.api_key is None:
        return Check("W&B key", "degraded", "the registry is W&B, but LEITSTAND_TRACKING__API_KEY is not set")
    loop.adapters.registry.names()
    return Check("W&B key", "ok", "the registry takes it")


def _retention(loop: Loop, name: str, now: datetime) -> Check:
    settings = loop.adapters.settings
    done = compact(loop.log, name, now, retention_days=settings.monitoring.retention_days)
    erased = open_input_store(settings).expire(now)
    text = f"{done.files_merged} log files merged, {done.days_expired} days expired, {erased} kept texts erased"
    return Check("retention", "ok", text)


def _audit(loop: Loop, now: datetime) -> Check:
    """Verifies the whole trail, anchors its heads where a place is set, and then removes what the retention lets go."""
    from governance.audit.anchors import anchor_heads
    from governance.audit.opening import prune_trail, trail_folder
    from governance.audit.verify_standalone import read_public_keys, verify_trail
    from models.blobs.anchors import open_anchors

    settings = loop.adapters.settings
    folder = trail_folder(settings)
    if not (folder / "chains").is_dir():
        return sanity.skipped("audit trail", "nothing was recorded yet")
    anchors = open_anchors(settings) if settings.audit.anchors else None
    keys = read_public_keys(sorted((folder / "public_keys").glob("*.pem")))
    result = verify_trail(folder, keys, anchors.read() if anchors else ())
    if result.all_problems:
        return Check("audit trail", "degraded", f"the trail does not hold: {result.all_problems[0]}")
    new = len(anchor_heads(folder, anchors)) if anchors else 0
    pruned = prune_trail(settings, now=now)
    text = f"{result.records} records hold, {new} heads anchored, {pruned.records} records past their retention removed"
    return Check("audit trail", "ok", text)


def _dropped_total(loop: Loop) -> float | None:
    """Of all gateways together; None when one cannot be read."""
    from prometheus_client.parser import text_string_to_metric_families

    total = 0.0
    try:
        for url in gateway_urls(loop.adapters.settings):
            page = ask_gateway(loop.adapters.settings, f"{url}/metrics").decode()
            families = list(text_string_to_metric_families(page))
            total += sum(
                sample.value for family in families for sample in family.samples
                if sample.name == "gateway_log_records_dropped_total"
            )  # fmt: skip
    except (OSError, ValueError, BackendError):
        return None
    return total


def _last(folder: Path) -> NightlyRecord | None:
    for path in sorted(folder.glob("*.json"), reverse=True)[:1]:
        with contextlib.suppress(ValueError):
            return NightlyRecord.model_validate_json(path.read_bytes())
    return None
