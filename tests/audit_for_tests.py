"""Small audit trails, written as the gateway writes them, without its thread."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from governance.audit.chain import Chain
from governance.audit.keys import KeyStore, Scope, open_keys
from governance.audit.records import Content, Entry, encode
from governance.audit.signing import open_signer
from governance.audit.verify_standalone import Result, anchors_in, read_public_keys, verify_trail

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def entry(number: int = 0, *, subject: str = "ann", at: datetime = NOW, **facts: Any) -> Entry:
    """One answered inference."""
    known = {
        "request_id": f"r-{number}", "started_at": at, "ended_at": at, "tenant": "bank", "use_case": "support",
        "route": "stable", "version": 3, "path": "/v2/models/support/infer", "status": 200, "verdicts": [],
    }  # fmt: skip
    made = Entry(Scope("bank", subject, None if subject else at.date()), known | facts)
    made.input = Content("texts", [f"text {number}"])
    made.output = Content("predictions", {"labels": ["card"], "scores": [0.75], "abstain": [False]})
    made.who = Content("json", {"subject": subject, "caller": "svc"}) if subject else None
    return made


def append(chain: Chain, keys: KeyStore, entries: Iterable[Entry]) -> None:
    """Appends each entry as a group of its own."""
    for each in entries:
        key = keys.keys([each.scope])[each.scope]
        chain.append([encode(each, key, chain.name, chain.sequence + 1)])


def write_trail(
    folder: Path, entries: Iterable[Entry], *, segment_bytes: int = 64 * 2**20, close: bool = True
) -> Chain:
    """Writes one chain; closed, so that its end is signed, unless a crash is to be played."""
    keys = open_keys(folder)
    chain = Chain.take(folder, open_signer(folder), segment_bytes=segment_bytes)
    append(chain, keys, entries)
    keys.close()
    if close:
        chain.close(0.0)
    else:
        chain.abandon()
    return chain


def verify(folder: Path, anchors: Path | None = None) -> Result:
    """Verifies with the trail's own keys."""
    keys = read_public_keys((folder / "public_keys").glob("*.pem"))
    return verify_trail(folder, keys, anchors_in(anchors) if anchors else ())


def only_chain(folder: Path) -> Path:
    """The folder of the one chain there is."""
    (chain,) = (folder / "chains").iterdir()
    return chain
