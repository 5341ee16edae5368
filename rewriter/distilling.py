"""Teaching a rewritten graph to answer as the original does (Hinton 2015; its use for encoders: DeFormer, Cao 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewriter.errors import GraftError
from rewriter.proof import Progress
from rewriter.report import DistillReport


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How a student is taught; the fields are arguments of ``distill``."""

    layers: int
    task: float
    kd: float
    lrs: float
    temperature: float
    epochs: int
    rate: float
    warm_up: float
    mask: str
    logits: Callable[[Any], Any] | None
    progress: Progress

    def __post_init__(self) -> None:
        """Raise GraftError if a number is out of range."""
        low = {"layers": 0, "task": 0, "kd": 0, "lrs": 0, "epochs": 1, "warm_up": 0}
        for name, least in low.items():
            if not getattr(self, name) >= least:
                raise GraftError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("temperature", "rate"):
            if not getattr(self, name) > 0:
                raise GraftError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.task + self.kd + self.lrs > 0:
            raise GraftError("task, kd and lrs are all 0, so there is nothing to learn from")


def distill(
    student: Any,
    teacher: Any,
    data: Any,
    *,
    layers: int = 0,
    task: float = 1.0,
    kd: float = 1.0,
    lrs: float = 1.0,
    temperature: float = 2.0,
    epochs: int = 1,
    rate: float = 5e-5,
    warm_up: float = 0.15,
    mask: str = "attention_mask",
    logits: Callable[[Any], Any] | None = None,
    progress: Progress | None = None,
) -> DistillReport:
    """Train a rewritten torch graph to answer as the original does; both are left as they are.

    The loss is ``task·CE + kd·KD + lrs·LRS``: cross-entropy with the labels; the Kullback-Leibler divergence from the
    teacher's probabilities at the temperature, times its square; the mean squared difference of hidden states
    [b t m], averaged over the layers above ``layers``. Several results of logits are averaged. AdamW, rate rising
    over the first steps and falling to 0.

    Args:
        student: what ``apply`` made of the teacher, a ``GraphModule`` or an ``ExportedProgram``.
        teacher: the graph that ``apply`` was given.
        data: batches, each a pair of inputs (a tuple, or a mapping by name) and labels; labels may be None, and the
            first term is left out then. A list or anything else that has a length and can be gone through again.
        layers: how many lower layers may have hidden states of their own: those that are decomposed.
        task, kd, lrs: the weights of the terms (γ, α and β in the paper's code).
        temperature: of the probabilities in ``KD``.
        epochs: how often the data is gone through.
        rate: the highest learning rate.
        warm_up: part of the steps in which the rate rises.
        mask: name of the input [b t] that is 0 where there is no token; hidden states there do not count. All count
            if the graph has no such input.
        logits: takes what a graph returns and gives its logits [... c], or several of them; None takes all that the
            graph returns.
        progress: called with (what, done, total) as the work goes on.

    Returns:
        The report, with every step's losses; ``report.result`` is the trained student, a graph module.

    Raises:
        GraftError: torch is not there, a graph is no graph, hidden states cannot be told, or a number is out of range.
    """
    try:
        from rewriter import fx_distill
    except ImportError as error:
        raise GraftError(f"distill needs torch: {error}; pip install attn-graft[torch]") from error
    lesson = Lesson(
        layers=layers, task=task, kd=kd, lrs=lrs, temperature=temperature, epochs=epochs, rate=rate, warm_up=warm_up,
        mask=mask, logits=logits, progress=progress or (lambda what, done, total: None),
    )  # fmt: skip
    return fx_distill.distilled(student, teacher, data, lesson)
