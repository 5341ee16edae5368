"""What show, apply, verify and bench answer: plain data, printed as tables or as JSON.

``to_dict`` of each report is exactly what ``--json`` prints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Report:
    """Base of all reports: fields become JSON keys of the same name."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        shown = [f.name for f in dataclasses.fields(self) if f.metadata.get("json", True)]
        return {name: _plain(getattr(self, name)) for name in shown}


def _plain(value: Any) -> Any:
    if isinstance(value, Report):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN and no infinity
    return value


@dataclass(frozen=True, kw_only=True)
class Count(Report):
    """A number of neurons that differs from token to token."""

    median: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Activity(Report):
    """How many neurons of a feed-forward block are at work in each token; padding counts as tokens.

    The neurons' values are those that the second product reads: activation(z), with a gate activation(g)·u.
    """

    tokens: int
    positive: (
        float | None
    )  # share of neurons above zero, mean over tokens; None in gated blocks, where signs say nothing
    nonzero: Count  # neurons that are not zero: no smaller k leaves every number as it is
    largest: Mapping[float, Count]  # by share: the largest neurons that hold it of a token's sum of squares


@dataclass(frozen=True, kw_only=True)
class SiteRow(Report):
    """One attention or feed-forward block that was read."""

    id: str
    kind: str  # "attention" | "feed-forward"
    reads_as: str  # one line in formula form, e.g. "softmax(0.125 q·kᵀ + bias) v"
    heads: int | str | None  # a length in words where it is known by name only; None where it is not known
    kv_heads: int | str | None
    head_width: int | str | None
    value_width: int | str | None
    scale: float | None
    mask: str | None
    softcap: float | None
    model_width: int | str | None
    inner_width: int | str | None
    anchor: str  # name of the anchor node
    activation: str | None = None
    gated: bool | None = None
    biases: Sequence[str] | None = None  # of "in", "gate", "out": those that are there
    quantised: str | None = None  # operators that round numbers of the block to few bits
    stored: str | None = None  # element type of weights that are no floats
    activity: Activity | None = None  # measured where show was given inputs
    around: Sequence[str] = ()  # what q, k and v come through, in words: "rope", "qk-norm", "cache"
    rope: Report | None = None  # None in these: looked for and not found
    qk_norm: Report | None = None
    cache: Report | None = None
    projections: Mapping[str, Report | None] | None = None  # by "q", "k" and "v"


@dataclass(frozen=True, kw_only=True)
class DeclineRow(Report):
    """One softmax that was not read as attention, or near miss of a feed-forward block, and why."""

    kind: str
    anchor: str
    reason: str
    at: str  # the node where reading stopped


@dataclass(frozen=True, kw_only=True)
class ShowReport(Report):
    """The sites of a model, the softmaxes that are not sites, and near misses of feed-forward blocks."""

    model: str
    host: str  # "onnx" | "fx"
    opset: int | None
    sites: Sequence[SiteRow]
    declines: Sequence[DeclineRow]


@dataclass(frozen=True, kw_only=True)
class Step(Report):
    """One peel of a reader: what it met and what that meant."""

    node: str
    met: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Story(Report):
    """The full story of one site or decline: every peel, and how far each rule gets."""

    id: str
    anchor: str
    outcome: str  # "attention" or the decline's reason
    steps: Sequence[Step]
    rules: Mapping[str, str]  # rule name: "applies", with what it warns of, or the reason why not
    around: Mapping[str, str] = field(default_factory=dict)  # "rope", "qk norm", "cache", "q", "k", "v": in words


@dataclass(frozen=True, kw_only=True)
class WhyReport(Report):
    """Stories, nearest miss first."""

    model: str
    stories: Sequence[Story]


@dataclass(frozen=True, kw_only=True)
class OutputError(Report):
    """Distance between two tensors of the same name: b against a."""

    name: str
    max_abs: float
    rel_l2: float
    cosine: float
    argmax_agreement: float


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Report):
    """Two models compared on the same inputs."""

    outputs: Sequence[OutputError]
    tolerance: float
    passed: bool
    cases: Sequence[str] = ()  # the input cases that were run, worst case reported per output


@dataclass(frozen=True, kw_only=True)
class Refusal(Report):
    """A rule that does not apply to a site, or was rolled back."""

    site: str
    rule: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Caution(Report):
    """What a user should know of sites that a rule was applied to."""

    sites: Sequence[str]
    rule: str
    warning: str


@dataclass(frozen=True, kw_only=True)
class SiteError(Report):
    """A site's own check: relative L2 errors against fp64."""

    site: str
    rewrite: float  # the plan (its rule at its limit, as k = all) against the original region, both in fp64
    kernel: float | None  # the operation as it will run against the plan in fp64
    original: float | None  # the original region as it ran against fp64
    approximation: float | None  # the plan as asked for against its rule at its limit, fp64; None for exact rules


@dataclass(frozen=True, kw_only=True)
class ApplyCheck(Report):
    """What ``apply`` measured before it let the result out."""

    sites: Sequence[SiteError]
    rewrite: VerifyReport  # original against result with every LIMIT rule at its limit (k = all)
    approximation: VerifyReport | None  # original against the result as asked; None if all rules are exact
    rolled_back: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ApplyReport(Report):
    """What was rewritten, what was not and why, and what it cost in accuracy."""

    model: str
    sites: int
    rewritten: int
    declined: Sequence[Refusal]
    kernels: Mapping[str, str]  # site: kernel name, or "function body"
    output: str | None
    verify: ApplyCheck | None
    warnings: Sequence[Caution] = ()
    plan: Sequence[str] = field(default=())  # one line per rewritten site, for --dry-run and people
    result: Any = field(default=None, repr=False, metadata={"json": False})  # the rewritten model, for Python


@dataclass(frozen=True, kw_only=True)
class Timing(Report):
    """One model in one case."""

    median_ms: float
    min_ms: float
    peak_mb: float  # highest resident memory while running, above that of the loaded, idle session


@dataclass(frozen=True, kw_only=True)
class BenchCase(Report):
    """Two models timed in turn on the same inputs; ratio = a / b, above 1 when b is faster."""

    dims: Mapping[str, int]
    threads: int
    a: Timing
    b: Timing
    ratio: float


@dataclass(frozen=True, kw_only=True)
class BenchReport(Report):
    """All cases of one bench run."""

    a: str
    b: str
    cases: Sequence[BenchCase]


@dataclass(frozen=True, kw_only=True)
class SplitReport(Report):
    """What ``split`` wrote."""

    model: str
    output: str
    layers: int  # lower layers, which see their own segment only
    question_length: int
    positions: str  # "keep" | "restart"
    files: Mapping[str, int]  # size in bytes, by name
    bytes_per_token: int  # of a cached passage in fp32


@dataclass(frozen=True, kw_only=True)
class ExpandReport(Report):
    """What ``expand`` wrote."""

    decoder: str
    with_past: str | None  # None: the decoder's file is both
    output: str
    attentions: int
    old: Mapping[str, Mapping[str, Mapping[str, str]]]  # by file: "inputs" and "outputs", by name, with their axes
    new: Mapping[str, Mapping[str, Mapping[str, str]]]
    files: Mapping[str, int]  # size in bytes, by name
    error: float | None  # largest relative L2 error of an output over several steps; None: not verified
    caution: str | None  # where it takes longer than the original; None: not known


@dataclass(frozen=True, kw_only=True)
class CacheReport(Report):
    """What ``graft cache`` did."""

    store: str
    kind: str  # "float16" | "int8"
    passages: int  # in the file
    new: int  # encoded now
    kept: int  # in the store
    bytes: int  # of the store in use


@dataclass(frozen=True, kw_only=True)
class DistillReport(Report):
    """How a student was taught."""

    teacher: str
    steps: int
    losses: Sequence[Mapping[str, float]]  # of every step, by term: "task", "kd" and "lrs", without their weights
    result: Any = field(default=None, repr=False, metadata={"json": False})  # the trained student
