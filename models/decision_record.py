"""The walk from one audit record to everything that led to its answer: version, data, code, run, gates, approver.

What cannot be found is named in ``missing``; a walk that breaks off is a result, too.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from governance.audit.records import InferenceRecord
from leitstand.errors import LeitstandError
from leitstand.ports import ModelRegistry, PromotionLedger
from leitstand.types import LedgerEntry, ModelRef, ModelVersion
from models.promotion import GATE_REPORT

__all__ = ["DecisionRecord", "explain", "gate_reports"]


class DecisionRecord(BaseModel):
    """One inference and what stands behind it.

    Attributes:
        record: The audit record.
        version: The registered version that answered.
        gate_report: The gates' verdict on that version.
        holder: Move of an alias to the version that was in force when the record was made; who made it approved it.
        ledger: Every move that names the version, oldest first.
        missing: What could not be found, and why.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    record: InferenceRecord
    version: ModelVersion | None = None
    gate_report: dict[str, Any] | None = None
    holder: LedgerEntry | None = None
    ledger: tuple[LedgerEntry, ...] = ()
    missing: tuple[str, ...] = ()


def explain(record: InferenceRecord, registry: ModelRegistry, ledger: PromotionLedger) -> DecisionRecord:
    """Follows the record as far as registry and ledger know it."""
    missing: list[str] = []
    if not record.version:
        return DecisionRecord(record=record, missing=(f"no version answered: {record.problem or record.status}",))
    ref = ModelRef(name=record.use_case, version=record.version)
    version = report = None
    try:
        version = registry.get(ref)
    except LeitstandError as error:
        missing.append(f"version {ref}: {error.message}")
    if version is not None:
        report, why = _gate_report(registry, version)
        missing += [why] if why else []
    moves: Sequence[LedgerEntry] = ()
    try:
        moves = ledger.entries(record.use_case)
    except LeitstandError as error:
        missing.append(f"ledger: {error.message}")
    own = tuple(entry for entry in moves if entry.version == record.version)
    holder = next((entry for entry in reversed(own) if entry.at <= record.started_at), None)
    if holder is None:
        missing.append(f"no alias pointed to {ref} when it answered: it served as {record.route or 'nothing'}")
    return DecisionRecord(
        record=record, version=version, gate_report=report, holder=holder, ledger=own, missing=tuple(missing)
    )


def gate_reports(registry: ModelRegistry, versions: Sequence[tuple[str, int]]) -> dict[str, bytes]:
    """Gate reports by file name, ``NAME-VERSION.json``; versions without one are left out."""
    found = {}
    for name, number in versions:
        try:
            report, _ = _gate_report(registry, registry.get(ModelRef(name=name, version=number)))
        except LeitstandError:
            continue
        if report is not None:
            found[f"{name}-{number}.json"] = json.dumps(report, indent=1).encode()
    return found


def _gate_report(registry: ModelRegistry, version: ModelVersion) -> tuple[dict[str, Any] | None, str]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            return json.loads(registry.attachment(version.ref, GATE_REPORT, Path(folder)).read_bytes()), ""
    except (LeitstandError, OSError, ValueError) as error:
        return None, f"gate report: {error.message if isinstance(error, LeitstandError) else error}"
