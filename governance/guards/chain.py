"""A use case's guards, ready to be applied: the rules of `leitstand.specs.guards` with everything compiled.

Rules run in their order on the texts as they came; the first that blocks ends it. Then everything to be masked is
replaced in one pass from left to right. Model-based checks are not run here (`governance.guards.checks`).
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from governance.guards.detectors import Hit, Scan
from governance.guards.rules import Request, reason, replacement, searching
from governance.guards.stream import StreamGuard
from governance.guards.text import Normal, normalise
from governance.guards.vault import Vault
from governance.guards.whole import language_reason, length_reason
from leitstand.errors import ContentBlocked
from leitstand.files import digest_json
from leitstand.specs import guards as specs
from leitstand.types import Verdict

__all__ = ["Chain", "Looked"]

NOTHING = Request()


@dataclass(frozen=True)
class Looked:
    """What became of the texts of a request.

    Attributes:
        texts: As the model may see them.
        verdicts: What the rules said.
        vault: What the tokens in them stand for.
        blocked: Why they must not pass; None: they may.
    """

    texts: Sequence[str]
    verdicts: list[Verdict]
    vault: Vault
    blocked: ContentBlocked | None = None


class Chain:
    """The guards of one use case; safe to share among requests.

    Args:
        spec: The key `guards` of its file.

    Raises:
        ConfigurationError: A rule cannot be applied.
    """

    def __init__(self, spec: specs.GuardsSpec) -> None:
        self.spec = spec
        self.digest = digest_json(spec.model_dump(mode="json"))
        self._input = {rule.called: made for rule in spec.input if (made := searching(rule)) is not None}
        self._output = {rule.called: made for rule in spec.output if (made := searching(rule)) is not None}
        self.input_checks = [rule for rule in spec.input if isinstance(rule, specs.CheckRule)]
        self.output_checks = [rule for rule in spec.output if isinstance(rule, specs.CheckRule)]

    @property
    def looks_at_answers(self) -> bool:
        """Whether an answer must be guarded although no token has to be restored."""
        return bool(self.spec.output)

    def check_input(self, texts: Sequence[str], prompts: Collection[str] = ()) -> Looked:
        """Applies the input rules to all texts of a request.

        Args:
            texts: What the caller sent.
            prompts: Those of them that are system prompts: they may tell a model what to do.
        """
        normals = [normalise(text) for text in texts]
        verdicts: list[Verdict] = []
        for rule in self.spec.input:
            for index, normal in enumerate(normals):
                if isinstance(rule, specs.CheckRule) or rule.action == "mask":
                    continue
                if isinstance(rule, specs.InjectionRule) and normal.raw in prompts:
                    continue
                found = self._judge(rule, normal)
                verdicts += _verdicts(rule, found, index)
                if found and rule.action == "block":
                    return Looked(texts, verdicts, Vault(()), _refusal(rule, found, index))
        masking = [rule for rule in self.spec.input if rule.action == "mask"]
        if not masking:
            return Looked(texts, verdicts, Vault(()))
        vault = Vault(texts)
        masked = [self._mask(masking, normal, index, vault, verdicts) for index, normal in enumerate(normals)]
        return Looked(masked, verdicts, vault)

    def answer_guard(self, request: Request = NOTHING, vault: Vault | None = None, index: int = 0) -> StreamGuard:
        """A guard for one answer, streamed or not."""
        return StreamGuard(self.spec.output, self._output, request, Vault(()) if vault is None else vault, index)

    def check_answer(
        self, text: str, request: Request = NOTHING, vault: Vault | None = None, index: int = 0
    ) -> tuple[str, list[Verdict], ContentBlocked | None]:
        """Applies the output rules to a whole answer: the text that may leave, the verdicts, why it may not."""
        guard = self.answer_guard(request, vault, index)
        try:
            guarded = guard.feed(text) + guard.finish()
        except ContentBlocked as blocked:
            return "", guard.verdicts, blocked
        return guarded, guard.verdicts, None

    def _judge(self, rule: specs.InputRule, normal: Normal) -> Counter[str]:
        """Reason codes with how often they were found."""
        if isinstance(rule, specs.LengthRule):
            return Counter(filter(None, [length_reason(rule, normal.raw)]))
        if isinstance(rule, specs.LanguageRule):
            return Counter(filter(None, [language_reason(rule, normal.raw)]))
        scan = Scan(self._input[rule.called].detectors("input", NOTHING))
        return Counter(reason(rule, hit.kind, "input") for _, hit in scan.run(normal.data, len(normal.data)))

    def _mask(
        self, rules: Sequence[specs.InputRule], normal: Normal, index: int, vault: Vault, verdicts: list[Verdict]
    ) -> str:
        owners = [(rule, d) for rule in rules for d in self._input[rule.called].detectors("input", NOTHING)]
        hits = Scan([detector for _, detector in owners]).run(normal.data, len(normal.data))
        if not hits:
            return normal.raw
        pieces, left = [], 0
        found: dict[str, tuple[specs.InputRule, Counter[str]]] = {}
        for owner, hit in hits:
            rule = owners[owner][0]
            begin, end = max(left, normal.begin(hit.begin)), normal.end(hit.end)
            if end > begin:
                pieces += [normal.raw[left:begin], _replaced(rule, hit, normal.raw[begin:end], vault)]
                left = end
            found.setdefault(rule.called, (rule, Counter()))[1][reason(rule, hit.kind, "input")] += 1
        for rule, reasons in found.values():
            verdicts += _verdicts(rule, reasons, index)
        return "".join([*pieces, normal.raw[left:]])


def _replaced(rule: specs.InputRule, hit: Hit, value: str, vault: Vault) -> str:
    if isinstance(rule, specs.PersonalDataRule) and rule.reversible:
        return vault.token(hit.kind, value)
    return replacement(rule, hit.kind)


def _verdicts(rule: specs.InputRule, found: Counter[str], index: int) -> list[Verdict]:
    return [Verdict("input", rule.called, rule.action, why, count, index) for why, count in found.items()]


def _refusal(rule: specs.InputRule, found: Counter[str], index: int) -> ContentBlocked:
    return ContentBlocked(
        f"text[{index}] is not let through: {', '.join(found)}", reasons=list(found),
        hint=f"the rule '{rule.called}' of the use case decided this; write it in other words",
    )  # fmt: skip
