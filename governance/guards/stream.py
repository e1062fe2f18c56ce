"""Guarding an answer while it is being written.

`StreamGuard` holds back as many characters as the longest thing that its rules look for, so nothing that straddles
chunks gets out: what `feed` returns has been judged. How the text was cut into chunks changes nothing: all outputs
together equal the output for the whole text at once. Tokens of the request's `Vault` are restored, also when they
arrive in pieces.

    guard = chain.answer_guard(request, vault)   # in the gateway: services.guarding.stream_guard(exchange)
    async for chunk in answer:
        send(guard.feed(chunk))                  # may be empty; raises ContentBlocked
    send(guard.finish())                         # the rest, a missing disclaimer; raises ContentBlocked

Rules about whole texts (minimum length, language, claims, disclaimers) decide in `finish`: what they block has left
by then.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from governance.guards.detectors import AROUND, Detector, Hit, Scan
from governance.guards.rules import Request, Searching, reason, replacement
from governance.guards.text import InvisibleRuns, Normal, normalise
from governance.guards.vault import Tokens, Vault
from governance.guards.whole import MAX_JUDGED, language_reason, length_reason, misses, unsupported_claims, words_of
from leitstand.errors import ContentBlocked
from leitstand.specs import guards as specs
from leitstand.types import Verdict

__all__ = ["StreamGuard"]

STEP = 24  # characters that are collected before the next look
CONTEXT = 64  # judged bytes that stay as the left side of word boundaries
WHOLE = (specs.LanguageRule, specs.ClaimsRule, specs.DisclaimerRule)


class StreamGuard:
    """Guards one answer.

    Args:
        rules: The output rules, in order.
        searching: Those that search, by their name.
        request: What the answer is compared with.
        vault: Whose tokens are restored.
        index: Which answer of the request this is.
    """

    def __init__(
        self, rules: Sequence[specs.OutputRule], searching: dict[str, Searching], request: Request, vault: Vault,
        index: int = 0,
    ) -> None:  # fmt: skip
        self._rules, self._request, self._vault, self._index = rules, request, vault, index
        self._found: Counter[tuple[str, str, str]] = Counter()
        self._watching: list[tuple[specs.OutputRule, Scan]] = []
        replacing: list[tuple[specs.OutputRule | None, Detector]] = [(None, Tokens(vault))] if len(vault) else []
        for rule in rules:
            if rule.called not in searching:
                continue
            detectors = searching[rule.called].detectors("output", request)
            if rule.action == "mask":
                replacing += [(rule, detector) for detector in detectors]
            else:
                self._watching.append((rule, Scan(detectors)))
        self._owners = [rule for rule, _ in replacing]
        self._replacing = Scan([detector for _, detector in replacing])
        scans = [self._replacing, *(scan for _, scan in self._watching)]
        longest = max(scan.longest for scan in scans)
        self._hold = longest + AROUND if longest else 0
        self._whole = any(isinstance(rule, WHOLE) for rule in rules)
        self._runs = InvisibleRuns()
        self._raw = ""  # not judged yet, behind up to CONTEXT bytes that were
        self._left = 0  # characters of it that have left
        self._new = 0
        self._length = 0
        self._text: list[str] = []
        self._blocked: ContentBlocked | None = None

    @property
    def holds_back(self) -> int:
        """At most so many visible characters wait for what follows them."""
        return self._hold + STEP

    @property
    def verdicts(self) -> list[Verdict]:
        """What the rules said so far."""
        return [
            Verdict("output", rule, action, why, count, self._index)  # type: ignore[arg-type]
            for (rule, action, why), count in self._found.items()
        ]

    def feed(self, chunk: str) -> str:
        """Takes the next piece of the answer and returns what may leave now.

        Raises:
            ContentBlocked: A rule blocks; nothing more leaves.
        """
        self._take(chunk)
        if self._new < STEP:
            return ""
        return self._advance(last=False)

    def finish(self) -> str:
        """Returns the rest; call it once.

        Raises:
            ContentBlocked: A rule blocks.
        """
        self._take("")
        rest = self._advance(last=True)
        return rest + self._judge_whole()

    def _take(self, chunk: str) -> None:
        if self._blocked is not None:
            raise self._blocked
        chunk = self._runs.shortened(chunk)
        self._raw += chunk
        self._new += len(chunk)
        self._length += len(chunk)
        if self._whole and self._length <= MAX_JUDGED + len(chunk):
            self._text.append(chunk)
        for rule in self._rules:
            if isinstance(rule, specs.LengthRule) and rule.action == "block" and self._length > rule.max_chars:
                self._note(rule, "length.too_long")

    def _advance(self, *, last: bool) -> str:
        self._new = 0
        normal = normalise(self._raw)
        stop = len(normal.data) - (0 if last else self._hold)
        if stop <= 0 and not last:
            return ""
        for rule, scan in self._watching:
            for _, hit in scan.run(normal.data, stop):
                self._note(rule, reason(rule, hit.kind, "output"))
        pieces: list[str] = []
        for owner, hit in self._replacing.run(normal.data, stop):
            pieces.append(self._up_to(normal, hit.begin))
            pieces.append(self._written(self._owners[owner], normal, hit))
            self._left = max(self._left, normal.end(hit.end))
        pieces.append(normal.raw[self._left :] if last else self._up_to(normal, self._replacing.pos))
        self._forget(normal)
        return "".join(pieces)

    def _up_to(self, normal: Normal, index: int) -> str:
        start, self._left = self._left, max(self._left, normal.begin(index))
        return normal.raw[start : self._left]

    def _written(self, rule: specs.OutputRule | None, normal: Normal, hit: Hit) -> str:
        if rule is None:
            return self._vault.value(normal.data[hit.begin : hit.end].decode()) or ""
        self._note(rule, reason(rule, hit.kind, "output"))
        return replacement(rule, hit.kind)

    def _forget(self, normal: Normal) -> None:
        """Cuts off what was judged, except the context of what follows."""
        scans = [self._replacing, *(scan for _, scan in self._watching)]
        cut = min(scan.pos for scan in scans) - CONTEXT
        while cut > 0 and normal.begin(cut) == normal.begin(cut - 1):
            cut -= 1  # never inside of what one character was folded to
        if cut <= 0:
            return
        place = min(normal.begin(cut), self._left)
        if place != normal.begin(cut):
            return
        self._raw, self._left = self._raw[place:], self._left - place
        for scan in scans:
            scan.shift(cut)

    def _judge_whole(self) -> str:
        text, added = "".join(self._text), ""
        for rule in self._rules:
            if isinstance(rule, specs.LengthRule):
                too_long = self._length > rule.max_chars
                why = "length.too_long" if too_long else length_reason(rule, " " * self._length)
                if why:
                    self._note(rule, why)
            elif isinstance(rule, specs.LanguageRule) and (why := language_reason(rule, text)):
                self._note(rule, why)
            elif isinstance(rule, specs.ClaimsRule):
                support = words_of([*self._request.texts, *self._request.sources])
                if count := unsupported_claims(rule, text, support):
                    self._note(rule, "claims.unsupported", count)
            elif isinstance(rule, specs.DisclaimerRule) and misses(rule, text):
                self._note(rule, "disclaimer.missing")
                added += f"\n\n{rule.text}" if rule.action == "mask" else ""
        return added

    def _note(self, rule: specs.OutputRule, why: str, count: int = 1) -> None:
        action: Literal["allow", "mask", "block", "review"] = rule.action
        self._found[rule.called, action, why] += count
        if action == "block":
            self._blocked = ContentBlocked(
                f"The answer is not let through: {why}", reasons=[why],
                hint="ask in other words, or ask the owner of the use case",
            )  # fmt: skip
            raise self._blocked
