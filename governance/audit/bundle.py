"""The evidence of a period as a folder or a zip file, which can be verified without this program.

    trail/             records of the period as they were written (whole files), signed heads, public keys, anchors
    verify.py          the verifier: `python verify.py trail --anchors trail/anchors`
    ledger.jsonl       who or what moved which alias when, on what evidence
    gates/             gate reports of the model versions that answered
    records.jsonl      the records with texts in the clear, only when asked for
    manifest.json      digest and size of every file
    index.html         what is in it, and which duties it can serve

A bundle may begin in the middle of a chain; a signed excerpt statement says so. The names of files are stable.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from governance.audit import verify_standalone
from governance.audit.export import export
from governance.audit.reading import Reader, segments_between
from governance.audit.signing import Signer
from governance.audit.verify_standalone import read_public_keys, segments, verify_trail
from leitstand import __version__
from leitstand.errors import ConflictError, IntegrityError, NotFoundError
from leitstand.files import atomic_dir, atomic_path, digest_file, write_text
from leitstand.pages import write_page
from leitstand.types import utc_now

__all__ = ["make_bundle"]

TEMPLATES = Path(__file__).parent / "templates"
STATEMENTS = ("heads.jsonl", "head.json", "checkpoints.jsonl")


def make_bundle(
    reader: Reader,
    signer: Signer,
    target: Path,
    since: datetime,
    until: datetime,
    *,
    documents: Mapping[str, bytes],
    anchors: Sequence[tuple[str, bytes]] = (),
    clear: bool = False,
) -> Path:
    """Writes the bundle of [since, until) and returns its path; it was verified before.

    Args:
        reader: Of the trail.
        signer: Signs where an excerpt begins.
        target: A folder that does not exist yet, or a file ending in ``.zip``.
        since: Begin of the period.
        until: Its end.
        documents: More files, by path in the bundle.
        anchors: Signed heads that were kept elsewhere.
        clear: Whether texts in the clear are added.

    Raises:
        ConflictError: `target` exists.
        NotFoundError: Nothing was recorded in the period.
        IntegrityError: What was collected does not verify.
    """
    if target.exists():
        raise ConflictError(f"{target} exists already", hint="name another file or folder")
    if target.suffix == ".zip":
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / target.stem
            _collect(reader, signer, folder, since, until, documents, anchors, clear)
            packed = Path(shutil.make_archive(str(Path(scratch) / "packed"), "zip", folder.parent, folder.name))
            with atomic_path(target) as part:
                shutil.copyfile(packed, part)
    else:
        with atomic_dir(target) as part:
            _collect(reader, signer, part, since, until, documents, anchors, clear)
    return target


def _collect(
    reader: Reader, signer: Signer, folder: Path, since: datetime, until: datetime, documents: Mapping[str, bytes],
    anchors: Sequence[tuple[str, bytes]], clear: bool,
) -> None:  # fmt: skip
    trail = folder / "trail"
    ends = {}
    for chain in reader.chains():
        files = segments_between(chain, since, until)
        if files:
            ends[chain.name] = _copy_chain(reader.folder, chain, files, trail, signer)
    if not ends:
        raise NotFoundError(f"Nothing was recorded from {since} to {until}", hint="see `leitstand audit show`")
    shutil.copytree(reader.folder / "public_keys", trail / "public_keys")
    kept = _anchors_of(anchors, ends, trail / "anchors")
    shutil.copyfile(verify_standalone.__file__, folder / "verify.py")
    for name, content in documents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if clear:
        export(reader, reader.records(since, until), folder / "records.jsonl", "jsonl", clear=True)
    keys = read_public_keys(sorted((trail / "public_keys").glob("*.pem")))
    result = verify_trail(trail, keys, kept)
    if result.all_problems:
        raise IntegrityError(f"The evidence does not verify: {result.all_problems[0]}", hint="`leitstand audit verify`")
    counted = _counted(Reader(trail), since, until)
    write_page(
        folder / "index.html", "audit_bundle.html", search=TEMPLATES, title="Evidence of inferences", since=since,
        until=until, made_at=utc_now(), counted=counted, chains=result.chains, signer=signer.key_id, clear=clear,
        documents=sorted(documents), anchors=len(kept), version=__version__,
    )  # fmt: skip
    manifest = {
        str(path.relative_to(folder)): {"digest": digest_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip
    write_text(folder / "manifest.json", json.dumps({"schema_version": 1, "files": manifest}, indent=1))


def _copy_chain(root: Path, chain: Path, files: Sequence[Path], trail: Path, signer: Signer) -> int:
    """Copies segments and the statements about them; returns the last sequence that is in the copy."""
    place = trail / "chains" / chain.name
    place.mkdir(parents=True)
    for file in files:
        _copy_whole_lines(file, place / file.name)
    first, last = int(files[0].stem), _last_sequence(place / files[-1].name)
    for name in STATEMENTS:
        if (chain / name).is_file():
            lines = (chain / name).read_bytes().splitlines(keepends=True)
            about = [line for line in lines if first <= orjson.loads(line)["body"]["sequence"] <= last]
            (place / name).write_bytes(b"".join(about))
    if first > 1:
        with files[0].open("rb") as opened:
            previous = orjson.loads(opened.readline())["previous"]
        statement = signer.statement("excerpt", chain.name, first - 1, previous)
        with (place / "checkpoints.jsonl").open("ab") as opened:
            opened.write(statement)
    begun = (root / "chains.jsonl").read_bytes().splitlines(keepends=True)
    if first == 1:
        with (trail / "chains.jsonl").open("ab") as opened:
            opened.write(b"".join(line for line in begun if orjson.loads(line)["body"]["chain"] == chain.name))
    return last


def _copy_whole_lines(source: Path, target: Path) -> None:
    """Without a record that is being written just now."""
    shutil.copyfile(source, target)
    if source == segments(source.parent)[-1]:
        content = target.read_bytes()
        target.write_bytes(content[: content.rfind(b"\n") + 1])


def _last_sequence(file: Path) -> int:
    content = file.read_bytes()
    lines = content[content.rfind(b"\n", 0, -1) + 1 :]
    return orjson.loads(lines)["sequence"] if lines else int(file.stem) - 1


def _anchors_of(anchors: Sequence[tuple[str, bytes]], ends: Mapping[str, int], folder: Path) -> list[tuple[str, bytes]]:
    """The anchors that speak about records in the bundle."""
    kept = []
    folder.mkdir()
    for name, content in anchors:
        body = orjson.loads(content)["body"]
        if body["sequence"] <= ends.get(body["chain"], -1):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            kept.append((name, content))
    return kept


def _counted(reader: Reader, since: datetime, until: datetime) -> dict[str, Any]:
    """Numbers for the page."""
    total = refused = failed = 0
    versions: dict[str, int] = {}
    events: dict[str, int] = {}
    for line in reader.lines(since, until):
        if line.kind != "inference":
            events[line.kind] = events.get(line.kind, 0) + 1
            continue
        total += 1
        status = getattr(line, "status", 0)
        refused += 400 <= status < 500  # noqa: PLR2004
        failed += status >= 500  # noqa: PLR2004
        name = f"{getattr(line, 'use_case', '')}:{getattr(line, 'version', 0)}"
        versions[name] = versions.get(name, 0) + 1
    return {"total": total, "refused": refused, "failed": failed, "versions": versions, "events": events}
