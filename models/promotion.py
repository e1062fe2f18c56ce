"""Whether an alias may move, and moving it: no champion without a gate report that passed.

The report that allowed the move stays with the version, and its digest stands in the ledger, so the
evidence of every move can be read later. A forced move needs a reason, which stands there too.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError, PolicyDenied, PromotionRejected
from leitstand.files import digest_bytes
from leitstand.ports import ModelRegistry
from leitstand.types import GateReport, LedgerEntry, ModelRef, ModelVersion
from models.gates import require_pass

__all__ = ["GATE_REPORT", "attached_gate_report", "check", "previous_holder", "promote", "roll_back"]

GATE_REPORT = "gate_report.json"


def promote(
    registry: ModelRegistry,
    ref: ModelRef,
    alias: str,
    *,
    gate_report: GateReport | None = None,
    actor: str,
    reason: str,
    force: bool = False,
) -> LedgerEntry:
    """Points `alias` at a version whose gates passed, and records why.

    Args:
        registry: Holds the version.
        ref: The version.
        alias: ``champion`` or ``challenger``.
        gate_report: The verdict; without one, the report attached to the version counts. A verdict that
            differs from the attached one is attached beside it.
        actor: Who moves it, for the ledger.
        reason: Why, for the ledger; never empty.
        force: Moves it against the gates. The ledger says so.

    Raises:
        PromotionRejected: There is no gate report, it judged other weights, or a gate failed.
        InsufficientEvidence: No gate failed, but one could not decide.
        ConfigurationError: The reason is empty.
    """
    if not reason.strip():
        raise ConfigurationError("A promotion needs a reason", hint="say why: --reason 'beats support:3 on typos'")
    version = registry.get(ref)
    report = gate_report or attached_gate_report(registry, version)
    try:
        check(version, report)
    except PolicyDenied as denied:
        if not force:
            raise
        reason = f"forced although: {denied.message.splitlines()[0]}. Reason: {reason}"
    evidence = _keep_evidence(registry, version, report) if report else ""
    return registry.set_alias(version.ref, alias, actor=actor, reason=reason, evidence=evidence)


def attached_gate_report(registry: ModelRegistry, version: ModelVersion) -> GateReport | None:
    """The gate report that the version was registered with; None when it has none.

    Raises:
        IntegrityError: The attached file is not a gate report.
    """
    if GATE_REPORT not in version.attachments:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = registry.attachment(version.ref, GATE_REPORT, Path(folder))
        try:
            return GateReport.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise IntegrityError(f"'{GATE_REPORT}' of '{version.ref}' is no gate report: {error}") from error


def check(version: ModelVersion, report: GateReport | None) -> None:
    """Returns when `report` lets `version` be promoted; raises as `promote` does otherwise."""
    if report is None:
        raise PromotionRejected(
            f"'{version.ref}' has no gate report", hint=f"evaluate it with `leitstand run {version.name}`"
        )
    if report.weights_digest != version.weights_digest:
        raise PromotionRejected(
            f"The gate report judged {report.weights_digest[:19]}, '{version.ref}' is {version.weights_digest[:19]}",
            hint="pass the report of this version",
        )
    require_pass(report)


def _keep_evidence(registry: ModelRegistry, version: ModelVersion, report: GateReport) -> str:
    """Attaches the report unless it is the attached one already; returns its digest."""
    content = report.model_dump_json(indent=1).encode()
    digest = digest_bytes(content)
    if report != attached_gate_report(registry, version):
        name = GATE_REPORT
        if GATE_REPORT in version.attachments:
            name = f"gate_report-{digest.removeprefix('sha256:')[:12]}.json"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            registry.attach(version.ref, {name: path})
    return digest


def roll_back(
    registry: ModelRegistry, entries: Sequence[LedgerEntry], name: str, alias: str, *, actor: str, reason: str
) -> LedgerEntry:
    """Points `alias` at the version that held it before the present one.

    Args:
        registry: Holds the versions.
        entries: The ledger of `name`, oldest first.
        name: Model name.
        alias: The alias to take back.
        actor: Who does it.
        reason: Why.

    Raises:
        NotFoundError: Nothing held it before.
    """
    target = previous_holder(entries, name, alias)
    if target is None:
        raise NotFoundError(
            f"No version held '{name}@{alias}' before the present one",
            hint=f"see `leitstand models history {name}`, or promote a version by number",
        )
    ref = ModelRef(name=name, version=target)
    return registry.set_alias(ref, alias, actor=actor, reason=f"rolled back: {reason}")


def previous_holder(entries: Sequence[LedgerEntry], name: str, alias: str) -> int | None:
    """The version to go back to. Going back twice goes back two promotions, not back and forth."""
    holders: list[int | None] = []
    for entry in entries:
        if (entry.name, entry.alias) != (name, alias):
            continue
        if len(holders) > 1 and holders[-2] == entry.version:
            holders.pop()
        else:
            holders.append(entry.version)
    return next((version for version in reversed(holders[:-1]) if version is not None), None)
