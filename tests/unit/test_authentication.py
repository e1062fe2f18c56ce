"""Who is let in, as whom, and for whom; and that a known caller is not verified again."""

from collections.abc import Mapping
from datetime import timedelta
from time import perf_counter
from typing import Any

import pytest

from governance.access.api_keys import ApiKey, mint
from governance.access.issuer_keys import StaticKeys
from governance.access.key_ring import KeyRing
from governance.access.tokens import SigningKey, TokenVerifier, Verified
from leitstand.errors import AuthenticationFailed, PolicyDenied, ScopeMissing, TransientBackendError
from leitstand.specs.access import AccessSpec
from leitstand.types import Caller, utc_now
from services.authentication import Authenticator, Issuer
from services.exchange import Exchange, TextPayload
from services.problems import problem_for, protocol_error
from tests.access_for_tests import NOW, RULES, TestIssuer
from tests.fakes import InMemoryApiKeys

ISSUER = TestIssuer()
SPECS = {
    "support": AccessSpec(), "closed": AccessSpec(tenants=("other",)),
    "renamed": AccessSpec(scopes={"predict": "tickets.read"}),
}  # fmt: skip


class CountingVerifier(TokenVerifier):
    """Counts what it verified."""

    calls = 0

    def verify(self, token: str, keys: Mapping[str, SigningKey], now: float) -> Verified:
        self.calls += 1
        return super().verify(token, keys, now)


class MovingKeys(StaticKeys):
    """Keys whose generation a test moves."""

    number = 0

    def generation(self) -> int:
        return self.number


class Bench:
    def __init__(self, **options: Any) -> None:
        self.now = NOW
        self.store = InMemoryApiKeys()
        self.ring = KeyRing(self.store, ticks=lambda: 0.0)
        self.verifier, self.keys = CountingVerifier(RULES), MovingKeys(ISSUER.keys())
        self.access = Authenticator(
            issuer=Issuer(self.verifier, self.keys), dev_issuer=None, ring=self.ring,
            specs=lambda use_case: SPECS[use_case], clock=lambda: self.now, **options,
        )  # fmt: skip

    async def key(self, *scopes: str, **changes: Any) -> str:
        text, record = mint("worker", "acme", scopes, now=utc_now(), ends_at=None)
        self.store.add(record.model_copy(update=changes))
        await self.ring.refresh()
        return text

    async def ask(self, use_case: str = "support", subject: str = "", **headers: str) -> Exchange:
        exchange = Exchange(
            use_case=use_case, request_id="r-1", subject=subject, payload=TextPayload(["a"]), path="/",
            deadline=perf_counter() + 5,
            headers={name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()},
        )  # fmt: skip
        await self.access(exchange)
        return exchange


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_a_persons_token_sets_caller_and_subject() -> None:
    exchange = await Bench().ask(**bearer(ISSUER.sign()))
    assert (exchange.caller.subject, exchange.caller.tenant, exchange.caller.method) == ("ada", "acme", "jwt")
    assert exchange.subject == "ada"


async def test_requests_of_a_service_are_spread_by_request_id() -> None:
    bench = Bench()
    exchange = await bench.ask(**bearer(ISSUER.sign(sub="worker", client_id="worker")))
    assert exchange.caller.subject == "worker" and exchange.subject == ""
    key = await bench.key("support:predict")
    assert (await bench.ask(x_api_key=key)).subject == ""


async def test_an_api_key_counts_in_either_header() -> None:
    bench = Bench()
    key = await bench.key("support:predict")
    for headers in ({"x_api_key": key}, bearer(key), {"authorization": f"bearer  {key} "}):
        caller = (await bench.ask(**headers)).caller
        assert caller == Caller("worker", "acme", frozenset({"support:predict"}), "api-key", key.split("_")[1])


async def test_another_subject_needs_a_scope_and_both_stay_on_record() -> None:
    bench = Bench()
    with pytest.raises(ScopeMissing) as caught:
        await bench.ask(subject="eve", **bearer(ISSUER.sign()))
    assert caught.value.scope == "support:on_behalf"
    assert (await bench.ask(subject="ada", **bearer(ISSUER.sign()))).subject == "ada"
    exchange = await bench.ask(subject="eve", **bearer(ISSUER.sign(scope="support:predict support:on_behalf")))
    assert (exchange.caller.subject, exchange.subject) == ("ada", "eve")


async def test_scopes_and_tenants_are_asked_for_per_use_case() -> None:
    bench = Bench()
    with pytest.raises(ScopeMissing, match="'predict' of 'support'"):
        await bench.ask(**bearer(ISSUER.sign(scope="finance:predict support:predict2")))
    with pytest.raises(ScopeMissing):
        await bench.ask("renamed", **bearer(ISSUER.sign(scope="renamed:predict")))
    await bench.ask("renamed", **bearer(ISSUER.sign(scope="tickets.read")))
    with pytest.raises(PolicyDenied, match="not open to the tenant 'acme'"):
        await bench.ask("closed", **bearer(ISSUER.sign(scope="closed:predict")))
    await bench.ask("closed", **bearer(ISSUER.sign(scope="closed:predict", tenant="other")))


@pytest.mark.parametrize(
    ("headers", "saying"),
    [
        ({}, "asks for a bearer token"), ({"authorization": "Basic YTpi"}, "not Bearer"),
        ({"authorization": "Bearer"}, "three parts"), ({"authorization": "Bearer é"}, "characters"),
        ({"authorization": "Bearer " + "x" * 9000}, "longer than"), ({"x_api_key": "lsk_short"}, "no such API key"),
        ({"x_api_key": "lsk_" + "0" * 16 + "_" + "A" * 43}, "no such API key"),
        ({"authorization": "Bearer a.b.c", "x_api_key": "lsk_a"}, "two credentials"),
    ],
)  # fmt: skip
async def test_what_is_no_credential_is_refused_with_401(headers: dict[str, str], saying: str) -> None:
    bench = Bench()
    await bench.ring.refresh()
    with pytest.raises(AuthenticationFailed, match=saying) as caught:
        await bench.ask(**headers)
    for status, sent, body in (problem_for(caught.value, "r"), protocol_error(caught.value)):
        assert status == 401
        challenge = dict(sent)[b"www-authenticate"]
        assert challenge.startswith(b'Bearer realm="leitstand"')
        assert (b'error="invalid_token"' in challenge) == bool(headers)
        for value in headers.values():
            assert len(value) < 10 or value.encode() not in body + challenge


async def test_a_missing_scope_is_403_and_named() -> None:
    with pytest.raises(ScopeMissing) as caught:
        await Bench().ask(**bearer(ISSUER.sign(scope="")))
    status, headers, _ = problem_for(caught.value)
    assert status == 403
    assert dict(headers)[b"www-authenticate"].endswith(b'error="insufficient_scope", scope="support:predict"')


async def test_a_known_token_is_not_verified_again_until_it_expires() -> None:
    bench = Bench()
    token = bearer(ISSUER.sign())
    for _ in range(5):
        await bench.ask(**token)
    assert bench.verifier.calls == 1
    bench.now = NOW + 300 + RULES.leeway_s
    with pytest.raises(AuthenticationFailed, match="expired"):
        await bench.ask(**token)


async def test_what_was_verified_with_other_keys_is_verified_again() -> None:
    bench = Bench()
    token = bearer(ISSUER.sign())
    await bench.ask(**token)
    bench.keys.number, bench.keys._keys = 1, {}
    with pytest.raises(AuthenticationFailed, match="no key of the issuer"):
        await bench.ask(**token)


async def test_memory_for_tokens_is_bounded() -> None:
    bench = Bench(remembered=3)
    for number in range(10):
        await bench.ask(**bearer(ISSUER.sign(jti=str(number))))
    assert len(bench.access._known) == 3


async def test_a_revoked_or_expired_key_opens_nothing() -> None:
    bench = Bench()
    key = await bench.key("support:predict")
    bench.store.end(key.split("_")[1], utc_now(), "revoked")
    await bench.ring.refresh()
    with pytest.raises(AuthenticationFailed, match="was revoked"):
        await bench.ask(x_api_key=key)
    old = await bench.key("support:predict", ends_at=utc_now() - timedelta(seconds=1))
    with pytest.raises(AuthenticationFailed, match="has expired"):
        await bench.ask(x_api_key=old)


async def test_a_key_with_the_right_id_and_another_secret_is_refused() -> None:
    bench = Bench()
    key = await bench.key("support:predict")
    with pytest.raises(AuthenticationFailed, match="no such API key"):
        await bench.ask(x_api_key=key[:-1] + ("A" if key[-1] != "A" else "B"))


async def test_keys_are_refused_when_their_store_was_silent_for_too_long() -> None:
    ticks = 0.0
    ring = KeyRing(InMemoryApiKeys(), keep_s=10, ticks=lambda: ticks)
    with pytest.raises(TransientBackendError, match="not read yet"):
        ring.caller("lsk_x")
    await ring.refresh()
    ring._store = _Down()  # type: ignore[assignment]
    ticks = 9.0
    await ring.refresh()
    with pytest.raises(AuthenticationFailed):
        ring.caller("lsk_x")
    ticks = 10.0
    with pytest.raises(TransientBackendError, match="is away"):
        ring.caller("lsk_x")


async def test_a_workers_exchange_keeps_the_caller_that_queued_it() -> None:
    bench = Bench()
    exchange = Exchange(
        use_case="support", request_id="r", subject="eve", payload=TextPayload(["a"]), path="/", deadline=0.0,
        caller=Caller("ada", "acme", frozenset({"support:predict"}), "jwt", "t-1"),
    )  # fmt: skip
    with pytest.raises(ScopeMissing):
        await bench.access(exchange)


class _Down:
    def revision(self) -> int:
        raise TransientBackendError("The store is away")

    def all(self) -> list[ApiKey]:
        return []
