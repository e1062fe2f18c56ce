"""The use-case file: one YAML document describes data, model, training, gates, serving, rollout and drift.

``load("support")`` reads ``usecases/support/usecase.yaml`` into a frozen `UseCase`. A mistake is
reported with file, line, key, value and what to write instead; all mistakes are reported at once.
Nothing here reads data sets or loads models.
"""

import difflib
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from leitstand.errors import ConfigurationError, NotFoundError, bounded
from leitstand.specs.access import AccessSpec
from leitstand.specs.audit import AuditSpec
from leitstand.specs.base import Fraction, Spec
from leitstand.specs.budgets import BudgetsSpec
from leitstand.specs.chat import ChatSpec
from leitstand.specs.guards import INPUT_RULES, OUTPUT_RULES, RULES, GuardsSpec
from leitstand.specs.resilience import ResilienceSpec

__all__ = [
    "CanaryMargins",
    "ChampionRule",
    "CounterfactualSpec",
    "DataSpec",
    "DriftSpec",
    "EvaluationSpec",
    "Expectations",
    "FeedbackSpec",
    "GateSpec",
    "GoldenSpec",
    "ModelSpec",
    "NightlySpec",
    "PromptSpec",
    "RetrainingSpec",
    "RolloutSpec",
    "SafetySpec",
    "ServingSpec",
    "TrainingProfile",
    "TrainingSpec",
    "TrustSpec",
    "UseCase",
    "find",
    "load",
    "names",
]

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,39}$"
FOLDER_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


class Expectations(Spec):
    """What a data set must satisfy before anything is trained on it."""

    min_rows: int = Field(default=100, ge=1, description="rows per split, after quarantine")
    min_chars: int = Field(default=3, ge=1, description="shorter texts are quarantined")
    max_chars: int = Field(default=2_000, ge=1, description="longer texts are quarantined")
    languages: tuple[str, ...] = Field(default=("en",), description="ISO 639-1 codes that the texts may be in")
    max_language_mismatch: Fraction = Field(default=0.05, description="share of rows detected as another language")
    max_duplicates: Fraction = Field(
        default=0.02, description="share of rows whose normalised text repeats within a split"
    )
    max_leakage: Fraction = Field(default=0.005, description="share of test texts that also stand in train")
    max_quarantined: Fraction = Field(
        default=0.02, description="share of rows that may be quarantined before the set is bad"
    )
    min_rows_per_label: int = Field(default=5, ge=1, description="train rows that every label needs")


class GoldenSpec(Spec):
    """Labelled rows that no model ever sees in training, pinned by digest: the guard against forgetting."""

    file: str = Field(description="CSV with the data's columns, inside the use case's folder")
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", description="of the file's bytes; another file is refused")

    @model_validator(mode="after")
    def _local(self) -> Self:
        if "://" in self.file:
            raise ValueError("the golden set lies beside usecase.yaml, versioned with the code")
        return self


class DataSpec(Spec):
    """Where the labelled texts come from. Paths are relative to the use case's folder; ``s3://`` works too."""

    train: str = Field(description="CSV, JSONL or Parquet file")
    test: str = Field(description="CSV, JSONL or Parquet file; never used to choose anything")
    text_column: str = "text"
    label_column: str = "label"
    labels: tuple[str, ...] | str = Field(description="the label set: a list, or a JSON file holding one")
    licence: str = Field(description="SPDX id or name of the data's licence")
    attribution: str = Field(default="", description="who to name, as the licence asks")
    golden: GoldenSpec | None = None
    expectations: Expectations = Expectations()


class ModelSpec(Spec):
    """The pretrained encoder that training starts from, and what a prediction may say."""

    base: str = Field(
        description="`package:NAME` (weights inside an installed package), a hub id, a folder, or an s3:// prefix"
    )
    max_tokens: int = Field(default=128, ge=8, le=8192, description="longer texts are truncated")
    abstain_below: Fraction = Field(default=0.5, description="calibrated score under which the model abstains")


class TrainingProfile(Spec):
    """One way to train. ``frozen`` fits only the head on frozen embeddings; ``finetune`` trains everything."""

    method: Literal["finetune", "frozen"] = "finetune"
    epochs: int = Field(
        default=5, ge=1, le=1000, description="`frozen`: most iterations of the head's optimizer (L-BFGS)"
    )
    batch_size: int = Field(default=32, ge=1, description="texts per optimizer step, over all processes together")
    learning_rate: float = Field(default=5e-5, gt=0, description="peak rate of the top encoder layer")
    head_learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of the classification head")
    head_init: Literal["random", "frozen"] = Field(
        default="random", description="`frozen`: first fit the head on frozen embeddings, then train everything (LP-FT)"
    )
    layer_decay: float = Field(default=1.0, gt=0, le=1, description="factor on the rate per layer downwards")
    schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="how the rate falls to 0 after the warm-up"
    )
    warmup_fraction: Fraction = 0.1
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0, description="longer gradients are shortened to this length")
    label_smoothing: Fraction = 0.0
    dropout: Fraction = Field(default=0.1, description="in the encoder and before the head")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="exponential moving average of weights; 0 turns it off"
    )
    freeze_embeddings: bool = Field(default=True, description="keep the word embeddings as pretrained; much faster")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    class_weights: Literal["none", "balanced"] = "none"
    early_stopping_patience: int = Field(
        default=0, ge=0, description="evaluations without a gain before stopping; 0 = off"
    )
    checkpoint_every_steps: int = Field(default=200, ge=1)
    token_budget: int = Field(
        default=16_384, ge=1, description="padded tokens per pass; larger batches are cut into passes"
    )
    l2: float = Field(default=1e-4, ge=0, description="ridge penalty of a head fitted on frozen embeddings")
    refit: bool = Field(
        default=False,
        description="`frozen` only: after calibration, fit the head again on train and validation rows together",
    )

    @model_validator(mode="after")
    def _refit_needs_frozen(self) -> Self:
        if self.refit and self.method != "frozen":
            raise ValueError("refit: true works with method: frozen only; a finetuned model keeps its held-out rows")
        return self


class TrainingSpec(Spec):
    seed: int = Field(default=17, ge=0)
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5, description="share of train held out for choices")
    default_profile: str = "full"
    profiles: dict[str, TrainingProfile]

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        if self.default_profile not in self.profiles:
            raise ValueError(f"default_profile '{self.default_profile}' is not one of: {', '.join(self.profiles)}")
        return self


class CounterfactualSpec(Spec):
    """Sentences with a `{person}` slot, and groups of words that must not change the answer."""

    templates: tuple[str, ...] = Field(min_length=1, description="each holds {text} and {person}")
    groups: dict[str, tuple[str, ...]] = Field(min_length=2, description="group name to the words that stand for it")

    @model_validator(mode="after")
    def _slots(self) -> Self:
        for template in self.templates:
            if "{person}" not in template or "{text}" not in template:
                raise ValueError(f"template {template!r} must hold both {{text}} and {{person}}")
        return self


class EvaluationSpec(Spec):
    label_groups: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="group name to its labels")
    typo_rate: Fraction = Field(default=0.1, description="share of words that get one typing error in the typo slice")
    counterfactuals: CounterfactualSpec | None = None
    bootstrap_samples: int = Field(default=1000, ge=100)


class ChampionRule(Spec):
    """How a candidate is compared with the serving champion, on the same test rows."""

    test: Literal["mcnemar", "bootstrap"] = "bootstrap"
    margin: float = Field(default=0.0, ge=0, description="how much worse the candidate may be and still pass")
    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="error rate of the one-sided non-inferiority decision")


class GateSpec(Spec):
    """One number that a version must reach, absolutely and against the champion."""

    metric: str
    slice: str | None = None
    floor: float | None = None
    ceiling: float | None = None
    champion: ChampionRule | None = None
    min_examples: int = Field(default=50, ge=1, description="fewer rows than this give `insufficient evidence`")
    decide_by: Literal["estimate", "interval"] = Field(
        default="estimate",
        description="interval: the whole confidence interval must lie on the right side of the bound",
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.floor is None) == (self.ceiling is None):
            raise ValueError("a gate needs exactly one of `floor` and `ceiling`")
        return self

    @property
    def name(self) -> str:
        return f"{self.metric}[{self.slice}]" if self.slice else self.metric


class ServingSpec(Spec):
    engine: Literal["auto", "openvino", "torch"] = Field(
        default="auto", description="auto: torch on a GPU, else openvino"
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        default="fp32", description="auto: bf16 where the CPU computes it, if packaging finds the accuracy unchanged"
    )
    max_batch_size: int = Field(default=64, ge=1)
    max_queue: int = Field(default=512, ge=1, description="texts waiting; beyond it the answer is 503 with Retry-After")
    deadline_ms: int = Field(default=2_000, ge=1, description="a request older than this is answered 503, not computed")
    max_text_bytes: int = Field(default=65_536, ge=1, description="larger texts are answered 413")
    port: int = Field(default=3000, ge=1, le=65535)


class CanaryMargins(Spec):
    """How much worse than stable a canary may be, in absolute shares; null: the metric is not judged."""

    errors: Fraction | None = Field(default=0.02, description="share of requests that fail")
    slow: Fraction | None = Field(default=0.03, description="share of requests slower than `slow_ms`")
    blocked: Fraction | None = Field(default=0.03, description="share of answers that a guard blocks")
    negative: Fraction | None = Field(default=0.10, description="share of rated or labelled answers found wrong")
    doubt: Fraction | None = Field(default=0.05, description="mean of 1 - confidence")


CanaryMetric = Literal["errors", "slow", "blocked", "negative", "doubt"]


class RolloutSpec(Spec):
    """Used by the rollout controller; `approval: manual` asks a person before traffic moves."""

    approval: Literal["automatic", "manual"] = "automatic"
    shadow_minutes: int = Field(default=10, ge=0)
    canary_percent: tuple[int, ...] = (1, 5, 25, 50, 100)
    step_deadline: timedelta = timedelta(minutes=30)
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="chance that a whole rollout rolls back a harmless canary, or promotes a harmful one",
    )
    min_requests: int = Field(default=50, ge=1, description="canary requests per step before traffic may rise")
    min_requests_harm: int = Field(
        default=5, ge=1, description="canary requests before harm may be called proven; guards against one bad burst"
    )
    slow_ms: float | None = Field(
        default=None, gt=0, description="slower counts as `slow`; null: stable's p99 before the rollout"
    )
    margins: CanaryMargins = CanaryMargins()
    prove: tuple[CanaryMetric, ...] = Field(
        default=("errors", "slow", "doubt"),
        description="metrics that must be proven within their margin before traffic rises; the others only stop harm",
    )
    margin_widening: float = Field(
        default=5.0,
        ge=1,
        description="at small weights a margin is divided by the next weight, at most up to this factor; 1: never",
    )
    min_agreement: Fraction = Field(
        default=0.5, description="share of shadow answers equal to stable's; proven lower, the rollout is rolled back"
    )
    on_insufficient: Literal["hold", "roll_back", "proceed"] = Field(
        default="hold", description="when a step's deadline passes undecided; hold keeps the weight and asks a person"
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        steps = self.canary_percent
        if not steps or steps[-1] != 100 or list(steps) != sorted(set(steps)) or steps[0] < 1:  # noqa: PLR2004
            raise ValueError(f"canary_percent {list(steps)} must rise from at least 1 to 100")
        return self

    @model_validator(mode="after")
    def _provable(self) -> Self:
        loose = [name for name in self.prove if not getattr(self.margins, name)]
        if loose:
            raise ValueError(f"prove names {', '.join(loose)}, which needs a margin above 0 in margins")
        return self


class DriftSpec(Spec):
    """Used by the monitors: when a window counts as drifted, and what may follow."""

    check_every: timedelta = timedelta(hours=1)
    min_window_rows: int = Field(default=500, ge=1)
    false_alarms_per_month: float = Field(default=1.0, gt=0)
    max_retrains_per_week: int = Field(default=2, ge=0)
    quality_tolerance: Fraction = Field(
        default=0.02, description="accuracy may fall this far below the reference before it counts as lost"
    )
    large_loss: Fraction = Field(
        default=0.10, description="a fall proven larger than this is acted on at the first window"
    )
    min_labelled_rows: int = Field(
        default=100, ge=1, description="with fewer feedback labels in the window, accuracy is not called measured"
    )
    confirm_windows: int = Field(
        default=2, ge=1, description="windows in a row that must show a loss before anything is retrained"
    )
    cool_down: timedelta = Field(
        default=timedelta(hours=12), description="after a retraining or a roll back, before the next automatic one"
    )
    rollback_within: timedelta = Field(
        default=timedelta(hours=24), description="a loss this soon after a promotion is blamed on the promotion"
    )
    max_error_rate: Fraction = Field(default=0.05, description="share of failed requests that counts as failing")
    max_latency_p99_ms: float | None = Field(default=None, gt=0, description="p99 that counts as failing; null: none")
    max_retrain_cost_per_week: float | None = Field(
        default=None, ge=0, description="in the unit your retrainings report their cost in; null: not limited"
    )

    @model_validator(mode="after")
    def _large_is_larger(self) -> Self:
        if self.large_loss < self.quality_tolerance:
            raise ValueError(
                f"large_loss {self.large_loss} must not be below quality_tolerance {self.quality_tolerance}"
            )
        return self


class TrustSpec(Spec):
    """When a source of labels is quarantined: its labels are provably worse than the policy tolerates."""

    alpha: float = Field(
        default=0.01, gt=0, lt=0.5, description="chance that any honest source is quarantined, over all tests together"
    )
    tolerance: Fraction = Field(
        default=0.2, description="disagreement that is allowed beyond what the model and the other sources show"
    )
    min_rows: int = Field(default=10, ge=1, description="labels of a source with which a test begins")
    top_guesses: int = Field(
        default=5, ge=1, description="a label outside the model's best guesses, this many, counts as implausible"
    )


class FeedbackSpec(Spec):
    """Which labelled feedback becomes training data, and with what weight."""

    half_life: timedelta = Field(
        default=timedelta(days=30), gt=timedelta(0), description="age at which a row weighs half as much as a new one"
    )
    hold_out: Fraction = Field(
        default=0.2, le=0.5, description="share of texts that go to the test split and are never trained on"
    )
    max_source_share: Fraction = Field(
        default=0.2, gt=0, description="most of base and feedback rows together that one source may contribute"
    )
    new_labels: Literal["allow", "ask", "never"] = Field(
        default="ask", description="labels that the base does not have; ask: only those in `approved_labels`"
    )
    approved_labels: tuple[str, ...] = ()
    min_rows_per_new_label: int = Field(default=20, ge=2, description="trusted rows that a new label needs")
    new_label_floor: Fraction = Field(
        default=0.6, description="gate: accuracy on held-out rows of the new labels together"
    )
    new_label_min_examples: int = Field(default=10, ge=1, description="held-out rows of new labels that gate needs")
    trust: TrustSpec = TrustSpec()


class RetrainingSpec(Spec):
    """How a new version is trained when the loop asks for one."""

    profile: str = Field(default="", description="training profile; empty: the default one")
    warm_start: bool = Field(default=True, description="start from the champion's weights, not from the base model")
    min_new_rows: int = Field(
        default=50, ge=1, description="labelled rows beyond the champion's that a retraining needs; fewer: people are "
        "asked for labels"
    )  # fmt: skip


class PromptSpec(Spec):
    """A text whose answer never changes."""

    text: str
    label: str


class SafetySpec(Spec):
    """A text, and what the guards must find in it."""

    text: str
    reason: str = Field(
        default="", description="reason code that must be found, like `injection.override`; empty: none"
    )


class NightlySpec(Spec):
    """What the nightly checks ask of the served version and its data."""

    prompts: tuple[PromptSpec, ...] = Field(default=(), description="texts with the label that must be answered")
    safety: tuple[SafetySpec, ...] = Field(
        default=(), description="texts with the reason that the input guards must give, or none"
    )
    golden_tolerance: Fraction = Field(
        default=0.01, description="accuracy on the golden set may be this far below what the version's gates measured"
    )
    behaviour_texts: int = Field(
        default=100, ge=0, description="golden texts per probe of bias and robustness, asked of what serves; 0: none"
    )
    max_quiet: timedelta = Field(default=timedelta(days=1), description="time without a request before data is stale")
    max_feedback_age: timedelta | None = Field(
        default=None, description="time without feedback before it is stale; null: feedback is not expected"
    )


class UseCase(Spec):
    """Everything Leitstand needs to know about one use case."""

    schema_version: Literal[1]
    name: str = Field(pattern=NAME_PATTERN)
    title: str
    owner: str
    description: str = ""
    intended_use: str = ""
    out_of_scope_use: str = ""
    task: Literal["text-classification"]
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec
    evaluation: EvaluationSpec = EvaluationSpec()
    gates: tuple[GateSpec, ...] = Field(min_length=1)
    serving: ServingSpec = ServingSpec()
    rollout: RolloutSpec = RolloutSpec()
    drift: DriftSpec = DriftSpec()
    feedback: FeedbackSpec = FeedbackSpec()
    retraining: RetrainingSpec = RetrainingSpec()
    nightly: NightlySpec = NightlySpec()
    access: AccessSpec = AccessSpec()
    budgets: BudgetsSpec = BudgetsSpec()
    guards: GuardsSpec = GuardsSpec()
    audit: AuditSpec = AuditSpec()
    resilience: ResilienceSpec = ResilienceSpec()
    chat: ChatSpec = ChatSpec()

    folder: Path = Field(default=Path(), exclude=True, description="set by `load`; not part of the file")

    @model_validator(mode="after")
    def _retraining_profile_exists(self) -> Self:
        chosen = self.retraining.profile
        if chosen and chosen not in self.training.profiles:
            raise ValueError(f"retraining.profile '{chosen}' is not one of: {', '.join(self.training.profiles)}")
        return self

    def profile(self, name: str | None = None) -> TrainingProfile:
        """The training profile called `name`, or the default one.

        Raises:
            NotFoundError: No profile has that name.
        """
        chosen = name or self.training.default_profile
        if chosen not in self.training.profiles:
            raise NotFoundError(
                f"Use case '{self.name}' has no training profile '{chosen}'",
                hint=f"choose one of: {', '.join(self.training.profiles)}",
            )
        return self.training.profiles[chosen]

    def resolve(self, path: str) -> str:
        """`path` as written in the file, made absolute unless it is a URI."""
        return path if "://" in path else str((self.folder / path).resolve())


def names(root: Path) -> list[str]:
    """Names of the use cases below `root` (a folder of folders with a ``usecase.yaml``)."""
    return sorted(path.parent.name for path in root.glob("*/usecase.yaml"))


def find(name: str, root: Path) -> Path:
    """The file of use case `name` below `root`.

    Raises:
        NotFoundError: There is none; the message lists those there are.
    """
    if not re.fullmatch(FOLDER_PATTERN, name):  # it comes from requests, too: no other folder, no long search
        known = ", ".join(names(root)) or "none"
        raise NotFoundError(f"No use case '{name[:64]}' in {root}", hint=f"there are: {known}")
    path = root / name / "usecase.yaml"
    if not path.is_file():
        known = names(root)
        close = difflib.get_close_matches(name, known, n=1)
        raise NotFoundError(
            f"No use case '{name}' in {root}",
            hint=(f"did you mean '{close[0]}'? " if close else "")
            + f"there are: {', '.join(known) or 'none'}; write one with `leitstand init {name}`",
        )
    return path


def load(path: Path) -> UseCase:
    """Reads and checks one use-case file.

    Raises:
        NotFoundError: The file does not exist.
        ConfigurationError: It is not YAML, or breaks the specification; the message names each line and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"No use-case file {path}", hint="write one with `leitstand init NAME`") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error}", hint="save the file as UTF-8") from error
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigurationError(f"{path}{line}: not valid YAML: {problem}", hint="check the indentation") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: expected a mapping at the top, found {type(document).__name__}")
    document.pop("folder", None)
    _reject_repeated_keys(path, tree)
    try:
        return UseCase.model_validate(document | {"folder": path.parent})
    except ValidationError as error:
        problems = [_explain(path, tree, item) for item in error.errors(include_url=False)]
        raise ConfigurationError("\n".join(problems), hint="correct the lines above and run again") from error


def _reject_repeated_keys(path: Path, tree: yaml.Node | None) -> None:
    for node in _mappings(tree):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigurationError(
                    f"{path}:{line}: key '{key.value}' stands twice (first on line {seen[key.value]})",
                    hint="keep one of them",
                )
            seen[key.value] = key.start_mark.line + 1


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)


def _explain(path: Path, tree: yaml.Node | None, item: Any) -> str:
    """One pydantic error as `file:line: key: what is wrong (value); fix`."""
    loc = [part for part in item["loc"] if not (isinstance(part, str) and ("[" in part or part in {"str"}))]
    loc, model = _without_tag(loc)
    line, known = _locate(tree, loc)
    key = ".".join(str(part) for part in loc) or "(top level)"
    if item["type"] == "extra_forbidden":
        fields = list(model.model_fields) if model else _fields_at(loc[:-1])
        close = difflib.get_close_matches(str(loc[-1]), fields, n=1)
        fix = f"did you mean '{close[0]}'?" if close else f"known keys are: {bounded(fields, 30)}"
        return f"{path}:{line}: {key}: unknown key; {fix}"
    if item["type"] == "missing":
        return f"{path}:{line}: {key}: required key is missing; add `{loc[-1]}:` here"
    if item["type"] == "union_tag_not_found":
        return f"{path}:{line}: {key}: required key is missing; add `rule:` with one of: {_tags(item['loc'])}"
    if item["type"] == "union_tag_invalid":
        tag, known_tags = item["ctx"]["tag"], _tags(item["loc"]).split(", ")
        close = difflib.get_close_matches(tag, known_tags, n=1)
        fix = f"did you mean '{close[0]}'?" if close else f"known rules are: {', '.join(known_tags)}"
        return f"{path}:{line}: {key}.rule: unknown rule '{tag}'; {fix}"
    value = repr(item["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."  # noqa: PLR2004
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}:{line}: {key}: {message}" + (f" (found {shown})" if known else "")


def _without_tag(loc: list[Any]) -> tuple[list[Any], type[BaseModel] | None]:
    """`loc` without the name of the rule's type that pydantic puts into it, and that type's model."""
    for place, part in enumerate(loc):
        if place and isinstance(loc[place - 1], int) and part in RULES and loc[0] == "guards":
            return loc[:place] + loc[place + 1 :], RULES[part] if len(loc) == place + 2 else None
    return loc, None


def _tags(loc: tuple[Any, ...]) -> str:
    chain = next((part for part in loc if part in ("input", "output")), "input")
    return ", ".join(name for name in RULES if name in (INPUT_RULES if chain == "input" else OUTPUT_RULES))


def _locate(tree: yaml.Node | None, loc: list[Any]) -> tuple[int, bool]:
    """The line of the deepest node that `loc` reaches, and whether it reaches all the way."""
    node, line = tree, 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                return line, False
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line, False
    return line, True


def _fields_at(loc: list[Any]) -> list[str]:
    """Names of the keys that the specification knows at `loc`."""
    model: Any = UseCase
    for part in loc:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        field = model.model_fields.get(str(part)) if isinstance(part, str) else None
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    is_model = isinstance(model, type) and issubclass(model, BaseModel)
    return [name for name in model.model_fields if name != "folder"] if is_model else []
