"""The records that cross a boundary: disk, registry, reports, HTTP.

All are frozen pydantic models with a ``schema_version``; readers accept every version they know.
Times are timezone-aware UTC. Scores are floats in [0, 1]; "not a number" is written as null.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from leitstand.errors import ConfigurationError

__all__ = [
    "Action",
    "Alert",
    "Caller",
    "Decision",
    "Digest",
    "DriftReport",
    "DriftScore",
    "Endpoint",
    "EvaluationReport",
    "Feedback",
    "Finding",
    "GateOutcome",
    "GateReport",
    "GateResult",
    "Interval",
    "LedgerEntry",
    "Metric",
    "ModelCandidate",
    "ModelRef",
    "ModelVersion",
    "ReliabilityBin",
    "RouteTable",
    "RunRecord",
    "Severity",
    "Snapshot",
    "SplitInfo",
    "Target",
    "TenantRoute",
    "Usage",
    "Verdict",
    "WindowRow",
    "utc_now",
]

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs a time zone")
    return value.astimezone(UTC)


Utc = Annotated[datetime, AfterValidator(_in_utc)]


def utc_now() -> datetime:
    """The present moment; the default clock of every function that takes one."""
    return datetime.now(UTC)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRef(_Record):
    """Names a registered version: ``support:7`` by number, ``support@champion`` by alias."""

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `NAME:VERSION` or `NAME@ALIAS`.

        Raises:
            ConfigurationError: The text has neither form.
        """
        name, colon, version = text.partition(":")
        if colon and version.isdigit():
            return cls(name=name, version=int(version))
        name, at, alias = text.partition("@")
        if at and name and alias:
            return cls(name=name, alias=alias)
        raise ConfigurationError(
            f"'{text}' does not name a model version", hint="write NAME:VERSION or NAME@ALIAS, like support@champion"
        )

    def __str__(self) -> str:
        return f"{self.name}:{self.version}" if self.version is not None else f"{self.name}@{self.alias}"


class SplitInfo(_Record):
    """One split of a snapshot: a Parquet file with the columns ``text`` and ``label``."""

    path: Path
    rows: int
    digest: Digest


class Snapshot(_Record):
    """A validated, immutable copy of a data set. ``digest`` covers text and label of every row of every split."""

    schema_version: Literal[1] = 1
    use_case: str
    digest: Digest
    labels: tuple[str, ...]
    splits: dict[str, SplitInfo]
    sources: dict[str, str] = Field(description="split name to the URI it was read from")
    source_digests: dict[str, Digest] = Field(description="split name to the digest of the source file's bytes")
    quarantined: int = 0
    quarantine_file: Path | None = None
    report_html: Path | None = None
    report_json: Path | None = None
    parent: Digest | None = Field(default=None, description="snapshot that feedback was added to; None: an ingestion")
    new_labels: tuple[str, ...] = Field(default=(), description="labels that `parent` does not have; they stand last")
    feedback_report: Path | None = Field(default=None, description="JSON: what became of each source's feedback")


class RunRecord(_Record):
    """One finished training run: where its model lies and what it measured on the validation split."""

    schema_version: Literal[1] = 1
    run_id: str
    use_case: str
    profile: str
    seed: int
    model_dir: Path
    weights_digest: Digest
    data_digest: Digest
    base_model: str
    base_digest: Digest
    warm_start: Digest | None = Field(default=None, description="weights that training started from; None: the base")
    commit: str
    tracking_url: str = Field(
        default="", description="where the tracker keeps the run: a URL, or an offline run's folder"
    )
    metrics: dict[str, float] = Field(default_factory=dict)
    training_seconds: float
    resumed: bool = False
    stopped_early: bool = False
    curves: Path | None = Field(default=None, description="CSV with step, epoch, split, loss, accuracy, learning_rate")


class Interval(_Record):
    """A confidence interval at ``level``."""

    low: float
    high: float
    level: float = 0.95


class Metric(_Record):
    """One measured number over ``examples`` rows (or calls), with its interval where one can be given."""

    name: str
    value: float | None
    examples: int
    interval: Interval | None = None
    slice: str | None = None


class ReliabilityBin(_Record):
    """One bar of the reliability diagram: answers whose score lies in [low, high)."""

    low: float
    high: float
    count: int
    score: float | None = Field(description="mean score of the bin; None when it is empty")
    accuracy: float | None


class EvaluationReport(_Record):
    """All numbers of one model on one data set, and per-row answers for paired tests."""

    schema_version: Literal[1] = 1
    use_case: str
    weights_digest: Digest
    data_digest: Digest
    split: str
    evaluated_at: Utc
    engine: str
    metrics: tuple[Metric, ...]
    predictions: Path = Field(description="Parquet: row, label, predicted, score, abstain, one row per example")
    confusion: Path | None = Field(default=None, description="CSV: label, predicted, count (non-zero cells)")
    units: Path | None = Field(
        default=None, description="Parquet: metric, slice, unit, value; what each row or sentence adds to a mean"
    )
    reliability: tuple[ReliabilityBin, ...] = ()
    samples: dict[str, int] = Field(default_factory=dict, description="rows or calls that each part was measured on")
    unknown_labels: tuple[str, ...] = Field(
        default=(), description="labels of the data that the model cannot predict: it is wrong on all their rows"
    )
    spec_digest: str = Field(
        default="", description="digest of how it was measured; two reports compare when it is equal"
    )

    def metric(self, name: str, slice: str | None = None) -> Metric | None:  # noqa: A002
        """The metric `name` on `slice`, or None when it was not measured."""
        return next((m for m in self.metrics if m.name == name and m.slice == slice), None)


class GateOutcome(StrEnum):
    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INSUFFICIENT = "insufficient evidence"


class GateResult(_Record):
    """What one gate decided, on which numbers, and why."""

    gate: str
    metric: str
    slice: str | None = None
    outcome: GateOutcome
    value: float | None
    bound: float
    bound_kind: Literal["floor", "ceiling"]
    missed_by: float | None = Field(
        default=None, description="how far the value is on the wrong side; None when it is not"
    )
    examples: int
    interval: Interval | None = None
    champion_value: float | None = None
    champion_test: str | None = None
    p_value: float | None = None
    rows_needed: int | None = Field(default=None, description="rows with which the same difference would decide")
    reason: str


class GateReport(_Record):
    """The verdict on one candidate. The worst outcome of its gates is its own."""

    schema_version: Literal[1] = 1
    use_case: str
    weights_digest: Digest
    data_digest: Digest
    champion: str | None = None
    decided_at: Utc
    outcome: GateOutcome
    results: tuple[GateResult, ...]


class ModelCandidate(_Record):
    """Everything a version is registered with. The same ``key`` registers once, however often it is tried."""

    name: str
    key: str = Field(description="digest over weights, data and gate verdict; makes `register` idempotent")
    model_dir: Path
    weights_digest: Digest
    data_digest: Digest
    base_model: str
    commit: str
    run_id: str
    tracking_url: str = ""
    profile: str
    parent: str | None = Field(default=None, description="`NAME:VERSION` that was champion when this one was trained")
    metrics: dict[str, float] = Field(default_factory=dict)
    attachments: dict[str, Path] = Field(
        default_factory=dict, description="file name to path: gate_report.json, gate_report.html, model_card.md, ..."
    )


class ModelVersion(_Record):
    """A registered, immutable version, as any registry returns it."""

    schema_version: Literal[1] = 1
    name: str
    version: int
    key: str
    aliases: tuple[str, ...] = ()
    weights_digest: Digest
    data_digest: Digest
    base_model: str
    commit: str
    run_id: str
    tracking_url: str = ""
    profile: str
    parent: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    attachments: tuple[str, ...] = ()
    created_at: Utc

    @property
    def ref(self) -> ModelRef:
        return ModelRef(name=self.name, version=self.version)


class Endpoint(_Record):
    """A Bento that answers as the service of a use case."""

    schema_version: Literal[1] = 1
    use_case: str
    version: int
    tag: str = Field(description="Bento tag, `NAME:VERSION`")
    url: str
    deployed_at: Utc


class LedgerEntry(_Record):
    """One line of the promotion ledger: who moved which alias where, when, why, on what evidence.

    An entry without an alias moved nothing: it notes something about the version, like a degradation.
    """

    schema_version: Literal[1] = 1
    sequence: int
    at: Utc
    name: str
    alias: str
    version: int | None = Field(description="None: the alias was removed")
    previous: int | None
    actor: str
    reason: str
    evidence: str = Field(default="", description="digest of the gate report, or a URL")
    previous_hash: str
    hash: str = Field(description="sha256 over this entry without `hash`, chained by `previous_hash`")


class Target(_Record):
    """One upstream of a route: a version, and the base URL of what serves it.

    That is a model Bento, or any API that speaks OpenAI's chat protocol. Credentials never stand here.
    """

    version: int
    url: str
    kind: Literal["v2", "openai"] = Field(default="v2", description="v2: Open Inference Protocol")
    model: str = Field(default="", max_length=200, description="the API's own name of the model; only for openai")
    key: str = Field(
        default="", pattern=r"^[a-z0-9_]{0,40}$", description="name of its API key in `chat.keys` of the settings"
    )


class TenantRoute(_Record):
    """Who answers one tenant, whatever the rest of the table says: no canary, no shadow."""

    target: Target
    fallback: Target | None = Field(default=None, description="steps in for this tenant; None: the table's fallback")


class RouteTable(_Record):
    """Who answers a use case. ``revision`` rises with every change; a change names its author and reason.

    Version 2 of the schema has `fallback` and `tenants`; tables of version 1 have neither.
    """

    schema_version: Literal[1, 2] = 2
    use_case: str
    revision: int = Field(default=0, ge=0, description="0: not stored yet")
    stable: Target
    canary: Target | None = None
    canary_percent: float = Field(default=0.0, ge=0, le=100)
    shadow: Target | None = None
    shadow_percent: float = Field(default=100.0, ge=0, le=100, description="share of requests that the shadow sees")
    fallback: Target | None = Field(default=None, description="answers when stable cannot, or when a budget is used up")
    tenants: dict[str, TenantRoute] = Field(default_factory=dict, description="tenant to the target it is pinned to")
    changed_at: Utc
    actor: str
    reason: str

    def targets(self) -> tuple[Target, ...]:
        """Everybody who may be asked, each once."""
        pinned = [each for route in self.tenants.values() for each in (route.target, route.fallback)]
        named = (self.stable, self.canary, self.shadow, self.fallback, *pinned)
        return tuple(dict.fromkeys(target for target in named if target is not None))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as the gateway could prove it.

    Attributes:
        subject: The user or service (``sub`` of a token, owner of an API key); ``anonymous`` when nothing is asked for.
        tenant: Whose budget and policies apply.
        scopes: What the caller may do, like ``support:predict``.
        method: ``jwt``, ``api-key`` or ``anonymous``.
        key_id: Id of the API key or of the token (``jti``), never the credential itself.
    """

    subject: str = "anonymous"
    tenant: str = "default"
    scopes: frozenset[str] = frozenset()
    method: str = "anonymous"
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request used, or may use at most.

    Attributes:
        tokens_in: Tokens read by the model.
        tokens_out: Tokens written by the model; 0 for a classifier.
        cost_micros: Price in millionths of the currency unit.
    """

    tokens_in: int = 0
    tokens_out: int = 0
    cost_micros: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one guard rule said about one text.

    Attributes:
        stage: ``input`` or ``output``.
        rule: Name of the rule in the use case's chain.
        action: What followed; ``review`` lets pass and marks for a person.
        reason: Reason code, like ``pii.iban``; empty for ``allow``.
        count: Places found.
        index: Which text of the request, from 0.
    """

    stage: Literal["input", "output"]
    rule: str
    action: Literal["allow", "mask", "block", "review"]
    reason: str = ""
    count: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class WindowRow:
    """What one answered text leaves in the inference log: everything monitors need, and no raw text.

    Attributes:
        request_id: The id in the response's header; with `index` the key of the row.
        index: Position of the text within its request, from 0.
        at: When the answer left, UTC.
        use_case: Name of the use case.
        version: Model version that answered.
        route: ``stable``, ``canary``, ``pinned`` (the tenant's own), ``fallback``, or ``shadow`` (never returned).
        subject: Pseudonym of the caller, or empty.
        label: Predicted label.
        score: Calibrated probability of `label`.
        abstain: Whether `score` is below the model's threshold.
        probabilities: Little-endian float16 of all labels in the model's order; empty when not asked for.
        embedding: Little-endian float16 of the pooled embedding; empty when not asked for.
        characters: Unicode characters.
        words: Groups of non-space characters.
        tokens: Model tokens, special ones included; 0 when unknown.
        digit_share: Share of characters that are digits.
        upper_share: Share of letters that are upper case.
        non_ascii_share: Share of characters outside ASCII.
        language: ISO 639-1 code, or empty when unsure or not looked at.
        latency_ms: From the arrival of the request to its answer.
    """

    request_id: str
    index: int
    at: datetime
    use_case: str
    version: int
    route: str
    subject: str
    label: str
    score: float
    abstain: bool
    probabilities: bytes
    embedding: bytes
    characters: int
    words: int
    tokens: int
    digit_share: float
    upper_share: float
    non_ascii_share: float
    language: str
    latency_ms: float


class Feedback(_Record):
    """What a person or system says later about one answer. The newest of a source counts."""

    schema_version: Literal[1] = 1
    feedback_id: str = Field(description="idempotency key: the same id again changes nothing")
    request_id: str
    index: int = Field(default=0, ge=0)
    use_case: str
    label: str | None = Field(
        default=None, description="the right label; None withdraws an earlier one, unless a rating is given"
    )
    rating: int | None = Field(default=None, ge=-1, le=1, description="-1 bad, 0 neutral, 1 good")
    source: str = Field(description="who says so: an agent's pseudonym or a system's name")
    at: Utc


class DriftScore(_Record):
    """One detector on one column of one window against the reference."""

    detector: str
    column: str
    family: Literal["input", "embedding", "prediction", "label", "quality"]
    value: float
    threshold: float = Field(
        description="calibrated on the reference; the family-wise false-alarm rate is the policy's"
    )
    p_value: float | None = None
    drifted: bool
    rows: int = Field(description="rows of the current window that it was computed on")


class DriftReport(_Record):
    """All scores of one window. ``drifted`` is decided family-wise, not by counting scores."""

    schema_version: Literal[1] = 1
    use_case: str
    version: int
    window_start: Utc
    window_end: Utc
    rows: int
    reference_rows: int
    reference_digest: str
    scores: tuple[DriftScore, ...]
    drifted: bool
    insufficient: str = Field(default="", description="why the window could not be judged; empty when it was")
    shift: Literal["", "none", "prior", "other"] = Field(
        default="",
        description="of a drifted window: `prior` when a changed mix of labels explains the embeddings, `other` when "
        "it does not, `none` when they did not move; empty when it was not looked at",
    )
    estimated_accuracy: Metric | None = Field(default=None, description="from confidences, without labels")
    measured_accuracy: Metric | None = Field(default=None, description="on the rows with feedback labels")
    reference_accuracy: float | None = None
    error_rate: float | None = Field(default=None, description="share of requests that failed in the window")
    latency_p99_ms: float | None = None


class Action(StrEnum):
    NOTHING = "nothing"
    WARN = "warn"
    RETRAIN = "retrain"
    ROLL_BACK = "roll back"
    ASK = "ask a person"


class Finding(StrEnum):
    """What one window showed; the triage that a `Decision` starts from."""

    UNJUDGED = "too few rows"
    HEALTHY = "no drift, no loss"
    HARMLESS = "drift, quality holds"
    UNCERTAIN = "drift, quality unknown"
    LOSS = "quality loss"
    FAILING = "service failing"


class Decision(_Record):
    """What follows from a window, and why."""

    schema_version: Literal[1] = 1
    use_case: str
    version: int
    at: Utc
    action: Action
    reasons: tuple[str, ...]
    report_digest: str = ""
    finding: Finding | None = Field(default=None, description="what the window showed; None in records without one")
    window_start: Utc | None = None
    window_end: Utc | None = None


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Alert(_Record):
    """Something a person should know. ``key`` names the trouble: the same key is the same trouble."""

    schema_version: Literal[1] = 1
    key: str = Field(description="`USE_CASE/KIND`, stable while the trouble lasts")
    severity: Severity
    title: str
    body: str
    use_case: str
    runbook: str = Field(default="", description="URL or path of the page that says what to do")
    starts_at: Utc
    resolved: bool = False
    resolved_at: Utc | None = None
    notification: int = Field(default=1, ge=1, description="how many times this trouble was told, this time included")
