"""Distillation in torch: student and teacher side by side, their hidden states taken where the reader found them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.nn import functional
from torch.utils import _pytree as pytree

from rewriter.distilling import Lesson
from rewriter.errors import GraftError
from rewriter.fx_host import FxHost
from rewriter.hosts.fx import FxGraphs
from rewriter.report import DistillReport

Tensor = torch.Tensor
Graph = torch.fx.GraphModule
_LONGEST = 1.0  # of all gradients together


def distilled(student: Any, teacher: Any, data: Any, lesson: Lesson) -> DistillReport:
    """Return what ``distill`` does."""
    batches = _count(data)
    pair = _Pair(student, teacher, next(iter(data))[0], lesson)
    weights = [p for p in pair.student.parameters() if p.requires_grad]
    total, losses = batches * lesson.epochs, list[Mapping[str, float]]()
    optimizer = torch.optim.AdamW(weights, lr=lesson.rate)
    rising = max(1, round(lesson.warm_up * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / rising, (total - n) / max(1, total - rising))
    )
    for inputs, labels in (batch for _ in range(lesson.epochs) for batch in data):
        terms = pair.terms(inputs, labels)
        optimizer.zero_grad()
        sum(getattr(lesson, name) * term for name, term in terms.items()).backward()
        torch.nn.utils.clip_grad_norm_(weights, _LONGEST)
        optimizer.step()
        schedule.step()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
        lesson.progress("distil", len(losses), total)
    return DistillReport(teacher=pair.host.name, steps=len(losses), losses=losses, result=pair.student)


def _count(data: Any) -> int:
    if not hasattr(data, "__len__"):
        raise GraftError(
            f"the data has no length, which the learning rate depends on; a {type(data).__name__} was given"
        )
    if not len(data):
        raise GraftError("there is no batch to learn from")
    return len(data)


class _Pair:
    """A student with weights of its own and its teacher."""

    def __init__(self, student: Any, teacher: Any, inputs: Any, lesson: Lesson) -> None:
        self.lesson, self.host = lesson, FxHost(teacher, inputs)
        FxHost(student)  # raises for what is no graph
        found = self.host.read()
        assert isinstance(found.graphs, FxGraphs)
        self.teacher = teacher.module() if isinstance(teacher, ExportedProgram) else found.graphs.module
        self.student = copy.deepcopy(student.module() if isinstance(student, ExportedProgram) else student)
        self.hidden = self._hidden(found) if lesson.lrs else ()

    def _hidden(self, found: Any) -> Sequence[str]:
        """Return the names of the hidden states after each upper layer."""
        encoder = next((site for site in found.sites.values() if site.kind == "encoder"), None)
        if encoder is None:
            why = next((d.reason for d in found.declines if d.kind == "encoder"), "no encoder of tokens in it")
            raise GraftError(f"{self.host.name}: its hidden states are not known: {why}; lrs=0 does without them")
        names = [cut.value.handle.name for cut in encoder.cuts[self.lesson.layers :]]
        if not names:
            raise GraftError(
                f"{self.host.name}: hidden states are known after {len(encoder.cuts)} layers, none above layer "
                f"{self.lesson.layers}; lrs=0 does without them"
            )
        there = {node.name for node in self.student.graph.nodes}
        odd = [name for name in names if name not in there]
        if odd:
            raise GraftError(f"the student has no tensor {odd[0]}; it must be what apply made of this teacher")
        return names

    def terms(self, inputs: Any, labels: Any) -> Mapping[str, Tensor]:
        """Return the terms of the loss that have a weight."""
        given = FxHost(self.teacher, inputs).arguments(self.teacher)
        with torch.no_grad():
            right, right_hidden = _run(self.teacher, given, self.hidden)
        out, hidden = _run(self.student, given, self.hidden)
        heads, right_heads, terms = self._heads(out), self._heads(right), dict[str, Tensor]()
        if labels is not None and self.lesson.task:
            terms["task"] = _task(heads, pytree.tree_leaves(labels))
        if self.lesson.kd:
            pairs = zip(heads, right_heads, strict=True)
            terms["kd"] = _mean([_divergence(x, y, self.lesson.temperature) for x, y in pairs])
        if self.hidden:
            mask = self._mask(given)
            terms["lrs"] = _mean([_apart(x, y, mask) for x, y in zip(hidden, right_hidden, strict=True)])
        if not terms:
            raise GraftError("a batch has no labels, and kd and lrs are 0, so there is nothing to learn from it")
        return terms

    def _heads(self, out: Any) -> Sequence[Tensor]:
        chosen = out if self.lesson.logits is None else self.lesson.logits(out)
        return [x for x in pytree.tree_leaves(chosen) if isinstance(x, Tensor)]

    def _mask(self, given: Sequence[Any]) -> Tensor | None:
        names = [str(n.target) for n in self.teacher.graph.nodes if n.op == "placeholder"]
        found: Tensor | None = given[names.index(self.lesson.mask)] if self.lesson.mask in names else None
        return found


class _Watcher(torch.fx.Interpreter):
    """Runs a graph and keeps some of its tensors."""

    def __init__(self, graph: Graph, names: Sequence[str]) -> None:
        super().__init__(graph)
        self.kept: dict[str, Any] = dict.fromkeys(names)

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run one node, and keep what it gives if that is wanted."""
        value = super().run_node(n)
        if n.name in self.kept:
            self.kept[n.name] = value
        return value


def _run(graph: Graph, given: Sequence[Any], names: Sequence[str]) -> tuple[Any, Sequence[Tensor]]:
    watcher = _Watcher(graph, names)
    return watcher.run(*given), [watcher.kept[name] for name in names]


def _mean(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(terms)).mean()


def _task(heads: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    if len(heads) != len(labels):
        raise GraftError(f"the graph gives {len(heads)} tensors of logits, and there are labels for {len(labels)}")
    pairs = zip(heads, labels, strict=True)
    return _mean([functional.cross_entropy(x.flatten(0, -2), y.flatten()) for x, y in pairs])


def _divergence(logits: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Return how far probabilities [... c] are from the right ones, a mean over rows."""
    x, y = ((z.flatten(0, -2) / temperature).log_softmax(-1) for z in (logits, right))
    return functional.kl_div(x, y, log_target=True, reduction="batchmean") * temperature**2


def _apart(hidden: Tensor, right: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean squared difference of hidden states [b t m] where there are tokens."""
    squared = (hidden - right).square().mean(-1)
    if mask is None:
        return squared.mean()
    if mask.shape != squared.shape:
        raise GraftError(f"the mask {[*mask.shape]} does not fit hidden states of {[*squared.shape]} tokens")
    weight = (mask != 0).to(squared.dtype)
    return (squared * weight).sum() / weight.sum().clamp_min(1)
