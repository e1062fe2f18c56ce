"""Counters of gateways, read and added up."""

from prometheus_client.metrics import MetricWrapperBase

from leitstand.types import utc_now
from monitors.gateway_counts import (
    ANSWERED,
    BUCKET,
    DOUBT,
    FAILED,
    GUARDED,
    JUDGED,
    SHADOWS,
    TEXTS,
    Tally,
    accumulate,
    arm,
    latency_quantile_ms,
    parse_counts,
)  # fmt: skip
from monitors.rollout_evidence import judge
from monitors.rollout_rules import Phase, Rollout
from services import gateway_metrics
from tests.rollout_for_tests import USE_CASE

PAGE = """\
# TYPE gateway_latency_seconds histogram
gateway_latency_seconds_bucket{use_case="support",version="2",route="canary",le="0.1"} 8.0
gateway_latency_seconds_bucket{use_case="support",version="2",route="canary",le="0.25"} 9.0
gateway_latency_seconds_bucket{use_case="support",version="2",route="canary",le="+Inf"} 10.0
gateway_latency_seconds_count{use_case="support",version="2",route="canary"} 10.0
gateway_latency_seconds_bucket{use_case="support",version="2",route="shadow",le="0.1"} 6.0
gateway_latency_seconds_bucket{use_case="support",version="2",route="shadow",le="+Inf"} 7.0
gateway_latency_seconds_count{use_case="other",version="2",route="canary"} 99.0
# TYPE gateway_upstream_failures counter
gateway_upstream_failures_total{use_case="support",version="2",route="canary",reason="error"} 3.0
gateway_upstream_failures_total{use_case="support",version="2",route="canary",reason="timeout"} 1.0
gateway_upstream_failures_total{use_case="support",version="2",route="shadow",reason="timeout"} 7.0
# TYPE gateway_doubt summary
gateway_doubt_count{use_case="support",version="2",route="canary"} 20.0
gateway_doubt_sum{use_case="support",version="2",route="canary"} 2.5
# TYPE gateway_shadow_answers counter
gateway_shadow_answers_total{use_case="support",version="2",outcome="agree"} 5.0
gateway_shadow_answers_total{use_case="support",version="2",outcome="disagree"} 2.0
# TYPE gateway_judged_answers counter
gateway_judged_answers_total{use_case="support",version="2",route="canary",outcome="right"} 6.0
gateway_judged_answers_total{use_case="support",version="2",route="canary",outcome="wrong"} 3.0
# TYPE gateway_guarded_answers counter
gateway_guarded_answers_total{use_case="support",version="2",route="canary",outcome="pass"} 7.0
gateway_guarded_answers_total{use_case="support",version="2",route="canary",outcome="mask"} 1.0
gateway_guarded_answers_total{use_case="support",version="2",route="canary",outcome="block"} 2.0
"""


def counted(*pages: dict[str, dict[str, float]]) -> Tally:
    tally = accumulate(Tally(), pages[0], begun="x")
    for page in pages[1:]:
        tally = accumulate(tally, page, begun="x")
    return tally


def test_a_page_becomes_the_counts_of_each_version() -> None:
    tally = counted({"g": {}}, {"g": parse_counts(PAGE, "support")})
    canary = arm(tally, 2, slow_ms=100)
    assert (canary.requests, canary.failed, canary.slow, canary.texts, canary.doubt) == (14, 4, 2, 20, 2.5)
    assert (canary.rated, canary.negative) == (9, 3)
    assert (canary.guarded, canary.blocked) == (10, 2)
    assert arm(tally, 2, slow_ms=101).slow == 1, "the next bucket bound counts"
    shadow = arm(tally, 2, slow_ms=100, shadow=True)
    assert (shadow.requests, shadow.failed, shadow.slow, shadow.compared, shadow.agree) == (14, 7, 1, 7, 5)
    assert latency_quantile_ms(parse_counts(PAGE, "support"), 2, 0.8) == 100
    assert latency_quantile_ms({}, 2, 0.99) is None


def test_names_are_those_that_the_gateway_exposes() -> None:
    metrics = [metric for metric in vars(gateway_metrics).values() if isinstance(metric, MetricWrapperBase)]
    described = [family for metric in metrics for family in metric.describe()]
    exposed = {family.name + ("_total" if family.type == "counter" else "") for family in described}
    assert {ANSWERED.removesuffix("_count"), FAILED, DOUBT.removesuffix("_sum"), JUDGED, GUARDED, SHADOWS} <= exposed
    assert (BUCKET, TEXTS) == ("gateway_latency_seconds_bucket", "gateway_doubt_count")


def test_what_was_counted_before_the_first_look_or_in_another_step_is_nobodys_evidence() -> None:
    tally = counted({"g": {"2/answered": 100}}, {"g": {"2/answered": 130}})
    assert arm(tally, 2, 100).requests == 30
    tally = accumulate(tally, {"g": {"2/answered": 150}}, begun="another step")
    assert arm(tally, 2, 100).requests == 0
    assert arm(accumulate(tally, {"g": {"2/answered": 151}}, begun="another step"), 2, 100).requests == 1


def test_a_restarted_gateway_counts_from_zero_and_sources_add_up() -> None:
    tally = counted(
        {"a": {"2/answered": 50}, "b": {}},
        {"a": {"2/answered": 60}, "b": {"2/answered": 5}},
        {"a": {"2/answered": 4}, "b": {"2/answered": 6}},
    )
    assert arm(tally, 2, 100).requests == 10 + 4 + 6


def test_a_slow_or_unsure_shadow_is_harm_before_anybody_waits_for_it() -> None:
    now = utc_now()
    rollout = Rollout(
        rollout_id="support-r1", use_case="support", version=2, tag="support:2", previous=1, policy=USE_CASE.rollout,
        actor="ann", started_at=now, since=now, at=now, phase=Phase.SHADOW, slow_ms=100,
    )  # fmt: skip
    stable = {"1/answered": 500, "1/le:0.1": 499, "1/le:inf": 500, "1/texts": 500, "1/doubt": 20}
    shadow = {"2~shadow/agree": 300, "2~shadow/le:0.1": 299, "2~shadow/le:inf": 300, "2~shadow/texts": 300,
        "2~shadow/doubt": 12}  # fmt: skip

    def judged(**changes: float) -> str:
        changed = {key.replace("shadow_", "2~shadow/").replace("le_", "le:0."): value for key, value in changes.items()}
        return judge(rollout, counted({"g": {}}, {"g": stable | shadow | changed})).outcome

    assert judged() == "healthy"
    assert judged(shadow_le_1=200) == "broken"
    assert judged(shadow_doubt=150) == "broken"
