"""Tokens of a real identity provider at a real gateway: algorithms, rotation, outage, and each way in that is shut."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey

from tests.access_for_tests import forge
from tests.gateway_processes import Gateway, Upstream, gateway_running, until
from tests.identity_provider import IdentityProvider, identity_provider
from tests.servers import free_ports

AUDIENCE = "urn:leitstand:gateway"


def private_keys(name: str) -> dict[str, Any]:
    made = (
        RSAKey.generate_key(2048, {"kid": f"{name}-rsa", "use": "sig"}),
        ECKey.generate_key("P-256", {"kid": f"{name}-ec", "use": "sig"}),
        OKPKey.generate_key("Ed25519", {"kid": f"{name}-ed", "use": "sig"}),
    )
    return {"keys": [key.as_dict(private=True) for key in made]}


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def keys() -> dict[str, Any]:
    return private_keys("first")


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory, port: int, keys: dict[str, Any]) -> Iterator[IdentityProvider]:
    with identity_provider(tmp_path_factory.mktemp("provider"), port, keys) as running:
        yield running


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    made = Upstream(1, free_ports(1)[0], tmp_path_factory.mktemp("upstream"))
    made.start()
    yield made
    made.kill()


def protected(issuer: str, **more: str) -> dict[str, str]:
    return {
        "LEITSTAND_ACCESS__MODE": "required", "LEITSTAND_ACCESS__ISSUER": issuer,
        "LEITSTAND_ACCESS__AUDIENCE": AUDIENCE, "LEITSTAND_ACCESS__JWKS_PAUSE_S": "0.1", **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider, upstream: Upstream
) -> Iterator[Gateway]:
    with gateway_running(tmp_path_factory.mktemp("gateway"), **protected(provider.url)) as running:
        running.route(upstream)
        yield running


def ask(gateway: Gateway, token: str = "", **headers: str) -> httpx.Response:
    return gateway.predict("a card", **({"authorization": f"Bearer {token}"} if token else {}), **headers)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_its_tokens_are_accepted(gateway: Gateway, provider: IdentityProvider, algorithm: str) -> None:
    response = ask(gateway, provider.token(algorithm, resource=AUDIENCE))
    assert response.status_code == 200, response.text
    assert response.headers["x-content-type-options"] == "nosniff"


def test_tokens_that_are_not_for_this_are_refused(gateway: Gateway, provider: IdentityProvider) -> None:
    missing = ask(gateway)
    assert missing.status_code == 401 and missing.headers["www-authenticate"] == 'Bearer realm="leitstand"'
    elsewhere = ask(gateway, provider.token(resource="urn:another:service"))
    assert elsewhere.status_code == 401 and "another audience" in elsewhere.json()["detail"]
    unlisted = ask(gateway, provider.token("PS256", resource=AUDIENCE))
    assert unlisted.status_code == 401 and "algorithm is none of" in unlisted.json()["detail"]
    other = ask(gateway, provider.token(resource=AUDIENCE, scope="finance:predict"))
    assert other.status_code == 403 and 'scope="support:predict"' in other.headers["www-authenticate"]


def attacks(token: str, keys: dict[str, Any]) -> dict[str, str]:
    """What somebody may send who has read the provider's public keys and seen one good token."""
    said = {"iss": "x", "aud": AUDIENCE, "sub": "eve", "tenant": "acme", "scope": "support:predict", "exp": 9999999999}
    public = RSAKey.import_key(keys["keys"][0])
    header = {"alg": "HS256", "typ": "at+jwt", "kid": "first-rsa"}
    head, payload, signature = token.split(".")
    return {
        "none": forge(header | {"alg": "none"}, said), "stripped": f"{head}.{payload}.",
        "confused": forge(header, said, public.as_pem(private=False)),
        "confused with the JWK": forge(header, said, str(public.as_dict(private=False)).encode()),
        "unknown key": forge(header | {"alg": "ES256", "kid": "nobody"}, said),
        "own key": forge(header | {"alg": "ES256", "jwk": {"kty": "EC"}}, said),
        "own URL": forge(header | {"alg": "RS256", "jku": "http://127.0.0.1:1/jwks"}, said),
        "wrong type": forge(header | {"alg": "RS256", "typ": "id+jwt"}, said),
        "changed claims": f"{head}.{forge({}, said).split('.')[1]}.{signature}",
        "another spelling": token + "=", "oversized": token + "A" * 20_000, "a letter": token[:-2] + "xx",
    }  # fmt: skip


def test_each_attack_is_refused_and_nothing_of_it_is_repeated(
    gateway: Gateway, provider: IdentityProvider, keys: dict[str, Any]
) -> None:
    token = provider.token("RS256", resource=AUDIENCE)
    assert ask(gateway, token).status_code == 200
    for name, forged in attacks(token, keys).items():
        response = ask(gateway, forged)
        assert response.status_code == 401, name
        assert 'error="invalid_token"' in response.headers["www-authenticate"], name
        parts = [part for part in forged.split(".") if len(part) > 20]
        said = response.text + str(response.headers)
        assert not [part for part in parts if part in said], name
    assert ask(gateway, token).status_code == 200


def test_every_route_but_the_probes_is_closed(gateway: Gateway, provider: IdentityProvider) -> None:
    url = gateway.url
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(url + path).status_code == 200, path
    closed: dict[str, Callable[[], httpx.Response]] = {
        "metrics": lambda: httpx.get(f"{url}/metrics"), "api": lambda: httpx.get(f"{url}/openapi.json"),
        "feedback": lambda: httpx.post(f"{url}/v1/support/feedback", json={}),
        "server": lambda: httpx.get(f"{url}/v2"), "metadata": lambda: httpx.get(f"{url}/v2/models/support"),
        "infer": lambda: httpx.post(f"{url}/v2/models/support/infer", json={}),
        "nothing": lambda: httpx.get(f"{url}/v1/nothing/here"),
    }  # fmt: skip
    for name, call in closed.items():
        assert call().status_code == 401, name
    headers = {"authorization": f"Bearer {provider.token(resource=AUDIENCE)}"}
    assert httpx.get(f"{url}/v2/models/support", headers=headers).json()["name"] == "support"
    assert httpx.get(f"{url}/metrics", headers=headers).status_code == 403
    assert httpx.get(f"{url}/v2/models/finance", headers=headers).status_code == 403


def test_feedback_speaks_for_who_gives_it(gateway: Gateway, provider: IdentityProvider) -> None:
    from governance.feedback_log import open_feedback_log
    from leitstand.settings import Settings

    token = provider.token(resource=AUDIENCE, scope="support:predict support:feedback")
    answer = ask(gateway, token)
    said = {"request_id": answer.json()["request_id"], "label": "pin", "source": "somebody-trusted"}
    headers = {"authorization": f"Bearer {token}"}
    response = httpx.post(f"{gateway.url}/v1/support/feedback", json=said, headers=headers)
    assert response.status_code == 200, response.text
    (entry,) = open_feedback_log(Settings(home=gateway.home)).entries("support")
    assert entry.source == "worker-ES256"


def test_another_subject_is_refused_without_the_scope(gateway: Gateway, provider: IdentityProvider) -> None:
    plain = provider.token(resource=AUDIENCE)
    refused = ask(gateway, plain, **{"x-subject": "somebody-else"})
    assert refused.status_code == 403 and "on_behalf" in refused.headers["www-authenticate"]
    token = provider.token(resource=AUDIENCE, scope="support:predict support:on_behalf")
    assert ask(gateway, token, **{"x-subject": "somebody-else"}).status_code == 200


def test_its_log_holds_no_credential(gateway: Gateway, provider: IdentityProvider, keys: dict[str, Any]) -> None:
    token = provider.token("RS256", resource=AUDIENCE)
    ask(gateway, token)
    log = (gateway.home / "gateway.log").read_text()
    for secret in (token, *token.split(".")[1:], *attacks(token, keys).values(), "Bearer ey", "lsk_"):
        assert secret not in log


def test_keys_rotate_and_an_outage_is_bridged(tmp_path: Path, upstream: Upstream) -> None:
    (port,) = free_ports(1)
    first, second = private_keys("old"), private_keys("new")
    settings = protected(f"http://127.0.0.1:{port}", LEITSTAND_ACCESS__JWKS_TTL_S="0.2")
    with gateway_running(tmp_path / "gateway", **settings) as gateway:
        gateway.route(upstream)
        assert ask(gateway, forge({"alg": "RS256", "typ": "at+jwt", "kid": "old-rsa"}, {})).status_code == 503
        with identity_provider(tmp_path, port, first) as provider:
            old = provider.token(resource=AUDIENCE)
            until(lambda: ask(gateway, old).status_code == 200, "the keys")
            other = provider.token("RS256", resource=AUDIENCE)
        assert ask(gateway, old).status_code == 200, "a known token while the provider is away"
        assert ask(gateway, other).status_code == 200, "a new token while the provider is away"
        with identity_provider(tmp_path, port, second) as provider:
            new = provider.token(resource=AUDIENCE)
            until(lambda: ask(gateway, new).status_code == 200, "the new key")
            until(lambda: ask(gateway, old).status_code == 401, "the withdrawn key to open nothing")
