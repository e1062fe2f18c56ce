"""Languages for a sample of the inference log, detected by a child process with a budget per second.

lingua holds the interpreter lock while it loads (3 to 7 s) and while it looks at a text (0.1 to 0.3 ms, all
measured on two busy cores), so in the gateway's process it would stop the event loop. The child has 210 MB and low
priority, gets the first 300 characters of each sampled text over a pipe, and ends when its parent does. Rows written
before it is ready, short texts, and all when lingua is not installed, keep an empty language.

`python -m governance.log_language` is the child: a JSON list of texts per line in, a JSON list of codes per line out.
"""

import dataclasses
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from governance.language import detect
from leitstand.settings import child_environment
from leitstand.types import WindowRow

__all__ = ["MAX_CHARACTERS", "LanguageSampler"]

MAX_CHARACTERS = 300
ANSWER_S = 10.0
_AT_ONCE = 32  # texts per line: as JSON, 32 of 300 characters fit into a pipe, so writing never blocks
_READY = '["ready"]'

logger = structlog.get_logger()


class LanguageSampler:
    """A token bucket of one second, and the child behind it.

    `wants` belongs to whoever holds the log's lock; `fill` and `close` to the log's thread.
    """

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._tokens = per_s
        self._at = time.monotonic()
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False

    def wants(self) -> bool:
        """Whether the next text is part of the sample; takes one from the budget."""
        if not self._per_s:
            return False
        now = time.monotonic()
        self._tokens = min(max(self._per_s, 1.0), self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def fill(self, rows: Sequence[WindowRow], texts: Mapping[int, str]) -> list[WindowRow]:
        """The rows; those with a text at their place and no language get one where lingua is sure."""
        result = list(rows)
        places = [place for place in texts if not result[place].language]
        if places and self._per_s and self._is_ready():
            for start in range(0, len(places), _AT_ONCE):
                some = places[start : start + _AT_ONCE]
                for place, language in zip(some, self._ask([texts[place] for place in some]), strict=False):
                    if language:
                        result[place] = dataclasses.replace(result[place], language=language)
        return result

    def close(self) -> None:
        """Ends the child."""
        self._per_s = 0.0
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _is_ready(self) -> bool:
        if self._child is None:
            self._start()
        if not self._ready and self._child is not None:
            self._ready = self._answer(0.0) == _READY
        return self._ready

    def _start(self) -> None:
        if importlib.util.find_spec("lingua") is None:
            self._per_s = 0.0
            logger.warning(
                "The inference log holds no languages: lingua is not installed",
                hint="pip install 'leitstand[governance]', or set monitoring.languages_per_s to 0",
            )
            return
        self._child = subprocess.Popen(
            [sys.executable, "-m", "governance.log_language"], cwd=Path(__file__).resolve().parents[1],
            env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _ask(self, texts: list[str]) -> list[str | None]:
        if self._child is None or self._child.stdin is None:
            return []
        try:
            self._child.stdin.write(json.dumps(texts).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:
            return self._give_up()
        answer = self._answer(ANSWER_S)
        return json.loads(answer) if answer else self._give_up()

    def _answer(self, seconds: float) -> str:
        """The next line of the child; empty when none came in time."""
        if self._child is None or self._child.stdout is None:
            return ""
        if not select.select([self._child.stdout], [], [], seconds)[0]:
            return ""
        line = self._child.stdout.readline().decode().strip()
        if not line:
            self._give_up()
        return line

    def _give_up(self) -> list[str | None]:
        """The child died or hangs: the log goes on without languages."""
        if self._per_s:
            logger.warning("The inference log holds no more languages: its detector ended")
        self.close()
        return []


def _serve() -> None:
    os.nice(10)
    detect(["Which language is this sentence written in?"], ())
    print(_READY, flush=True)  # noqa: T201
    for line in sys.stdin:
        print(json.dumps(detect(json.loads(line), ())), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
