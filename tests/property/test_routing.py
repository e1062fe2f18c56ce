"""Routing is a fair, monotone and repeatable choice."""

import subprocess
import sys
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from leitstand.types import RouteTable, Target, TenantRoute
from services.routing import choose, insist, point

STABLE, CANARY, SHADOW = (Target(version=n, url=f"http://127.0.0.1:{3000 + n}") for n in (1, 2, 3))
percents = st.floats(0, 100)
names = st.text(max_size=30)


def table(percent: float, *, shadow: float | None = None, version: int = 2) -> RouteTable:
    return RouteTable(
        use_case="support", stable=STABLE, canary=CANARY.model_copy(update={"version": version}),
        canary_percent=percent, shadow=None if shadow is None else SHADOW, shadow_percent=shadow or 0,
        changed_at=datetime(2026, 1, 1, tzinfo=UTC), actor="test", reason="test",
    )  # fmt: skip


@given(subject=names, low=percents, high=percents)
def test_raising_the_share_keeps_those_on_the_canary_there(subject: str, low: float, high: float) -> None:
    low, high = sorted((low, high))
    if choose(table(low), "r", subject).route == "canary":
        assert choose(table(high), "r", subject).route == "canary"


@given(subject=names.filter(bool), first=names, second=names, percent=percents)
def test_a_subject_meets_the_same_route_on_every_request(
    subject: str, first: str, second: str, percent: float
) -> None:  # fmt: skip
    assert choose(table(percent), first, subject).route == choose(table(percent), second, subject).route


@given(subject=names, request=names)
def test_nothing_goes_to_a_canary_of_zero_and_everything_to_one_of_a_hundred(subject: str, request: str) -> None:
    assert choose(table(0), request, subject).target == STABLE
    assert choose(table(100), request, subject).target == CANARY


@settings(max_examples=30, deadline=None)
@given(percent=st.floats(0.5, 99.5), salt=st.integers(0, 10**9))
def test_shares_are_those_of_the_table(percent: float, salt: int) -> None:
    count = 2000
    routes = table(percent, shadow=percent)
    choices = [choose(routes, f"request-{salt}-{i}", f"subject-{salt}-{i}") for i in range(count)]
    for hits in (sum(c.route == "canary" for c in choices), sum(c.shadow is not None for c in choices)):
        assert binomtest(hits, count, percent / 100).pvalue > 1e-7


@settings(max_examples=30, deadline=None)
@given(salt=st.integers(0, 10**9))
def test_shadow_sampling_says_nothing_about_the_canary(salt: int) -> None:
    choices = [choose(table(50, shadow=50), f"{salt}-{i}") for i in range(2000)]
    both = sum(c.route == "canary" and c.shadow is not None for c in choices)
    assert binomtest(both, 2000, 0.25).pvalue > 1e-7


def test_another_canary_meets_other_subjects_first() -> None:
    first, second = (
        {i for i in range(2000) if choose(table(10, version=version), "r", str(i)).route == "canary"}
        for version in (2, 3)
    )
    assert len(first & second) < len(first) / 2


def test_every_process_agrees() -> None:
    code = "from services.routing import point; print([point('canary', 'support', '2', str(i)) for i in range(50)])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert done.stdout.strip() == str([point("canary", "support", "2", str(i)) for i in range(50)])


def test_only_a_canary_has_a_stand_in() -> None:
    assert choose(table(100), "r").stand_in == STABLE
    assert choose(table(0), "r").stand_in is None


@given(subject=names, request=names, percent=percents)
def test_a_pinned_tenant_meets_its_target_and_nobody_else_does(subject: str, request: str, percent: float) -> None:
    pinned = table(percent, shadow=100).model_copy(update={"tenants": {"acme": TenantRoute(target=SHADOW)}})
    choice = choose(pinned, request, subject, "acme")
    assert (choice.route, choice.target, choice.stand_in, choice.shadow) == ("pinned", SHADOW, None, None)
    assert choose(pinned, request, subject, "umbrella") == choose(table(percent, shadow=100), request, subject)


def test_a_version_is_found_by_number_only_where_the_caller_is_routed_to() -> None:
    small = Target(version=9, url="http://127.0.0.1:3009")
    routes = table(5).model_copy(update={"fallback": small, "tenants": {"acme": TenantRoute(target=SHADOW)}})
    found = {version: insist(routes, version) for version in (1, 2, 3, 9)}
    assert {version: choice and choice.route for version, choice in found.items()} == {
        1: "stable", 2: "canary", 3: None, 9: "fallback",
    }  # fmt: skip
    assert insist(routes, 1, "acme") is None
    assert insist(routes, 3, "acme") is not None and insist(routes, 9, "acme") is not None
