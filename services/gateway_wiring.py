"""The composition root of the gateway: settings in, adapters out. Nothing is opened or started here."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from governance.access.addresses import private_allowed
from governance.audit.opening import open_trail
from governance.budgets.opening import open_budget_store
from governance.budgets.plans import Plans
from governance.feedback_log import open_feedback_log
from governance.inference_log import open_inference_log
from governance.input_store import open_input_store
from governance.routes.opening import open_route_store
from leitstand.errors import LeitstandError
from leitstand.ports import FeedbackLog, InferenceLog
from leitstand.settings import AccessSettings, GatewaySettings, JobSettings, Settings, TlsSettings
from leitstand.specs.resilience import ResilienceSpec
from leitstand.usecase import find, load
from services.access_wiring import open_access
from services.auditing import Auditor, audit_specs
from services.authentication import Access, OpenAccess
from services.budgeting import Budgeting
from services.chat_rules import ChatRules, open_chat_rules
from services.chat_upstream import ChatCalls
from services.gates import Gates
from services.guarding import Guarding, stream_guard
from services.inference import Inference
from services.jobs.opening import job_queue
from services.jobs.queue import JobQueue
from services.observer_wiring import watch
from services.observing import Watcher
from services.policies import Policies, Policy
from services.recent import RecentRequests
from services.recording import Recorder
from services.route_watch import RouteWatch
from services.tls import upstream_context
from services.upstreams import Upstreams

__all__ = ["Gateway", "wire"]

logger = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The parts of one gateway process."""

    settings: GatewaySettings
    drain_s: float
    routes: RouteWatch
    upstreams: Upstreams
    recorder: Recorder
    inference_log: InferenceLog
    feedback_log: FeedbackLog
    inference: Inference
    takes_new_labels: Callable[[str], bool]
    recent: RecentRequests = field(default_factory=RecentRequests)
    watchers: tuple[Watcher, ...] = ()
    access: Access = field(default_factory=OpenAccess)
    access_settings: AccessSettings = field(default_factory=AccessSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    policies: Policies = field(default_factory=Policies)
    auditor: Auditor | None = None
    budgeting: Budgeting | None = None
    jobs: JobQueue | None = None
    chat: ChatRules = field(default_factory=ChatRules)
    job_settings: JobSettings = field(default_factory=JobSettings)


UNKNOWN = ResilienceSpec()


def wire(settings: Settings, policies: Policies | None = None, *, authenticate: Policy | None = None) -> Gateway:
    """Builds the gateway that the settings describe.

    Args:
        settings: Of this installation.
        policies: Used instead of those that the settings describe.
        authenticate: Takes that policy's place: a worker's callers were authenticated before.

    Raises:
        ConfigurationError: A store's address cannot be understood, or strangers could use the gateway.
    """
    chosen = settings.gateway
    read = functools.cache(lambda use_case: _resilience(settings, use_case))
    guarding = Guarding(settings.usecases)
    audits = audit_specs(settings)
    routes = RouteWatch(
        open_route_store(settings),
        chosen.refresh_s,
        prepare=lambda use_case: (read(use_case), guarding.prepare(use_case), audits(use_case)),
    )

    def specs(use_case: str) -> ResilienceSpec:
        """Names come from clients: only those with routes are looked up and remembered."""
        return read(use_case) if routes.table(use_case) is not None else UNKNOWN

    token = settings.serving.token.get_secret_value() if settings.serving.token else ""
    upstreams = Upstreams(
        connect_s=chosen.connect_s, vectors=chosen.log_vectors,
        chats=ChatCalls(settings.chat), context=upstream_context(settings.tls),
        private=private_allowed(settings), token=token,
    )  # fmt: skip
    access = open_access(settings)
    log = open_inference_log(settings)
    key = chosen.subject_key.get_secret_value().encode() if chosen.subject_key else b""
    recorder = Recorder(log, subject_key=key, texts=open_input_store(settings))
    auditor = budgeting = None
    if policies is None:
        budgeting = _budgeting(settings, key)
        auditor = Auditor(open_trail(settings), settings.audit.mode, audits)
        policies = Policies(
            authenticate=access,
            admit=budgeting.admit,
            settle=budgeting.settle,
            audit=auditor,
            guard_input=guarding.guard_input,
            guard_output=guarding.guard_output,
            guard_stream=stream_guard,
        )
    if authenticate is not None:
        policies = replace(policies, authenticate=authenticate)
    policies, watchers = watch(settings, policies or Policies(), upstreams)
    inference = Inference(
        routes,
        upstreams,
        recorder,
        policies=policies,
        gates=Gates(specs, max_in_flight=chosen.max_in_flight, deadline_s=chosen.deadline_s),
        max_in_flight=chosen.max_in_flight,
        max_shadows=chosen.max_shadows,
    )
    return Gateway(
        settings=chosen, drain_s=settings.serving.drain_s, routes=routes, upstreams=upstreams, recorder=recorder,
        inference_log=log, feedback_log=open_feedback_log(settings), inference=inference,
        takes_new_labels=functools.cache(lambda use_case: _takes_new_labels(settings, use_case)),
        access=access, access_settings=settings.access, tls=settings.tls,
        watchers=watchers,
        policies=policies, auditor=auditor, budgeting=budgeting, jobs=job_queue(settings), job_settings=settings.jobs,
        chat=open_chat_rules(settings),
    )  # fmt: skip


def _budgeting(settings: Settings, pepper: bytes) -> Budgeting:
    plans, chosen = Plans(settings), settings.budgets
    return Budgeting(
        open_budget_store(settings), plans, lease_s=chosen.lease_s, pepper=pepper,
        named=plans.tenants()[: chosen.metric_tenants],
    )  # fmt: skip


def _takes_new_labels(settings: Settings, use_case: str) -> bool:
    """Whether people may name labels that the model does not have; `feedback.new_labels` of the use case says so.

    They only become training data by that policy. Without a readable file, only the model's labels are taken.
    """
    try:
        return load(find(use_case, settings.usecases)).feedback.new_labels != "never"
    except LeitstandError:
        return False


def _resilience(settings: Settings, use_case: str) -> ResilienceSpec:
    """What the use-case file says, read once; the defaults where there is no readable file."""
    try:
        return load(find(use_case, settings.usecases)).resilience
    except LeitstandError as error:
        logger.warning("Without a use-case file, resilience is the default", use_case=use_case, cause=error.message)
        return ResilienceSpec()
