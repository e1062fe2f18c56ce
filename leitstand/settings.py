"""The one settings tree, and the only module that reads the environment.

Every variable starts with ``LEITSTAND_`` and nests with ``__``: ``LEITSTAND_REGISTRY__URI``. A ``.env``
file in the working directory is read too. Build it once at the entry point with `load_settings` and
pass it down. Secrets are `SecretStr` and never printed.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from leitstand.errors import ConfigurationError

__all__ = [
    "AccessSettings",
    "AlertSettings",
    "AuditSettings",
    "BlobSettings",
    "BudgetSettings",
    "ChatKey",
    "ChatSettings",
    "ChecksSettings",
    "GatewaySettings",
    "JobSettings",
    "KubernetesSettings",
    "LineageSettings",
    "LocalSettings",
    "MonitoringSettings",
    "RegistrySettings",
    "S3Settings",
    "ServingSettings",
    "Settings",
    "SmtpSettings",
    "TelemetrySettings",
    "TlsSettings",
    "TrackingSettings",
    "apply_environment",
    "child_environment",
    "isolate_environment",
    "load_settings",
    "quiet_environment",
]

_OURS = ("LEITSTAND_", "BENTOML_", "PREFECT_", "WANDB_", "MLFLOW_", "OPENLINEAGE_")


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RegistrySettings(_Group):
    """Where model versions live."""

    kind: Literal["mlflow", "wandb"] = "mlflow"
    uri: str = Field(default="", description="SQLAlchemy URI or MLflow server; empty: SQLite below `home`")
    artifacts: str = Field(
        default="", description="folder or s3:// prefix for model files; empty: a folder below `home`"
    )
    entity: str = Field(default="", description="W&B entity that owns the registry; only for kind=wandb")


class TrackingSettings(_Group):
    """Where training runs are logged."""

    project: str = Field(default="leitstand", description="W&B project")
    api_key: SecretStr | None = Field(default=None, description="W&B key; without one, runs stay offline")
    base_url: str = Field(default="", description="W&B server of your own")


class S3Settings(_Group):
    """Credentials come from boto3's usual chain; these only say where the server is."""

    endpoint_url: str = Field(default="", description="empty: AWS")
    region: str = "us-east-1"
    multipart_bytes: int = Field(default=16 * 2**20, ge=5 * 2**20, description="part size in bytes")


class BlobSettings(_Group):
    uri: str = Field(default="", description="folder or s3:// prefix; empty: a folder below `home`")


class LineageSettings(_Group):
    """Where OpenLineage events go: always to a file, and over HTTP when a URL is set."""

    namespace: str = "leitstand"
    url: str = Field(default="", description="OpenLineage HTTP endpoint, like http://marquez:5000")
    api_key: SecretStr | None = None
    timeout_s: float = Field(default=3.0, gt=0)
    source_url: str = Field(
        default="", description="URL of this code's repository, named by events; empty: a package URL"
    )


class ServingSettings(_Group):
    host: str = Field(default="127.0.0.1", description="address that Bentos bind to")
    threads: int = Field(default=0, ge=0, description="compute threads of the engine; 0: one per physical core")
    workers: int = Field(default=1, ge=1, description="processes per Bento")
    engine: Literal["", "auto", "openvino", "torch"] = Field(default="", description="overrides the use case's choice")
    drain_s: float = Field(default=20.0, ge=0, description="time in-flight requests get after SIGTERM")
    inference_log: bool = Field(
        default=False, description="whether Bentos write the inference log; off, because the gateway does"
    )
    token: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="shared secret: Bentos answer only who shows it; none: anybody, in environment=local only",
    )
    previous_token: SecretStr | None = Field(
        default=None, min_length=32, description="also accepted by Bentos, while `token` is being exchanged"
    )


class MonitoringSettings(_Group):
    """The inference log, feedback, and the opt-in store of texts."""

    log: str = Field(default="", description="folder or s3:// prefix; empty: a folder below `home`")
    flush_rows: int = Field(default=5000, ge=1, description="rows after which the buffer is written")
    flush_s: float = Field(default=5.0, gt=0, description="age of the oldest row at which the buffer is written")
    buffer_rows: int = Field(default=50_000, ge=1, description="rows kept in memory at most; more are dropped")
    retention_days: int = Field(default=90, ge=1, description="days that rows are kept")
    languages_per_s: float = Field(
        default=50.0, ge=0, description="texts per second whose language is detected; 0: none (0.2 ms of CPU each)"
    )
    feedback: str = Field(default="", description="SQLite file; empty: below `home`")
    keep_texts_days: int = Field(default=0, ge=0, description="days that encrypted raw texts are kept; 0: never kept")
    texts_key: SecretStr | None = Field(
        default=None, description="Fernet key of the kept texts; without one, a key file below `home`"
    )


class GatewaySettings(_Group):
    """The gateway: where it listens, whom it asks, and how much it takes on."""

    host: str = Field(default="127.0.0.1", description="address that the gateway binds to")
    port: int = Field(default=8080, ge=1, le=65535)
    routes_uri: str = Field(
        default="", description="route tables: redis://…, postgresql://… or an SQLite file; empty: SQLite below `home`"
    )
    urls: tuple[str, ...] = Field(
        default=(), description="every gateway that rollouts judge by, as a JSON list; empty: the one on this machine"
    )
    refresh_s: float = Field(default=0.25, gt=0, le=1, description="how often a gateway looks for changed routes")
    deadline_s: float = Field(
        default=5.0, gt=0, description="time a request gets; a canary gets half, so that stable can step in"
    )
    client_s: float = Field(
        default=20.0, gt=0, description="time a client gets to send a request, or to take an answer that waits for it"
    )
    connect_s: float = Field(default=1.0, gt=0, description="time to open a connection to an upstream")
    max_in_flight: int = Field(default=512, ge=1, description="requests at once; more are answered 503")
    max_shadows: int = Field(default=16, ge=0, description="shadow calls at once; more are skipped and counted")
    max_body_bytes: int = Field(default=2 * 2**20, ge=1, description="larger requests are answered 413")
    max_texts: int = Field(default=256, ge=1, le=1024, description="texts per `predict` request")
    log_vectors: bool = Field(
        default=True, description="ask upstreams that offer them for probabilities and embeddings, for the log"
    )
    subject_key: SecretStr | None = Field(
        default=None, description="key of the pseudonyms of subjects in the log; without one none are logged"
    )
    max_headers: int = Field(default=64, ge=1, description="header lines per request; more are answered 431")
    max_header_bytes: int = Field(default=32 * 1024, ge=1024, description="names and values together")
    max_json_depth: int = Field(default=32, ge=2, description="nesting of a JSON body; deeper ones are answered 400")
    cors_origins: tuple[str, ...] = Field(
        default=(), description="origins whose pages may call, as a JSON list; empty: none"
    )
    private_upstreams: bool | None = Field(
        default=None, description="whether upstreams may have private addresses; empty: in environment=local only"
    )
    jwe_key: Path | None = Field(
        default=None, description="PEM file of the EC or RSA key that `application/jose` bodies are encrypted to"
    )


class TlsSettings(_Group):
    """Certificates of the gateway: to those who call it, and to those that it calls. All are PEM files."""

    cert: Path | None = Field(default=None, description="the gateway's certificate chain; with `key`: serve HTTPS")
    key: Path | None = Field(default=None, description="private key of `cert`")
    client_ca: Path | None = Field(default=None, description="callers must show a certificate that this CA signed")
    upstream_ca: Path | None = Field(default=None, description="CA of upstreams, trusted beside those of the system")
    upstream_cert: Path | None = Field(default=None, description="certificate that the gateway shows to upstreams")
    upstream_key: Path | None = Field(default=None, description="private key of `upstream_cert`")

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if (self.cert is None) != (self.key is None) or (self.upstream_cert is None) != (self.upstream_key is None):
            raise ValueError("a certificate and its key are given together")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca needs cert and key: only HTTPS asks for certificates")
        return self


class AccessSettings(_Group):
    """Who may ask the gateway: tokens of an OAuth2 issuer, and API keys."""

    mode: Literal["", "off", "required"] = Field(
        default="", description="empty: off in environment=local on a loopback address, required elsewhere"
    )
    issuer: str = Field(default="", description="the `iss` of accepted tokens; its keys are discovered below this URL")
    audience: str = Field(default="", description="what `aud` of an accepted token names: this gateway")
    jwks_url: str = Field(default="", description="where the issuer's keys are; empty: as its metadata says")
    issuer_ca: Path | None = Field(default=None, description="PEM file: CA of the issuer; empty: those of the system")
    algorithms: tuple[Literal["RS256", "ES256", "EdDSA", "Ed25519"], ...] = Field(
        default=("RS256", "ES256", "EdDSA", "Ed25519"), min_length=1, description="accepted signatures, as a JSON list"
    )
    token_types: tuple[str, ...] = Field(
        default=("at+jwt", "JWT"), min_length=1, description="accepted `typ` of a token; at+jwt is RFC 9068's"
    )
    leeway_s: int = Field(default=15, ge=0, le=120, description="how far the issuer's clock may be off")
    scope_claim: str = Field(default="scope", description="claim with the scopes: a list, or words in one string")
    tenant_claim: str = Field(default="tenant", description="claim that names the tenant")
    default_tenant: str = Field(default="", description="tenant of tokens without that claim; empty: they are refused")
    jwks_ttl_s: float = Field(default=300.0, gt=0, description="age at which the issuer's keys are fetched again")
    jwks_keep_s: float = Field(
        default=86_400.0, gt=0, description="how long the last keys are used while the issuer does not answer"
    )
    jwks_pause_s: float = Field(default=10.0, gt=0, description="between two fetches that unknown key ids cause")
    max_token_bytes: int = Field(default=8192, ge=512, le=65_536, description="longer credentials are refused unread")
    cached_tokens: int = Field(
        default=10_000, ge=1, description="verified tokens that are remembered until they expire"
    )
    keys_uri: str = Field(
        default="", description="API keys: redis://... or an SQLite file; empty: beside the route tables"
    )
    keys_keep_s: float = Field(
        default=300.0, gt=0, description="how long known API keys are accepted while their store does not answer"
    )
    metrics: Literal["open", "scope", "off"] = Field(
        default="scope", description="/metrics: for everybody, with the scope `metrics:read`, or for nobody"
    )
    client_key: SecretStr | None = Field(
        default=None, description="API key that rollouts and nightly checks show to the gateways they read"
    )
    client_ca: Path | None = Field(
        default=None, description="PEM file: CA of the gateways they read, trusted beside those of the system"
    )

    @model_validator(mode="after")
    def _issuer_with_audience(self) -> Self:
        if bool(self.issuer) != bool(self.audience):
            raise ValueError("issuer and audience are given together: a token for somebody else must not pass")
        return self


class TelemetrySettings(_Group):
    """The gateway's traces and access log. Neither ever holds a text, a credential or a person's name."""

    traces_url: str = Field(
        default="",
        pattern="^(https?://.+)?$",
        description="OTLP/HTTP endpoint of a collector, like http://collector:4318/v1/traces; empty: no traces",
    )
    traces_headers: SecretStr | None = Field(
        default=None, description="headers for the collector as name=value, separated by commas; keys are secrets"
    )
    traces_timeout_s: float = Field(default=5.0, gt=0, description="for one export; what fails is dropped")
    sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of traces that begin here and are kept; a caller's choice wins"
    )
    service_name: str = Field(default="leitstand-gateway", min_length=1, description="`service.name` of spans and logs")
    access_log: Literal["off", "errors", "all"] = Field(
        default="errors", description="requests that leave a log line; `errors`: status 400 and above"
    )
    access_log_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of the successful requests that `all` logs; errors always are"
    )


class JobSettings(_Group):
    """The request queue: long work that workers answer, kept in Redis until then."""

    redis_uri: str = Field(
        default="", description="redis://host:port/db; empty: `gateway.routes_uri` when that is Redis, else no queue"
    )
    key: SecretStr | None = Field(
        default=None,
        description="32 bytes in URL-safe base64 that texts and answers are sealed with; none: a key file below `home`",
    )
    old_keys: tuple[SecretStr, ...] = Field(default=(), description="keys that still open, as a JSON list")
    max_body_bytes: int = Field(default=16 * 2**20, ge=1, description="larger requests for a job are answered 413")
    max_texts: int = Field(default=10_000, ge=1, description="texts per job")
    max_open: int = Field(default=1000, ge=1, description="jobs that wait or run; more are answered 503")
    max_open_per_tenant: int = Field(default=100, ge=1, description="the same of one tenant; more are answered 429")
    max_bytes: int = Field(
        default=256 * 2**20, ge=1, description="sealed texts of open jobs and dead letters; beyond it: 503"
    )
    max_event_streams: int = Field(default=200, ge=0, description="progress streams at once; more are answered 503")
    max_age: timedelta = Field(
        default=timedelta(days=1), gt=timedelta(), description="a job that did not end by then is a dead letter"
    )
    result_ttl: timedelta = Field(default=timedelta(days=1), gt=timedelta(), description="until a result is erased")
    dead_ttl: timedelta = Field(default=timedelta(days=7), gt=timedelta(), description="until a dead letter is erased")
    chunk_texts: int = Field(default=32, ge=1, le=1024, description="texts that a worker asks for at once")
    concurrency: int = Field(default=4, ge=1, le=256, description="jobs that one worker runs at once")
    max_attempts: int = Field(default=5, ge=1, le=100, description="times a job is begun before it is a dead letter")
    backoff_s: float = Field(default=2.0, gt=0, description="before the first retry; doubled each time, with jitter")
    max_backoff_s: float = Field(default=300.0, gt=0, description="longest wait before a retry")
    lease_s: float = Field(
        default=30.0, ge=0.5, description="a worker that is silent for so long loses its jobs to others"
    )
    poll_s: float = Field(default=0.1, gt=0, le=10, description="how often an idle worker looks for jobs")
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="port on loopback where a worker shows its metrics; 0: nowhere"
    )


class BudgetSettings(_Group):
    """Where the counts of budgets and limits are kept; the limits themselves stand in the use-case files."""

    uri: str = Field(
        default="", description="redis://host:port/db for several machines, or an SQLite file; empty: below `home`"
    )
    tenants: Path | None = Field(
        default=None, description="YAML file with limits of tenants over all use cases together; none: no such limits"
    )
    lease_s: float = Field(
        default=30.0, ge=1, le=3600, description="time after which a crashed gateway's reservations are booked as used"
    )
    timeout_s: float = Field(default=0.5, gt=0, le=10, description="for one answer of the store")
    metric_tenants: int = Field(
        default=50, ge=0, le=1000, description="tenants with limits of their own that metrics name, first by name"
    )


class AuditSettings(_Group):
    """The audit trail: how durable it is, where it lies, how long it is kept, and where its heads are anchored."""

    mode: Literal["strict", "relaxed", "off"] = Field(
        default="strict",
        description="strict: no answer leaves before its record is on disk; relaxed: written within `flush_s`; a use "
        "case may say otherwise",
    )
    folder: str = Field(default="", description="where the trail lies; empty: a folder below `home`")
    master_key: SecretStr | None = Field(
        default=None, description="32 bytes in base64 that wrap the data keys; without one, a key file beside the trail"
    )
    signing_key: SecretStr | None = Field(
        default=None,
        description="Ed25519 private key (PEM) that signs heads; without one, a key file beside the trail",
    )
    flush_s: float = Field(default=0.5, gt=0, le=60, description="within which relaxed records are written")
    max_waiting: int = Field(
        default=10_000, ge=1, description="records that may wait for the disk; strict ones beyond are answered 503, "
        "relaxed ones counted as lost, also in the trail"
    )  # fmt: skip
    segment_bytes: int = Field(default=64 * 2**20, ge=4096, description="size at which a new file is begun")
    retention_days: int = Field(
        default=183, ge=1, description="days that records are kept; `leitstand audit prune` never removes younger ones"
    )
    anchors: str = Field(
        default="", description="where signed heads are anchored: a folder on another host, or s3://BUCKET/PREFIX"
    )
    anchor_lock: Literal["compliance", "governance", "off"] = Field(
        default="compliance", description="S3 object lock of anchors, for `retention_days`; off: none"
    )


class ChatKey(_Group):
    """The API key of one provider, and the only place that it is sent to."""

    url: str = Field(pattern=r"^https?://[^/?#@\\]+$", description="origin it is sent to, like https://api.example")
    value: SecretStr

    @field_validator("value")
    @classmethod
    def _fits_a_header(cls, value: SecretStr) -> SecretStr:
        if not all(0x21 <= ord(sign) < 0x7F for sign in value.get_secret_value()):  # noqa: PLR2004 -- visible ASCII
            raise ValueError("an API key has visible ASCII characters only")
        return value

    @model_validator(mode="after")
    def _not_in_the_clear(self) -> Self:
        host = urlsplit(self.url).hostname or ""
        if self.url.startswith("http://") and host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError("url must be https:// unless it is loopback, or the key travels in the clear")
        return self


class ChatSettings(_Group):
    """OpenAI-compatible APIs behind the gateway, and how long it waits for what they write."""

    keys: dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,40}$")], ChatKey] = Field(
        default_factory=dict, description="API keys by the name that route tables use"
    )
    deadline_s: float = Field(default=120.0, gt=0, description="time that a whole answer gets")
    idle_s: float = Field(default=20.0, gt=0, description="time between two pieces of a stream, at most")
    max_answer_bytes: int = Field(default=2**20, ge=1024, description="text of one answer; a longer one is cut off")


class SmtpSettings(_Group):
    """The mail server that alerts are handed to, and who gets them."""

    host: str = Field(default="", description="empty: no e-mail")
    port: int = Field(default=587, ge=1, le=65535)
    starttls: bool = Field(default=True, description="encrypt before anything is said; refuse a server that cannot")
    user: str = ""
    password: SecretStr | None = None
    sender: str = Field(default="leitstand@localhost", description="address that the mails come from")
    recipients: tuple[str, ...] = Field(default=(), description="addresses, as a JSON list")


class AlertSettings(_Group):
    """Where alerts go besides the log, and how often. A sink is used when its address is set."""

    webhook_url: str = Field(default="", description="gets each alert as a CloudEvent (structured JSON)")
    webhook_secret: SecretStr | None = Field(
        default=None, description="key of the HMAC-SHA256 in the header `x-leitstand-signature`; none: unsigned"
    )
    slack_url: SecretStr | None = Field(
        default=None, description="Slack-compatible incoming webhook; its URL is secret"
    )
    alertmanager_url: str = Field(
        default="", description="base URL of a Prometheus Alertmanager, like http://host:9093"
    )
    smtp: SmtpSettings = SmtpSettings()
    runbooks: str = Field(default="docs/runbooks", description="URL or folder below which the runbooks lie")
    timeout_s: float = Field(default=5.0, gt=0, description="for one attempt to reach a sink")
    attempts: int = Field(default=3, ge=1, le=10, description="per delivery; what fails is kept and tried again later")
    repeat_after: timedelta = Field(
        default=timedelta(hours=12), gt=timedelta(), description="until trouble that lasts is told again"
    )
    cool_down: timedelta = Field(
        default=timedelta(hours=1), description="trouble that returns sooner must last before it is told again"
    )
    steady: int = Field(
        default=2, ge=1, description="observations in a row that end trouble, or that prove a quick return of it"
    )
    keep_for: timedelta = Field(
        default=timedelta(days=7), gt=timedelta(), description="until an alert that no sink takes is given up"
    )


class ChecksSettings(_Group):
    """What the nightly checks ask of this installation, and what they keep."""

    min_free_gb: float = Field(default=2.0, ge=0, description="free space below `home`, in GB of 10^9 bytes")
    certificates: tuple[Path, ...] = Field(default=(), description="PEM files whose expiry is watched, as a JSON list")
    expiry_days: int = Field(default=14, ge=1, description="days before an expiry that it is told")
    backups: str = Field(default="", description="folder of the backups of the state; empty: below `home`")
    keep_backups: int = Field(default=14, ge=1, description="backups that are kept")


class KubernetesSettings(_Group):
    """Where Bentos run when `image` is set; otherwise they are processes on this machine."""

    image: str = Field(
        default="", description="image of a Bento, like registry.example/{name}:{version}; {tag} is its Bento tag"
    )
    namespace: str = Field(default="default", min_length=1)
    context: str = Field(default="", description="kubectl's context; empty: the current one")
    env_secret: str = Field(
        default="", description="Secret whose entries become the pods' environment, like LEITSTAND_SERVING__TOKEN"
    )
    replicas: int = Field(default=1, ge=1, description="pods per version")
    cpu: str = Field(default="1", description="requested per pod")
    memory: str = Field(default="1Gi", description="requested and allowed per pod")
    ready_timeout_s: float = Field(default=180.0, gt=0)


class LocalSettings(_Group):
    """What `leitstand up` starts on this machine."""

    prefect_port: int = Field(default=4200, ge=1, le=65535)
    ready_timeout_s: float = Field(default=120.0, gt=0)


class Settings(BaseSettings):
    """Everything that may differ between two installations of the same code."""

    model_config = SettingsConfigDict(
        env_prefix="LEITSTAND_", env_nested_delimiter="__", env_file=".env", extra="ignore", frozen=True
    )

    environment: Literal["local", "staging", "production"] = "local"
    home: Path = Field(default=Path(".leitstand"), description="folder of everything that runs leave behind")
    usecases: Path = Field(default=Path("usecases"), description="folder of the use cases")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["ecs", "console"] = Field(
        default="ecs", description="`ecs`: JSON lines of the Elastic Common Schema; `console`: for people"
    )
    log_file: str = Field(
        default="", description="file of the gateway's log, below `home` or absolute, rotated; empty: standard error"
    )
    log_file_mb: int = Field(default=50, ge=1, description="size at which the file is rotated, in MB of 10^6 bytes")
    log_file_backups: int = Field(default=5, ge=1, description="rotated files that are kept")
    registry: RegistrySettings = RegistrySettings()
    tracking: TrackingSettings = TrackingSettings()
    s3: S3Settings = S3Settings()
    blobs: BlobSettings = BlobSettings()
    lineage: LineageSettings = LineageSettings()
    serving: ServingSettings = ServingSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    gateway: GatewaySettings = GatewaySettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    access: AccessSettings = AccessSettings()
    tls: TlsSettings = TlsSettings()
    jobs: JobSettings = JobSettings()
    budgets: BudgetSettings = BudgetSettings()
    chat: ChatSettings = ChatSettings()
    audit: AuditSettings = AuditSettings()
    alerts: AlertSettings = AlertSettings()
    checks: ChecksSettings = ChecksSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    local: LocalSettings = LocalSettings()

    @model_validator(mode="after")
    def _safe_outside_local(self) -> Self:
        if self.environment != "local" and self.lineage.url.startswith("http://") and self.lineage.api_key:
            raise ValueError("lineage.url must be https:// when an API key is sent outside environment=local")
        if self.environment != "local" and self.alerts.smtp.password and not self.alerts.smtp.starttls:
            raise ValueError("alerts.smtp.starttls must be on when a password is sent outside environment=local")
        traces = self.telemetry
        if self.environment != "local" and traces.traces_headers and traces.traces_url.startswith("http:"):
            raise ValueError("telemetry.traces_url must be https:// when headers are sent outside environment=local")
        if self.environment != "local" and any(
            url.startswith("http://") for url in (self.access.issuer, self.access.jwks_url)
        ):
            raise ValueError("access.issuer and access.jwks_url must be https:// outside environment=local")
        return self

    @property
    def root(self) -> Path:
        """`home` as an absolute path."""
        return self.home.expanduser().resolve()


def load_settings() -> Settings:
    """Reads the environment and `.env`.

    Raises:
        ConfigurationError: A variable has a value that is not allowed; the message names the variable.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        lines = [f"{_variable(item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ConfigurationError("\n".join(lines), hint="correct the variable or the .env file") from error
    if settings.tracking.api_key is None and (key := os.environ.get("WANDB_API_KEY")):
        tracking = settings.tracking.model_copy(update={"api_key": SecretStr(key)})
        settings = settings.model_copy(update={"tracking": tracking})
    return settings


def _variable(loc: tuple[int | str, ...]) -> str:
    return "LEITSTAND_" + "__".join(str(part) for part in loc).upper()


def quiet_environment(settings: Settings, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for child processes: telemetry off, hubs offline, stores below `home`.

    A value that is already set wins, so a user can point any tool elsewhere.
    """
    home = settings.root
    defaults = {
        "DO_NOT_TRACK": "true",
        "BENTOML_DO_NOT_TRACK": "True",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DATA_DIR": str(home / "wandb" / "data"),
        "WANDB_CACHE_DIR": str(home / "wandb" / "cache"),
        "OPENVINO_TELEMETRY": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "passive",  # threads that wait by spinning slow down every other busy process
        "BENTOML_HOME": str(home / "bentoml"),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{settings.local.prefect_port}/api",
    }
    return defaults | dict(os.environ if base is None else base)


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child that must find only installed code: no `PYTHONPATH`, and `changes`."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | changes


def apply_environment(settings: Settings, *, prefect_server: bool = True, prefix: str = "") -> None:
    """Sets `quiet_environment` for this process; call before prefect, bentoml, wandb or mlflow is imported.

    Args:
        settings: Where the stores are.
        prefect_server: Whether a Prefect server runs; without one, flows start one for the time they run.
        prefix: Only variables that start with it, such as ``WANDB_``.
    """
    os.environ.update({name: value for name, value in quiet_environment(settings).items() if name.startswith(prefix)})
    if not prefect_server:
        os.environ.pop("PREFECT_API_URL", None)
        os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"


def isolate_environment(variables: Mapping[str, str]) -> None:
    """Makes this process and its children forget the user's settings and the stores of their tools.

    Args:
        variables: What is set afterwards. A `.env` file in the working directory still counts.
    """
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        del os.environ[name]
    os.environ.update(variables)
