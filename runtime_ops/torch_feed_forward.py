"""Training of TopKFeedForward in any torch: tokens by chunks, keeping k neuron numbers per token and nothing else.

The backward pass works the chosen neurons out again, and those alone; no gradient reaches neurons that were not
chosen, as the choice counts as constant. Without a choice (k = 0) a chunk is differentiated as it is written.
Source: Gupta et al., "Memory-efficient Transformers via Top-k Attention" (2021), section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from runtime_ops import to_torch
from runtime_ops.activations import ACTIVATIONS
from runtime_ops.ops.topk_feed_forward import TOPK_FEED_FORWARD
from runtime_ops.torch_run import run
from runtime_ops.torch_select import Lookup, best
from runtime_ops.torch_training import Attrs, Inputs, Training
from runtime_ops.words import symbol

Tensor = torch.Tensor
_ROOM = {"cpu": 1 << 20, "cuda": 1 << 26}  # activations in memory at a time


class Block:
    """One call: tokens [n m], and the weights by name in the type of the arithmetic; absent ones are None."""

    def __init__(self, inputs: Inputs, attrs: Attrs) -> None:
        names = [i.name for i in TOPK_FEED_FORWARD.inputs]
        x = inputs[0]
        if x is None:
            raise ValueError("TopKFeedForward: x is not optional")
        self.kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.tokens = x.reshape(-1, x.shape[-1])
        self.weights = {n: None if w is None else w.to(self.kind) for n, w in zip(names[1:], inputs[1:], strict=True)}
        self.attrs, self.neurons = attrs, self["w_in"].shape[0]
        self.gated = self.weights["w_gate"] is not None

    def __getitem__(self, name: str) -> Tensor:
        found = self.weights[name]
        if found is None:
            raise ValueError(f"TopKFeedForward: {name} is missing")
        return found

    def chunks(self, width: int) -> Iterator[slice]:
        """Cut the tokens up so that a chunk has room for `width` numbers per token."""
        rows = max(_ROOM.get(self.tokens.device.type, _ROOM["cpu"]) // max(width, 1), 1)
        return (slice(a, a + rows) for a in range(0, len(self.tokens), rows))

    def active(self, z: Tensor) -> Tensor:
        """Return the activation of z."""
        said = ACTIVATIONS[self.attrs["activation"]](symbol("z", z.shape, to_torch.numpy_dtype(z.dtype)))
        return to_torch.evaluate(said, {"z": z}, z.dtype)

    def coefficients(self, z: Tensor, up: Tensor) -> Tensor:
        """Return what the neurons' values are multiplied with; `up` counts where there is a gate."""
        return self.active(z) * up if self.gated else self.active(z)

    def dense(self, x: Tensor, name: str) -> Tensor:
        """Return x times the weights of "in" or "gate", with their bias."""
        out, bias = x @ self[f"w_{name}"].mT, self.weights[f"b_{name}"]
        return out if bias is None else out + bias

    def sparse(self, x: Tensor, name: str, at: Lookup, chosen: Tensor) -> Tensor:
        """Return the same for the chosen neurons [1 1 rows k] alone."""
        out, bias = at.dots(x[None, None], self[f"w_{name}"][None, None]), self.weights[f"b_{name}"]
        return out if bias is None else out + bias[chosen]

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k best neurons of some tokens, and their coefficients."""
        up = self.dense(x, "in")
        z = self.dense(x, "gate") if self.gated else up
        by = self.attrs["select_by"]
        score = z
        if by != "preactivation":
            score = (self.active(z) if by == "magnitude" else self.coefficients(z, up)).abs()
        chosen = lowest(score, self.attrs["k"])
        return chosen, self.coefficients(z.gather(-1, chosen), up.gather(-1, chosen))


def lowest(score: Tensor, count: int) -> Tensor:
    """Return where the `count` best of every row are, in order; of equal ones those with the lowest index."""
    score = score.masked_fill(score.isnan(), torch.inf)
    last = score.gather(-1, best(score, count)).amin(-1, keepdim=True)
    better, equal = score > last, score == last
    room = count - better.sum(-1, keepdim=True)
    return (better | (equal & (equal.cumsum(-1) <= room))).nonzero()[:, 1].view(-1, count)


def _forward(inputs: Inputs, attrs: Attrs, extra: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return the result, and the chosen neurons int32 [... k]."""
    block, x = Block(inputs, attrs), inputs[0]
    if x is None or not 0 < attrs["k"] < block.neurons:
        out = run(TOPK_FEED_FORWARD, inputs, attrs)
        return out, out.new_empty((*out.shape[:-1], 0), dtype=torch.int32)
    kept = [block.tokens.new_empty((0, attrs["k"]), dtype=torch.int32)]
    made = [block.tokens.new_empty((0, block["w_out"].shape[1]))]
    for at in block.chunks(block.neurons):
        chosen, weights = block.choose(block.tokens[at].to(block.kind))
        kept.append(chosen.int())
        lookup = Lookup(chosen[None, None], block.neurons)
        y = lookup.mix(block["w_out"][None, None], weights[None, None])[0, 0]
        bias = block.weights["b_out"]
        made.append((y if bias is None else y + bias).to(x.dtype))
    lead, width = x.shape[:-1], block["w_out"].shape[1]
    return torch.cat(made).reshape(*lead, width), torch.cat(kept).reshape(*lead, attrs["k"])


def _fake(out: Tensor, inputs: Inputs, attrs: Attrs, extra: Sequence[Any]) -> tuple[Tensor, ...]:
    w_in = inputs[1]
    count = attrs["k"] if w_in is not None and 0 < attrs["k"] < w_in.shape[0] else 0
    return (out.new_empty((*out.shape[:-1], count), dtype=torch.int32),)


def _backward(
    grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool], inputs: Inputs, attrs: Attrs, extra: Sequence[Any]
) -> Sequence[Tensor]:
    block, chosen = Block(inputs, attrs), saved[1]
    names = [i.name for i in TOPK_FEED_FORWARD.inputs]
    totals = {n: torch.zeros_like(w) for n, w in block.weights.items() if w is not None}
    d_x, k = torch.zeros_like(block.tokens), chosen.shape[-1]
    count = len(block.tokens)
    grad, chosen = grad.reshape(count, grad.shape[-1]), chosen.reshape(count, k)
    for at in block.chunks(4 * k or 4 * block.neurons):
        x, d_out = block.tokens[at].to(block.kind), grad[at].to(block.kind)
        found = _sparse(block, x, d_out, chosen[at]) if k else _dense(block, x, d_out)
        d_x[at] = found.pop("x").to(d_x.dtype)
        for name, d in found.items():
            totals[name] += d
    whole = {"x": d_x, **totals}
    return [
        whole[n].reshape(x.shape).to(x.dtype)
        for n, x, need in zip(names, inputs, needs, strict=True)
        if need and x is not None
    ]


def _dense(block: Block, x: Tensor, d_out: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a chunk in which all neurons take part."""
    given = {"x": x, **{n: w for n, w in block.weights.items() if w is not None}}

    def block_of(*moving: Tensor) -> Tensor:
        told = dict(zip(given, moving, strict=True))
        exact = {**block.attrs, "k": 0}
        return to_torch.call(TOPK_FEED_FORWARD, [told.get(i.name) for i in TOPK_FEED_FORWARD.inputs], exact)

    gradients = torch.func.vjp(block_of, *given.values())[1](d_out)
    return dict(zip(given, gradients, strict=True))


def _sparse(block: Block, x: Tensor, d_out: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a chunk from its chosen neurons [rows k]."""
    f, places = block.neurons, chosen.long()[None, None]
    at = Lookup(chosen[None, None], f)
    up = block.sparse(x, "in", at, places)
    z = block.sparse(x, "gate", at, places) if block.gated else up
    pulled: Any = torch.func.vjp(block.coefficients, z, up)
    weights, pull = pulled
    d_z, d_up = pull(at.dots(d_out[None, None], block["w_out"][None, None]))
    found = {"w_out": at.spread(d_out[None, None], weights, f)[0, 0], "b_out": d_out.sum(0), "x": torch.zeros_like(x)}
    parts = {"gate": d_z, "in": d_up} if block.gated else {"in": d_z}
    for name, d in parts.items():
        found["x"] = found["x"] + at.mix(block[f"w_{name}"][None, None], d)[0, 0]
        found[f"w_{name}"] = at.spread(x[None, None], d, f)[0, 0]
        found[f"b_{name}"] = d.new_zeros(f).scatter_add_(0, places.reshape(-1), d.reshape(-1))
    return {n: d for n, d in found.items() if n == "x" or block.weights[n] is not None}


TRAINING = Training(saves=1, forward=_forward, fake=_fake, backward=_backward)
