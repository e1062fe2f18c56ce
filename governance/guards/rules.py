"""The rules of a use case as detectors: which they are, what is written in place of what they find, their reasons."""

from collections.abc import Sequence
from dataclasses import dataclass

from governance.guards.detectors import Detector, alternatives
from governance.guards.grounding import Known, PromptWords, Unknown, canary_detector, number_detector
from governance.guards.linear import escape
from governance.guards.personal import personal_detectors
from governance.guards.phrases import bias_detectors, injection_detectors, unsafe_detectors
from governance.guards.secrets import secret_detectors
from governance.guards.text import OTHER_LETTER, normalise
from leitstand.errors import ConfigurationError
from leitstand.specs import guards as specs

__all__ = ["Request", "Searching", "reason", "replacement", "searching"]

PREFIX = {
    "injection": "injection", "secrets": "secrets", "personal_data": "personal", "unsafe": "unsafe", "bias": "bias",
    "terms": "terms", "leaked_prompt": "leak.prompt", "unsupported_numbers": "numbers",
}  # fmt: skip
LEAK = "leak."


@dataclass(frozen=True)
class Request:
    """What an answer is compared with.

    Attributes:
        texts: What the caller sent, before anything was masked.
        sources: Retrieved texts that the answer may rest on.
        prompts: System prompts of this request.
    """

    texts: Sequence[str] = ()
    sources: Sequence[str] = ()
    prompts: Sequence[str] = ()


@dataclass(frozen=True)
class Searching:
    """A rule that finds places in a text; its detectors, as far as they depend on no request."""

    spec: specs.InputRule | specs.OutputRule
    fixed: tuple[Detector, ...]

    def detectors(self, stage: str, request: Request) -> Sequence[Detector]:
        """All of its detectors, for one request."""
        spec = self.spec
        if isinstance(spec, specs.NumbersRule):
            return [number_detector([*request.texts, *request.sources], spec.ignore_up_to)]
        if isinstance(spec, specs.LeakedPromptRule) and request.prompts:
            return [*self.fixed, PromptWords(request.prompts, spec.words)]
        if isinstance(spec, specs.PersonalDataRule) and stage == "output":
            known = Known(request.texts)
            return [Unknown(detector, known) for detector in self.fixed]
        return self.fixed


def searching(spec: specs.InputRule | specs.OutputRule) -> Searching | None:
    """The rule with its detectors; None for one that judges whole texts.

    Raises:
        ConfigurationError: A phrase has no letters that can be told apart.
    """
    if spec.rule not in PREFIX:
        return None
    return Searching(spec, tuple(_fixed(spec)))


def _fixed(spec: specs.InputRule | specs.OutputRule) -> Sequence[Detector]:  # noqa: PLR0911 -- a table
    match spec:
        case specs.InjectionRule():
            return injection_detectors()
        case specs.SecretsRule():
            return secret_detectors(entropy=spec.entropy)
        case specs.PersonalDataRule():
            return personal_detectors(spec.kinds, spec.regions)
        case specs.UnsafeRule():
            return unsafe_detectors()
        case specs.BiasRule():
            return bias_detectors()
        case specs.TermsRule():
            return [_terms(spec)]
        case specs.LeakedPromptRule():
            prompt = [PromptWords([spec.prompt], spec.words)] if spec.prompt else []
            return [canary_detector(spec.canaries), *prompt] if spec.canaries else prompt
        case _:
            return []


def _terms(spec: specs.TermsRule) -> Detector:
    folded = [" ".join(normalise(phrase).data.decode().split()) for phrase in spec.phrases]
    for phrase, written in zip(spec.phrases, folded, strict=True):
        if OTHER_LETTER in written and OTHER_LETTER not in phrase:
            raise ConfigurationError(
                f"guards: rule '{spec.called}': the phrase '{phrase}' is not in Latin letters",
                hint="rules read Latin script only; take the phrase out",
            )
    patterns = [r"\s{1,3}".join(escape(word) for word in phrase.split()) for phrase in folded]
    return alternatives(spec.code, patterns, longest=max(map(len, folded)) + 60)


def reason(spec: specs.InputRule | specs.OutputRule, kind: str, stage: str) -> str:
    """The reason code of what a rule found."""
    leak = LEAK if stage == "output" and spec.rule in ("personal_data", "secrets") else ""
    return f"{leak}{PREFIX[spec.rule]}.{kind}"


def replacement(spec: specs.InputRule | specs.OutputRule, kind: str) -> str:
    """What is written in place of something found, when it cannot be put back."""
    match spec.rule:
        case "personal_data":
            return f"[{kind.upper()}]"
        case "secrets":
            return "[SECRET]"
        case "unsupported_numbers":
            return "[NUMBER]"
        case _:
            return "[REMOVED]"
