"""Verifies an audit trail: one file that needs Python and `cryptography`, to be handed to an auditor.

    python verify_standalone.py FOLDER [--public-key PEM ...] [--anchors FOLDER] [--json]

FOLDER holds ``chains/NAME/*.jsonl`` (the records), ``heads.jsonl`` and ``head.json`` beside them (signed heads),
``checkpoints.jsonl`` (signed: what retention removed), ``chains.jsonl`` (signed: the chains that were begun) and
``public_keys/*.pem``. A public key that you got on another way than the folder is worth more: name it.

One record is one line, ``{"hash":H,"previous":P,"sequence":N,"record":{...}}``. H is the SHA-256 (hex) of everything
behind it in the line, the line feed included; P is the H of the record before, or for N = 1 the SHA-256 of
``leitstand-audit:NAME``. A signed statement is one line of canonical JSON (sorted keys, no spaces); its Ed25519
signature covers the canonical JSON of ``body``. Nothing is decrypted: ciphertexts are part of the chain.

What it cannot see: records that were cut off behind the last signed head, when no anchor is newer; a trail that was
rewritten by somebody who holds the signing key, without anchors kept elsewhere.

Exit codes: 0 everything holds, 1 something does not, 2 there is nothing to verify.
"""

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = [
    "ChainResult",
    "Problem",
    "Result",
    "Statement",
    "anchors_in",
    "canonical",
    "frame",
    "genesis",
    "key_id",
    "main",
    "parse_statement",
    "read_public_keys",
    "segments",
    "told",
    "verify_chain",
    "verify_trail",
]

HASH_AT = 9  # length of {"hash":"
REST_AT = HASH_AT + 64
BODY_AT = b',"record":'
STARTS = ("checkpoint", "excerpt")  # statements after which a chain may begin
PublicKeys = Mapping[str, Ed25519PublicKey]


@dataclass(frozen=True)
class Problem:
    """The first thing in a chain that does not hold.

    Attributes:
        chain: Name of the chain.
        sequence: Number of the first bad record; 0 when it is not about a record.
        file: Where, relative to the folder.
        offset: Byte in the file at which the record begins, or should.
        what: What is wrong.
    """

    chain: str
    sequence: int
    file: str
    offset: int
    what: str

    def __str__(self) -> str:
        record = f" record {self.sequence}" if self.sequence else ""
        return f"{self.chain}:{record} ({self.file}, byte {self.offset}): {self.what}"


@dataclass
class ChainResult:
    """What was found in one chain.

    Attributes:
        chain: Its name.
        first: Number of the first record that is kept.
        last: Number of the last record that holds.
        records: How many were verified.
        signed: The highest record that a valid signed head or anchor vouches for.
        hash: Of record `last`.
        problems: Empty when everything holds.
        notes: What is no fault, but should be known.
        torn_at: Byte in the newest file behind which nothing holds and nothing is vouched for, as a crash leaves it.
    """

    chain: str
    first: int = 1
    last: int = 0
    records: int = 0
    signed: int = 0
    hash: str = ""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    torn_at: int | None = None


@dataclass
class Result:
    """What was found in a trail."""

    chains: list[ChainResult] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def all_problems(self) -> list[Problem]:
        """Those of the trail and of every chain."""
        return [*self.problems, *(problem for chain in self.chains for problem in chain.problems)]

    @property
    def records(self) -> int:
        """How many records were verified."""
        return sum(chain.records for chain in self.chains)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {"holds": not self.all_problems, "records": self.records, **asdict(self)}


@dataclass(frozen=True)
class Statement:
    """A signed head, checkpoint or anchor, whose signature was verified.

    Attributes:
        body: ``kind``, ``chain``, ``sequence``, ``hash``, ``at`` and more.
        where: File and line it comes from.
    """

    body: Mapping[str, Any]
    where: str

    @property
    def sequence(self) -> int:
        """The record it vouches for, and all before."""
        return int(self.body["sequence"])


class _Bad(ValueError):
    """A statement that does not hold; the text says why."""


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def genesis(chain: str) -> bytes:
    """The hash (hex) that the first record of a chain follows."""
    return hashlib.sha256(b"leitstand-audit:" + chain.encode()).hexdigest().encode()


def frame(previous: bytes, sequence: int, body: bytes) -> tuple[bytes, bytes]:
    """The line of a record, and its hash (hex); `body` is one line of JSON."""
    rest = b'","previous":"%b","sequence":%d,"record":%b}\n' % (previous, sequence, body)
    own = hashlib.sha256(rest).hexdigest().encode()
    return b'{"hash":"' + own + rest, own


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def read_public_keys(files: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """Public keys by their id.

    Raises:
        ValueError: A file is no Ed25519 public key in PEM.
    """
    keys = {}
    for file in files:
        key = serialization.load_pem_public_key(file.read_bytes())
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"{file} is not an Ed25519 public key")
        keys[key_id(key)] = key
    return keys


def parse_statement(line: bytes, keys: PublicKeys, where: str) -> Statement:
    """Reads one signed statement.

    Raises:
        ValueError: It is not readable, or its signature is not valid.
    """
    try:
        document = json.loads(line)
        if canonical(document) + b"\n" != line:
            raise _Bad("the signed statement is not written as it was signed")
        body, key = document["body"], keys.get(document["key"])
        statement = Statement(body, where)
        if type(body["sequence"]) is not int or type(body["chain"]) is not str or type(body["hash"]) is not str:
            raise _Bad("the signed statement has fields of other types")
        signature = base64.b64decode(document["signature"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise _Bad(str(error) if isinstance(error, _Bad) else "the signed statement is not readable") from error
    if key is None:
        raise _Bad(f"signed with the unknown key {str(document['key'])[:32]!r}")
    try:
        key.verify(signature, canonical(body))
    except InvalidSignature as error:
        raise _Bad("the signature is not valid") from error
    return statement


def segments(chain: Path) -> list[Path]:
    """The files of a chain's records in order; each is named by its first record."""
    return sorted(path for path in chain.glob("*.jsonl") if path.stem.isdigit())


def verify_trail(folder: Path, keys: PublicKeys, anchors: Iterable[tuple[str, bytes]] = ()) -> Result:
    """Verifies every chain below `folder` and names the first bad record of each.

    Args:
        folder: The trail.
        keys: Whose signatures count.
        anchors: Name and content of signed heads that were kept elsewhere.
    """
    result = Result()
    outside = _Statements(folder, keys, result.problems)
    for name, content in anchors:
        outside.take(content, f"anchor {name}")
    outside.read(folder / "chains.jsonl")
    chains = {path.name: path for path in sorted((folder / "chains").glob("*")) if path.is_dir()}
    for name, path in chains.items():
        vouched = [each for each in outside.found if each.body["chain"] == name]
        result.chains.append(verify_chain(folder, path, keys, vouched))
    for name in dict.fromkeys(each.body["chain"] for each in outside.found):
        if name not in chains:
            where = next(each.where for each in outside.found if each.body["chain"] == name)
            result.problems.append(Problem(name, 1, f"chains/{name}", 0, f"the chain is gone; {where} vouches for it"))
    return result


def verify_chain(
    root: Path, folder: Path, keys: PublicKeys, vouched: Sequence[Statement] = (), *, newest_only: bool = False
) -> ChainResult:
    """Verifies one chain.

    Args:
        root: The trail.
        folder: The chain in it.
        keys: Whose signatures count.
        vouched: Statements about the chain from elsewhere.
        newest_only: Trust the signed end of every segment but the newest, which a writer does when it goes on.
    """
    return _Chain(root, folder, keys, vouched).verify(newest_only=newest_only)


class _Statements:
    """Collects the valid statements of files and notes the others as problems."""

    def __init__(self, root: Path, keys: PublicKeys, problems: list[Problem], chain: str = "") -> None:
        self._root, self._keys, self._problems, self._chain = root, keys, problems, chain
        self.found: list[Statement] = []

    def read(self, path: Path) -> None:
        """Takes every line; a file that is not there has none."""
        if not path.is_file():
            return
        name, offset = str(path.relative_to(self._root)), 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            self.take(line, f"{name}, line {number}", name, offset)
            offset += len(line)

    def take(self, line: bytes, where: str, name: str = "", offset: int = 0) -> None:
        """Takes one statement."""
        try:
            statement = parse_statement(line, self._keys, where)
            if self._chain and statement.body["chain"] != self._chain:
                raise _Bad("the signed statement belongs to another chain")
            self.found.append(statement)
        except ValueError as error:
            self._problems.append(Problem(self._chain or "trail", 0, name or where, offset, str(error)))


class _Chain:
    """Verifies one chain."""

    def __init__(self, root: Path, path: Path, keys: PublicKeys, vouched: Sequence[Statement]) -> None:
        self._root, self._path = root, path
        self._result = ChainResult(path.name)
        own = _Statements(root, keys, self._result.problems, path.name)
        for name in ("heads.jsonl", "head.json", "checkpoints.jsonl"):
            own.read(path / name)
        self._statements = [*own.found, *vouched]
        self._wanted: dict[int, list[Statement]] = {}
        for each in self._statements:
            self._wanted.setdefault(each.sequence, []).append(each)
        self._result.signed = max(self._wanted, default=0)

    def verify(self, *, newest_only: bool) -> ChainResult:
        """Goes through the segments until something does not hold."""
        result, files = self._result, segments(self._path)[-1 if newest_only else 0 :]
        start = self._start(int(files[0].stem), ("segment", *STARTS) if newest_only else STARTS) if files else None
        if start is None:
            what = "no records are left" if not files else f"records 1 to {int(files[0].stem) - 1} are missing"
            where = files[0] if files else self._path
            if files or self._wanted:
                self._problem(1, where, 0, f"{what}, and no signed checkpoint says that they were removed")
            return result
        expected, previous = start
        result.first = expected
        for file in files:
            if int(file.stem) != expected:
                self._problem(expected, file, 0, self._gap(expected, int(file.stem)))
                return result
            after = self._segment(file, expected, previous)
            if after is None:
                return result
            expected, previous = after
            result.last, result.hash = expected - 1, previous.decode()
        self._nothing_cut_off(files[-1], expected)
        return result

    def _start(self, first: int, kinds: Collection[str]) -> tuple[int, bytes] | None:
        if first == 1:
            return 1, genesis(self._path.name)
        for each in self._wanted.get(first - 1, ()):
            if each.body.get("kind") in kinds:
                return first, str(each.body["hash"]).encode()
        return None

    def _segment(self, file: Path, expected: int, previous: bytes) -> tuple[int, bytes] | None:
        """The number of the next record and the hash it must follow; None when a record does not hold."""
        sha256, wanted, offset, begun = hashlib.sha256, self._wanted, 0, expected
        with file.open("rb", buffering=1 << 20) as lines:
            for line in lines:
                rest = line[REST_AT:]
                own = sha256(rest).hexdigest().encode()
                if (
                    line[:REST_AT] != b'{"hash":"' + own
                    or not rest.startswith(b'","previous":"%b","sequence":%d,"record":' % (previous, expected))
                    or not rest.endswith(b"}\n")
                ):
                    self._result.records += expected - begun
                    self._result.last, self._result.hash = expected - 1, previous.decode()
                    self._bad_line(file, offset, line, own, expected, previous)
                    return None
                if expected in wanted and any(each.body["hash"] != own.decode() for each in wanted[expected]):
                    self._result.records += expected - begun
                    where = next(each.where for each in wanted[expected] if each.body["hash"] != own.decode())
                    self._problem(expected, file, offset, f"its hash is not the one that {where} vouches for: "
                        "this record or one before it was rewritten")  # fmt: skip
                    return None
                previous, offset, expected = own, offset + len(line), expected + 1
        self._result.records += expected - begun
        return expected, previous

    def _bad_line(self, file: Path, offset: int, line: bytes, own: bytes, expected: int, previous: bytes) -> None:
        unvouched = expected > self._result.signed and file == segments(self._path)[-1]
        if unvouched:
            self._result.torn_at = offset
        if not line.endswith(b"\n"):
            if unvouched:
                self._result.notes.append(
                    f"{len(line)} bytes behind record {expected - 1} are an unfinished record: it is being written, or "
                    "the writer was killed; its next start cuts them off and records that"
                )
                return
            what = "the record is cut off"
        elif line[HASH_AT:REST_AT] != own or line[:HASH_AT] != b'{"hash":"':
            what = "its bytes do not match its hash: it was changed"
        else:
            what = self._misplaced(line, expected, previous)
        self._problem(expected, file, offset, what)

    def _misplaced(self, line: bytes, expected: int, previous: bytes) -> str:
        digits = line[REST_AT:].partition(b'"sequence":')[2].partition(b",")[0]
        found = int(digits) if digits.isdigit() else 0
        if found == expected:
            return f"it does not follow record {expected - 1}, which ends with {previous[:12].decode()}…"
        if found > expected:
            return f"it is missing; record {found} stands in its place"
        return f"record {found} stands in its place, out of order or inserted"

    def _gap(self, expected: int, found: int) -> str:
        if found > expected:
            return f"records {expected} to {found - 1} are missing: a segment was removed or cut off"
        return f"segment {found} begins before record {expected}, where the one before it ended"

    def _nothing_cut_off(self, file: Path, expected: int) -> None:
        if self._result.signed >= expected:
            by = next(each for each in self._statements if each.sequence == self._result.signed)
            what = f"records {expected} to {self._result.signed} are missing at the end; {by.where} vouches for them"
            self._problem(expected, file, file.stat().st_size, what)
        elif self._result.last > self._result.signed:
            unsigned = self._result.last - self._result.signed
            self._result.notes.append(f"the last {unsigned} records are behind the newest signed head")

    def _problem(self, sequence: int, file: Path, offset: int, what: str) -> None:
        self._result.problems.append(
            Problem(self._path.name, sequence, str(file.relative_to(self._root)), offset, what)
        )


def anchors_in(folder: Path) -> list[tuple[str, bytes]]:
    """Name and content of the anchors that were copied into a folder."""
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*.json"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Verifies from the command line and prints what was found."""
    parser = argparse.ArgumentParser(description="Verify an audit trail.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--public-key", type=Path, action="append", default=[], help="PEM; default: the folder's own")
    parser.add_argument("--anchors", type=Path, help="folder of signed heads that were kept elsewhere")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if not (chosen.folder / "chains").is_dir():
        sys.stderr.write(f"{chosen.folder} holds no chains\n")
        return 2
    try:
        keys = read_public_keys(chosen.public_key or sorted((chosen.folder / "public_keys").glob("*.pem")))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"no readable public key: {error}\n")
        return 2
    result = verify_trail(chosen.folder, keys, anchors_in(chosen.anchors) if chosen.anchors else ())
    sys.stdout.write(json.dumps(result.as_dict(), indent=1) + "\n" if chosen.json else told(result))
    return 1 if result.all_problems else 0


def told(result: Result) -> str:
    """What was found, for people."""
    lines = [
        f"{each.chain}: {each.records} records ({each.first} to {each.last}), signed up to {each.signed}"
        for each in result.chains
    ]
    lines += [f"note: {each.chain}: {note}" for each in result.chains for note in each.notes]
    lines += [f"BAD: {problem}" for problem in result.all_problems]
    lines.append("does not hold" if result.all_problems else f"holds: {result.records} records")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
