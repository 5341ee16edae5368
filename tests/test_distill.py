"""Distillation: the three terms of the loss by their formulas, a student that learns, and what cannot be distilled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs the extra `torch`")
from torch import nn  # noqa: E402

import rewriter  # noqa: E402
from rewriter.errors import GraftError  # noqa: E402
from rewriter.render import text  # noqa: E402

WIDTH, HEADS, LAYERS = 16, 2, 3
Tensor = Any


class Layer(nn.Module):
    """Post-norm, padding hidden, and the layer's own result kept for the tests."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        x = self.norms[0](x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norms[1](x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """input_ids, attention_mask and token_type_ids [b t] to logits [b 3]; the lower ``apart`` layers by segment."""

    def __init__(self, apart: int = 0) -> None:
        super().__init__()
        self.apart, self.hidden = apart, list[Tensor]()
        self.words, self.types = nn.Embedding(40, WIDTH), nn.Embedding(2, WIDTH)
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(LAYERS)), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        x = self.words(input_ids) + self.types(token_type_ids)
        keep = (attention_mask == 1)[:, None, None, :]
        self.hidden = []
        for n, layer in enumerate(self.layers):
            x = layer(x, keep & self.same(token_type_ids) if n < self.apart else keep)
            self.hidden = [*self.hidden, x]
        return self.head(x[:, 0])

    def same(self, types: Tensor) -> Tensor:
        return types[:, None, None, :] == types[:, None, :, None]


def inputs(seed: int, b: int = 4, t: int = 9, padded: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(40, (b, t), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, t - padded :] = 0
    return ids, mask, (torch.arange(t) > 3).long().expand(b, -1).contiguous()


def module() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


def traced(model: Encoder) -> Any:
    return torch.fx.symbolic_trace(model)


def program(model: Encoder) -> Any:
    dims = {0: torch.export.Dim("b", max=64), 1: torch.export.Dim("t", max=64)}
    return torch.export.export(model, inputs(0), dynamic_shapes=(dims, dims, dims))


def decomposed(graph: Any, layers: int = 2) -> Any:
    report = rewriter.apply(graph, [f"decompose-encoder:layers={layers}"], inputs=inputs(0))
    assert report.rewritten == 1, report.declined
    return report.result


both = pytest.mark.parametrize("form", [traced, program], ids=lambda form: form.__name__)
Form = Callable[[Encoder], Any]


def softmax(x: np.ndarray, temperature: float) -> np.ndarray:
    e = np.exp((x - x.max(-1, keepdims=True)) / temperature)
    return e / e.sum(-1, keepdims=True)


@both
def test_terms_are_those_of_the_formulas(form: Form) -> None:
    """Worked out by numpy from the same module, decomposed by a mask that is written by hand."""
    model, given, labels = module(), inputs(3), torch.tensor([0, 2, 1, 1])
    apart = Encoder(apart=2).eval()
    apart.load_state_dict(model.state_dict())
    report = rewriter.distill(
        decomposed(form(model)), form(model), [(given, labels)], layers=1, temperature=3.0, rate=1e-9
    )
    right, ours = (x(*given).detach().double().numpy() for x in (model, apart))
    p, q = softmax(right, 3.0), softmax(ours, 3.0)
    seen = given[1].numpy().astype(bool)
    squares = [
        ((x - y).detach().double().numpy() ** 2)[seen].mean() for x, y in zip(model.hidden, apart.hidden, strict=True)
    ]
    (terms,) = report.losses
    assert terms["task"] == pytest.approx(-np.log(softmax(ours, 1.0))[np.arange(4), labels.numpy()].mean(), rel=1e-4)
    assert terms["kd"] == pytest.approx(9.0 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-3)
    assert terms["lrs"] == pytest.approx(np.mean(squares[1:]), rel=1e-4)


@both
def test_a_student_learns_and_what_was_given_stays(form: Form) -> None:
    teacher = form(module())
    student, before = decomposed(teacher), copy.deepcopy(module().state_dict())
    data = [(inputs(n), None) for n in range(40)]
    report = rewriter.distill(student, teacher, data, layers=2, epochs=5, rate=3e-3)
    assert report.steps == len(report.losses) == 200
    assert set(report.losses[0]) == {"kd", "lrs"}  # no labels, no task
    for name in ("kd", "lrs"):
        first, last = (np.mean([losses[name] for losses in some]) for some in (report.losses[:20], report.losses[-20:]))
        assert last < first / 2
    for graph in (teacher, student):
        held = graph.state_dict() if isinstance(graph, nn.Module) else graph.state_dict
        assert all(torch.equal(held[name], weight) for name, weight in before.items())
    trained = dict(report.result.named_parameters())
    assert not torch.equal(trained["layers.0.q.weight"], before["layers.0.q.weight"])
    assert "distil" not in text(report)
    assert "200 steps" in text(report)


def test_weights_of_terms_and_several_results() -> None:
    """A term without weight is not worked out; ``logits`` chooses; inputs may be told by name."""
    model = module()
    names = ("input_ids", "attention_mask", "token_type_ids")
    data = [(dict(zip(names, inputs(1), strict=True)), torch.tensor([0, 1, 1, 0]))]
    seen: list[str] = []
    report = rewriter.distill(
        decomposed(traced(model)), traced(model), data, kd=0.0, lrs=0.0, logits=lambda out: (out[:, :2],),
        progress=lambda what, done, total: seen.append(f"{what} {done} of {total}"),
    )  # fmt: skip
    assert set(report.losses[0]) == {"task"}
    assert seen == ["distil 1 of 1"]


def refused(says: str, student: Any, teacher: Any, data: Sequence[Any], **options: Any) -> None:
    with pytest.raises(GraftError, match=says):
        rewriter.distill(student, teacher, data, **options)


def test_what_cannot_be_distilled_gets_a_sentence() -> None:
    teacher, data = traced(module()), [(inputs(0), None)]
    student = decomposed(teacher)
    refused("there is no batch", student, teacher, [])
    refused("the data has no length", student, teacher, iter(data))
    refused("temperature must be above 0, got 0", student, teacher, data, temperature=0)
    refused("kd must be at least 0, got -1", student, teacher, data, kd=-1)
    refused("are all 0", student, teacher, data, task=0, kd=0, lrs=0)
    refused("a batch has no labels", student, teacher, data, kd=0, lrs=0)
    two = (torch.zeros(4, dtype=torch.int64),) * 2
    refused("gives 1 tensors of logits, and there are labels for 2", student, teacher, [(inputs(0), two)])
    refused("after 3 layers, none above layer 3; lrs=0", student, teacher, data, layers=3)
    refused("is a module, not a graph", module(), teacher, data)
    refused("is a module, not a graph", student, module(), data)
    plain = torch.fx.symbolic_trace(nn.Linear(3, 2))
    refused("its hidden states are not known", plain, plain, [((torch.randn(2, 3),), None)])
    refused("the student has no tensor", plain, teacher, data)
    flat = traced(Flat().eval())
    refused(r"the mask \[4, 9\] does not fit hidden states of \[4, 18\] tokens", flat, flat, data)


class Flat(Encoder):
    """Its first input is twice as long as its mask."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        x = self.words(torch.cat([input_ids, input_ids], 1))
        for layer in self.layers:
            x = layer(x, torch.ones(1, 1, 1, 18, dtype=torch.bool))
        return self.head(x[:, 0])
