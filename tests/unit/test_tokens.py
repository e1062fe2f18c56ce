"""Which tokens count, and each way in that must stay shut."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OctKey, RSAKey

from governance.access.tokens import TokenRules, TokenVerifier, key_id_of, read_keys
from leitstand.errors import AuthenticationFailed
from leitstand.types import Caller
from tests.access_for_tests import AUDIENCE, ISSUER, NOW, RULES, TestIssuer, claims, forge, sign

HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": "ES256"}
VERIFIER = TokenVerifier(RULES)


@pytest.fixture(scope="module")
def issuer() -> TestIssuer:
    return TestIssuer()


def refused(token: str, keys: Mapping[str, Any], saying: str, now: float = NOW) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        VERIFIER.verify(token, keys, now)
    assert saying in caught.value.message
    assert caught.value.code == "invalid_token"
    for part in token.split("."):
        assert len(part) < 8 or part not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_good_token_names_its_caller(issuer: TestIssuer, algorithm: str) -> None:
    verified = VERIFIER.verify(issuer.sign(algorithm), issuer.keys(), NOW)
    assert verified.caller == Caller("ada", "acme", frozenset({"support:predict", "support:feedback"}), "jwt", "t-1")
    assert verified.until == NOW + 300 + RULES.leeway_s
    assert verified.person


def test_the_token_of_a_client_itself_is_no_persons(issuer: TestIssuer) -> None:
    assert not VERIFIER.verify(issuer.sign(sub="worker", client_id="worker"), issuer.keys(), NOW).person


def test_several_audiences_and_a_list_of_scopes_are_understood(issuer: TestIssuer) -> None:
    token = issuer.sign(aud=["somebody", AUDIENCE], scope=["a", "b"])
    assert VERIFIER.verify(token, issuer.keys(), NOW).caller.scopes == {"a", "b"}


def test_a_token_without_a_tenant_gets_the_default_when_there_is_one(issuer: TestIssuer) -> None:
    token = issuer.sign(tenant=None)
    refused(token, issuer.keys(), "tenant")
    lenient = TokenVerifier(TokenRules(issuer=ISSUER, audience=AUDIENCE, default_tenant="everyone"))
    assert lenient.verify(token, issuer.keys(), NOW).caller.tenant == "everyone"


def test_the_clock_may_be_off_by_the_leeway_and_no_more(issuer: TestIssuer) -> None:
    keys, leeway = issuer.keys(), RULES.leeway_s
    VERIFIER.verify(issuer.sign(exp=NOW - leeway + 1), keys, NOW)
    refused(issuer.sign(exp=NOW - leeway), keys, "expired")
    VERIFIER.verify(issuer.sign(nbf=NOW + leeway), keys, NOW)
    refused(issuer.sign(nbf=NOW + leeway + 1), keys, "not valid yet")
    refused(issuer.sign(iat=NOW + leeway + 1), keys, "future")


@pytest.mark.parametrize("alg", ["none", "None", "NONE", ""])
def test_unsigned_tokens_are_refused(issuer: TestIssuer, alg: str) -> None:
    refused(forge(HEADER | {"alg": alg}, claims()), issuer.keys(), "algorithm is none of")


@pytest.mark.parametrize("form", ["pem", "der", "jwk", "n"])
def test_hmac_with_the_public_key_as_its_secret_is_refused(issuer: TestIssuer, form: str) -> None:
    key = issuer.private["RS256"]
    secret = {
        "pem": key.as_pem(private=False), "der": key.as_der(private=False),
        "jwk": json.dumps(key.as_dict(private=False)).encode(), "n": key.as_dict(private=False)["n"].encode(),
    }[form]  # fmt: skip
    for alg in ("HS256", "RS256"):
        token = forge({"alg": alg, "typ": "at+jwt", "kid": "RS256"}, claims(), secret)
        refused(token, issuer.keys(), "algorithm is none of" if alg == "HS256" else "signature")


def test_an_algorithm_must_fit_the_key_that_is_named(issuer: TestIssuer) -> None:
    refused(issuer.sign("ES256", header={"kid": "RS256"}), issuer.keys(), "does not fit the key")
    refused(issuer.sign("RS256", header={"kid": "EdDSA"}), issuer.keys(), "does not fit the key")


def test_a_key_is_good_for_the_algorithm_that_it_is_published_for(issuer: TestIssuer) -> None:
    document = issuer.jwks("RS256")
    document["keys"][0]["alg"] = "PS256"
    refused(issuer.sign("RS256"), read_keys(document), "another algorithm")


def test_algorithms_that_the_settings_do_not_list_are_refused(issuer: TestIssuer) -> None:
    strict = TokenVerifier(TokenRules(issuer=ISSUER, audience=AUDIENCE, algorithms=("ES256",)))
    with pytest.raises(AuthenticationFailed, match="none of ES256"):
        strict.verify(issuer.sign("RS256"), issuer.keys(), NOW)


def test_the_key_must_be_one_of_the_issuers(issuer: TestIssuer) -> None:
    refused(issuer.sign(header={"kid": "unknown"}), issuer.keys(), "no key of the issuer")
    refused(issuer.sign(header={"kid": None}), issuer.keys(), "kid")
    refused(issuer.sign(header={"kid": ["ES256"]}), issuer.keys(), "kid")
    stranger = ECKey.generate_key("P-256", {"kid": "ES256"})
    refused(sign(HEADER, claims(), stranger), issuer.keys(), "signature")


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "crit", "zip", "b64"])
def test_a_token_cannot_bring_its_own_key_or_rules(issuer: TestIssuer, name: str) -> None:
    stranger = ECKey.generate_key("P-256")
    value = {"jwk": stranger.as_dict(private=False), "crit": ["exp"], "b64": False, "x5c": ["MII"]}.get(
        name, "https://evil.example/keys"
    )
    refused(forge(HEADER | {name: value}, claims()), issuer.keys(), "brings its own key")


@pytest.mark.parametrize("typ", [None, "", "id_token", "dpop+jwt", "logout+jwt", 7])
def test_other_kinds_of_tokens_are_refused(issuer: TestIssuer, typ: object) -> None:
    refused(issuer.sign(header={"typ": typ}), issuer.keys(), "typ")


@pytest.mark.parametrize("typ", ["application/at+jwt", "AT+JWT", "JWT"])
def test_spellings_of_the_type_are_understood(issuer: TestIssuer, typ: str) -> None:
    VERIFIER.verify(issuer.sign(header={"typ": typ}), issuer.keys(), NOW)


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"iss": None}, "issuer"), ({"iss": ISSUER + "/"}, "issuer"), ({"iss": [ISSUER]}, "issuer"),
        ({"aud": None}, "audience"), ({"aud": "other"}, "audience"), ({"aud": {AUDIENCE: 1}}, "audience"),
        ({"exp": None}, "when it ends"), ({"exp": "9999999999"}, "when it ends"), ({"exp": True}, "when it ends"),
        ({"exp": float("nan")}, "when it ends"), ({"exp": float("inf")}, "when it ends"),
        ({"exp": NOW - 60}, "expired"),
        ({"nbf": "soon"}, "nbf"), ({"iat": "then"}, "iat"),
        ({"sub": None}, "subject"), ({"sub": ""}, "subject"), ({"sub": 7}, "subject"), ({"sub": "x" * 300}, "subject"),
        ({"sub": "a\nb"}, "subject"), ({"tenant": ["a"]}, "tenant"), ({"tenant": ""}, "tenant"),
    ],
)  # fmt: skip
def test_claims_that_are_missing_or_wrong_are_refused(issuer: TestIssuer, changes: dict[str, Any], saying: str) -> None:
    refused(issuer.sign(**changes), issuer.keys(), saying)


def test_oversized_and_broken_tokens_are_refused_unread(issuer: TestIssuer) -> None:
    refused(issuer.sign(more="x" * RULES.max_bytes), issuer.keys(), "longer than")
    for token in ("", ".", "..", "a.b", "a.b.c.d", "a.b.c", "é.é.é", f"{issuer.sign()}.", "[" * 3000 + ".a.a"):
        refused(token, issuer.keys(), "token")
    refused(forge(HEADER, []), issuer.keys(), "signature")  # type: ignore[arg-type]


def test_a_signed_list_is_no_claims(issuer: TestIssuer) -> None:
    from joserfc.jws import serialize_compact

    for payload in (b"[]", b"7", b"not json", b"[" * 2000, b"\xff"):
        token = serialize_compact(HEADER, payload, issuer.private["ES256"])
        refused(token, issuer.keys(), "token")


def test_another_spelling_of_the_same_signature_is_refused(issuer: TestIssuer) -> None:
    token = issuer.sign()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    loose = token[:-1] + letters[letters.index(token[-1]) ^ 1]  # a bit that decoding drops
    refused(loose, issuer.keys(), "canonical")
    refused(token + "=", issuer.keys(), "canonical")


def test_only_public_keys_for_signatures_are_read(issuer: TestIssuer) -> None:
    with pytest.warns(SecurityWarning):
        weak = RSAKey.generate_key(1024, {"kid": "weak"})
    secret = OctKey.generate_key(256, {"kid": "secret"})
    encryption = ECKey.generate_key("P-256", {"kid": "enc", "use": "enc"})
    nameless = ECKey.generate_key("P-256").as_dict(private=False, kid=None)
    nameless.pop("kid", None)
    document = {
        "keys": [
            weak.as_dict(private=False), secret.as_dict(), encryption.as_dict(private=False), nameless,
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"}, "text",
            issuer.private["ES256"].as_dict(private=True),
        ]
    }  # fmt: skip
    keys = read_keys(document)
    assert list(keys) == ["ES256"]
    assert not keys["ES256"].is_private
    for broken in (None, [], {"keys": 7}, {}):
        with pytest.raises(ValueError, match="keys"):
            read_keys(broken)


def test_the_claimed_key_id_is_read_without_trusting_it(issuer: TestIssuer) -> None:
    assert key_id_of(issuer.sign(), 8192) == "ES256"
    assert key_id_of("nonsense", 8192) == ""
    assert key_id_of(forge({"kid": 7}, {}), 8192) == ""
