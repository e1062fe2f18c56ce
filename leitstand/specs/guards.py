"""The key `guards` of the use-case file: what texts may pass.

Two ordered chains, `input` and `output`. Each rule has a type (`rule`), an action and parameters:

    allow    nothing follows; the verdict is recorded
    mask     what was found is replaced; a missing disclaimer is added
    review   the text passes, the verdict is recorded and counted for people
    block    the request or answer is refused with the rule's reason code
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from leitstand.specs.base import Fraction, Spec

__all__ = [
    "INPUT_RULES",
    "OUTPUT_RULES",
    "RULES",
    "BiasRule",
    "CheckRule",
    "ClaimsRule",
    "DisclaimerRule",
    "GuardsSpec",
    "InjectionRule",
    "InputRule",
    "LanguageRule",
    "LeakedPromptRule",
    "LengthRule",
    "NumbersRule",
    "OutputRule",
    "PersonalDataRule",
    "PersonalKind",
    "SecretsRule",
    "TermsRule",
    "UnsafeRule",
]

Finding = Literal["allow", "mask", "block", "review"]
Judging = Literal["allow", "block", "review"]
PersonalKind = Literal[
    "email", "phone", "iban", "card", "tax_id", "tax_number", "social_security", "address", "name", "ip", "birth_date"
]
Phrase = Annotated[str, StringConstraints(min_length=2, max_length=80, strip_whitespace=True)]


class _Rule(Spec):
    name: str = Field(
        default="", pattern=r"^([a-z][a-z0-9_]{0,39})?$", description="name in verdicts; without one the rule's type"
    )

    @property
    def called(self) -> str:
        """Its name in verdicts."""
        return self.name or str(getattr(self, "rule", ""))


class LengthRule(_Rule):
    """A text that is too short or too long."""

    rule: Literal["length"]
    action: Judging = "block"
    min_chars: int = Field(default=0, ge=0, description="fewer characters are `length.too_short`")
    max_chars: int = Field(default=20_000, ge=1, le=1_000_000, description="more characters are `length.too_long`")


class LanguageRule(_Rule):
    """A text in another language than expected; one too short to tell passes."""

    rule: Literal["language"]
    action: Judging = "review"
    languages: tuple[str, ...] = Field(min_length=1, description="ISO 639-1 codes that texts may be in")


class InjectionRule(_Rule):
    """Known shapes of prompt injection and jailbreaks, in English and German."""

    rule: Literal["injection"]
    action: Judging = "block"


class SecretsRule(_Rule):
    """Keys, tokens and passwords, by their published formats and by entropy."""

    rule: Literal["secrets"]
    action: Finding = "mask"
    entropy: bool = Field(default=True, description="also long random-looking words that have no known format")


class PersonalDataRule(_Rule):
    """Personal data; in answers only what was in no text of the request."""

    rule: Literal["personal_data"]
    action: Finding = "mask"
    kinds: tuple[PersonalKind, ...] = Field(
        default=("email", "phone", "iban", "card", "tax_id", "social_security"), min_length=1,
        description="what is looked for; `name`, `address` and `tax_number` are the least precise",
    )  # fmt: skip
    regions: tuple[Annotated[str, StringConstraints(pattern="^[A-Z]{2}$")], ...] = Field(
        default=("DE",), description="ISO 3166 codes of the countries whose phone numbers are known without +CODE"
    )
    reversible: bool = Field(
        default=True, description="mask with tokens like <EMAIL_1> and put the values back into the answer"
    )


class UnsafeRule(_Rule):
    """Threats, incitement, encouraged self-harm, instructions for weapons: a list of phrases, English and German."""

    rule: Literal["unsafe"]
    action: Finding = "block"


class BiasRule(_Rule):
    """Generalisations about groups of people ("women cannot ..."), English and German."""

    rule: Literal["bias"]
    action: Finding = "review"


class TermsRule(_Rule):
    """The use case's own words and phrases."""

    rule: Literal["terms"]
    action: Finding = "review"
    phrases: tuple[Phrase, ...] = Field(min_length=1, max_length=500, description="whole words, in any case")
    code: str = Field(default="found", pattern=r"^[a-z][a-z0-9_]{0,39}$", description="reason code: `terms.CODE`")


class LeakedPromptRule(_Rule):
    """An answer that repeats the system prompt, or a canary."""

    rule: Literal["leaked_prompt"]
    action: Finding = "block"
    prompt: str = Field(default="", max_length=50_000, description="besides the system prompt of the request itself")
    canaries: tuple[Annotated[str, StringConstraints(min_length=8, max_length=64)], ...] = Field(
        default=(), description="strings that stand in the prompt only to be found in answers"
    )
    words: int = Field(default=7, ge=4, le=12, description="words in a row that count as repeated")


class NumbersRule(_Rule):
    """Numbers in an answer that stand in no text and no source of the request, rounding allowed."""

    rule: Literal["unsupported_numbers"]
    action: Finding = "block"
    ignore_up_to: int = Field(default=10, ge=0, description="whole numbers up to this one need no source")


class ClaimsRule(_Rule):
    """Sentences of an answer most of whose words stand in no text and no source of the request."""

    rule: Literal["unsupported_claims"]
    action: Judging = "review"
    min_support: Fraction = Field(default=0.5, description="share of a sentence's words that must stand in a source")
    min_words: int = Field(default=5, ge=1, description="shorter sentences claim nothing")


class DisclaimerRule(_Rule):
    """A statement that an answer must contain; `mask` adds it at the end."""

    rule: Literal["disclaimer"]
    action: Finding = "mask"
    text: str = Field(min_length=5, max_length=2_000, description="the statement; compared without case and spacing")
    when: tuple[Phrase, ...] = Field(default=(), description="only for answers with one of these phrases")


class CheckRule(_Rule):
    """A model's judgement, with its own deadline."""

    rule: Literal["check"]
    action: Judging = "review"
    model: str = Field(
        pattern=r"^(injection|https?://\S+)$",
        description="`injection`: the classifier that comes along; or the infer URL of a Bento",
    )
    labels: tuple[str, ...] = Field(default=(), description="labels of the Bento that count as found")
    threshold: Fraction = Field(default=0.5, description="score from which on it counts as found")
    deadline_ms: float = Field(default=50, gt=0, le=10_000, description="it has this long for all texts of a request")
    on_timeout: Judging = Field(default="review", description="what follows when it is late or fails")

    @model_validator(mode="after")
    def _a_bento_needs_labels(self) -> Self:
        if self.model != "injection" and not self.labels:
            raise ValueError("a Bento's check needs `labels`: those that count as found")
        return self


InputRule = Annotated[
    LengthRule | LanguageRule | InjectionRule | SecretsRule | PersonalDataRule | UnsafeRule | BiasRule | TermsRule
    | CheckRule,
    Field(discriminator="rule"),
]  # fmt: skip
OutputRule = Annotated[
    LengthRule | LanguageRule | SecretsRule | PersonalDataRule | UnsafeRule | BiasRule | TermsRule | LeakedPromptRule
    | NumbersRule | ClaimsRule | DisclaimerRule | CheckRule,
    Field(discriminator="rule"),
]  # fmt: skip


def _by_type(union: Any) -> dict[str, type[_Rule]]:
    return {get_args(model.model_fields["rule"].annotation)[0]: model for model in get_args(get_args(union)[0])}


INPUT_RULES, OUTPUT_RULES = _by_type(InputRule), _by_type(OutputRule)
RULES = {**INPUT_RULES, **OUTPUT_RULES}
"""The model of each type of rule."""


class GuardsSpec(Spec):
    """The chains of rules on texts and answers; without rules nothing is looked at and nothing costs."""

    input: tuple[InputRule, ...] = Field(default=(), max_length=50, description="rules on texts, in order")
    output: tuple[OutputRule, ...] = Field(default=(), max_length=50, description="rules on written answers, in order")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for chain in (self.input, self.output):
            names = [rule.called for rule in chain]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"two rules are called '{twice}'; give one of them another `name`")
        return self
