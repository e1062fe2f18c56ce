"""Retention: whole segments older than the policy are removed, and a signed checkpoint lets the rest verify.

The checkpoint is on disk before its segment goes, so a crash in between leaves a trail that still verifies. The newest
segment of a chain always stays.
"""

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import orjson

from governance.audit.chain import add_line
from governance.audit.keys import KeyStore
from governance.audit.reading import Reader, moment_of
from governance.audit.signing import Signer
from governance.audit.verify_standalone import segments

__all__ = ["Pruned", "prune"]

TAIL = 4 * 2**20


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be.

    Attributes:
        segments: Files, relative to the trail.
        records: Records in them.
        size: Bytes in them.
        keys: Keys of unnamed requests that no record needs any more.
    """

    segments: tuple[str, ...] = ()
    records: int = 0
    size: int = 0
    keys: int = 0


def prune(
    folder: Path, signer: Signer, keys: KeyStore | None, *, days: int, now: datetime, dry_run: bool = False
) -> Pruned:
    """Removes the segments whose last record is older than `days`.

    Args:
        folder: The trail.
        signer: Signs the checkpoints.
        keys: Whose shared keys of those days are destroyed, too.
        days: The retention.
        now: The present.
        dry_run: Only say what would go.
    """
    limit = now - timedelta(days=days)
    gone, records, size = [], 0, 0
    for chain in Reader(folder).chains():
        for file, following in zip(segments(chain), segments(chain)[1:], strict=False):
            last = _last_line(file)
            moment = moment_of(last)
            if moment is None or moment >= limit:
                break
            line = orjson.loads(last)
            gone.append(str(file.relative_to(folder)))
            records += int(following.stem) - int(file.stem)
            size += file.stat().st_size
            if not dry_run:
                statement = signer.statement(
                    "checkpoint", chain.name, line["sequence"], line["hash"], at=now, retention_days=days,
                    removed=file.name, ended=moment.isoformat(),
                )  # fmt: skip
                add_line(chain / "checkpoints.jsonl", statement)
                file.unlink()
    dropped = keys.drop_shared(limit - timedelta(days=1)) if keys and not dry_run and gone else 0
    return Pruned(tuple(gone), records, size, dropped)


def _last_line(file: Path) -> bytes:
    """The last whole line; looks at the end of the file, further back only for a very long one."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        back = TAIL
        while True:
            opened.seek(max(0, size - back), os.SEEK_SET)
            lines = opened.read().splitlines(keepends=True)
            if len(lines) > 1 or back >= size:
                return lines[-1] if lines and lines[-1].endswith(b"\n") else b""
            back *= 4
