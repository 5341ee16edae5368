"""Training of TopKAttention in any torch: chunk by chunk, keeping k key numbers per query and nothing else.

Forward and backward pass walk over the same chunks, small enough that the scores of one are the largest tensor there
is. The forward pass keeps which keys were chosen; the backward pass works the rest out again, for the chosen keys
alone (k > 0) or for all of them (k = 0, or a remainder). The choice counts as constant: without a remainder no gradient
reaches keys that were not chosen.
Source: Gupta et al., "Memory-efficient Transformers via Top-k Attention" (2021), sections 2 and 3; dropout has a seed
of its own in every chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from runtime_ops import cuda, torch_run
from runtime_ops.ops.remainder import NONE
from runtime_ops.ops.topk_attention import TOPK_ATTENTION
from runtime_ops.spec import OUT
from runtime_ops.torch_chunks import Chunk, Problem
from runtime_ops.torch_layout import by_heads, exchanged, place
from runtime_ops.torch_remainder import Level, levelling
from runtime_ops.torch_select import Lookup, best, softmax_
from runtime_ops.torch_training import Attrs, Inputs, Training

Tensor = torch.Tensor


def forward(p: Problem, result: Tensor) -> Tensor:
    """Return the chosen keys int32 [b h s k], -1 where a row sees fewer than k; k may be 0.

    Args:
        p: the call.
        result: zeros [b h s e], where the result goes.
    """
    b, g, r, s, _ = p.q.shape
    out = result.unflatten(1, (g, r))
    keys = torch.full((b, g, r, s, p.k_top), -1, dtype=torch.int32, device=p.q.device)
    for at in p.chunks():
        x, _ = p.scores(at)
        chosen = best(x, min(p.k_top, at.keys)) if p.k_top else None
        scores = x if chosen is None else x.gather(-1, chosen)
        if chosen is not None:
            keys[at.b, at.g, :, at.s, : chosen.shape[-1]] = chosen.masked_fill_(scores == -torch.inf, -1)
        level = levelling(p, x, chosen, at)
        weights = softmax_(scores if p.remainder == NONE else x)
        weights = weights if level is None else level.weights(weights)
        unseeing = weights.sum(-1, keepdim=True) == 0 if p.mean else None
        mask = p.kept(weights, at)
        weights = weights if mask is None else weights.mul_(mask)
        rows, values = weights.flatten(2, 3), p.table(p.v, at)
        if chosen is None or p.remainder != NONE:  # every key has a weight
            mixed = rows @ values
        else:
            mixed = Lookup(chosen.flatten(2, 3), values.shape[2]).mix(values, rows)
        mixed = mixed.unflatten(2, (r, -1))
        if unseeing is not None:
            mixed = mixed.where(~unseeing, p.v[at.b, at.g].to(p.kind).mean(2)[:, :, None, None])
        out[at.b, at.g, :, at.s] = mixed.to(out.dtype)
    return keys.flatten(1, 2)


class Gradients:
    """Where the gradients of one call add up, in the type of the arithmetic."""

    def __init__(self, p: Problem, bias: Tensor | None) -> None:
        self.p = p
        self.q = torch.zeros_like(p.q)  # in memory as the queries are
        self.k, self.v = (torch.zeros_like(x, dtype=p.kind) for x in (p.k, p.v))
        self.bias = None
        if bias is not None:
            g, r = p.q.shape[1:3]
            wide = torch.zeros(bias.shape, dtype=p.kind, device=bias.device)
            wide = wide[(None,) * (4 - wide.ndim)]
            self.bias = wide.unflatten(1, (g, r) if wide.shape[1] > 1 else (1, 1))

    def add_mean(self, grad: Tensor, unseeing: Tensor, at: Chunk) -> None:
        """Add what the rows [b g r s] of a chunk that see no key give all values, whose mean they are."""
        if self.p.mean:
            rows = (grad[at.b, at.g, :, at.s].to(self.p.kind) * unseeing[..., None]).sum((2, 3))
            self.v[at.b, at.g] += (rows / self.v.shape[2])[:, :, None]

    def add_bias(self, d_scores: Tensor, at: Chunk) -> None:
        """Add what a chunk's scores [b g r s t] give the bias, summed where it was broadcast."""
        if self.bias is not None:
            cuts = (at.b, at.g, slice(None), at.s, slice(at.keys))
            part = self.bias[tuple(c if n > 1 else slice(None) for c, n in zip(cuts, self.bias.shape, strict=True))]
            part += d_scores.sum_to_size(part.shape)


def backward(p: Problem, grad: Tensor, keys: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Return the gradients of q, k and v, all of batch b, and of the bias if it is given.

    Args:
        p: the call.
        grad: gradient of the result.
        keys: what `forward` chose; None for all keys.
        bias: the bias as it was given, if it needs a gradient.
    """
    grads, grad = Gradients(p, bias), grad.unflatten(1, p.q.shape[1:3])
    # chunks must be those of the forward pass where dropout counts them, and small where scores are spread out
    sparse = keys is not None and p.remainder == NONE and not p.dropout and bias is None
    for at in p.chunks(4 * p.k_top if sparse else None):  # places, weights and their gradients
        chosen = None if keys is None else keys.unflatten(1, p.q.shape[1:3])[at.b, at.g, :, at.s]
        if chosen is None or p.remainder != NONE:
            _dense(grads, grad, chosen, at)
        else:
            _sparse(grads, grad, chosen, at)
    given = () if grads.bias is None or bias is None else (grads.bias.reshape(bias.shape).to(bias.dtype),)
    return grads.q.flatten(1, 2), grads.k.to(p.k.dtype), grads.v.to(p.v.dtype), *given


def _d_scores(
    p: Problem, at: Chunk, weights: Tensor, d_weights: Tensor, level: Level | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weights, levelled and with dropout on, and the gradient of the scores; may use their memory."""
    mask = p.kept(weights, at)
    if mask is not None:
        d_weights.mul_(mask)
    d_weights = d_weights if level is None else level.gradient(d_weights)
    d_weights.sub_((d_weights * weights).sum(-1, keepdim=True)).mul_(weights)
    weights = weights if level is None else level.weights(weights)
    return weights if mask is None else weights.mul_(mask), d_weights


def _dense(grads: Gradients, grad: Tensor, keys: Tensor | None, at: Chunk) -> None:
    p = grads.p
    x, slope = p.scores(at)
    level = levelling(p, x, keys, at)
    weights, d_out, values, r = softmax_(x), p.rows(grad, at), p.table(p.v, at), p.q.shape[2]
    grads.add_mean(grad, weights.sum(-1) == 0, at)
    weights, d_x = _d_scores(p, at, weights, (d_out @ values.mT).unflatten(2, (r, -1)), level)
    grads.v[at.b, at.g, : at.keys] += weights.flatten(2, 3).mT @ d_out
    grads.add_bias(d_x, at)
    d_x = (d_x if slope is None else d_x.mul_(slope)).mul_(p.scale).flatten(2, 3)
    grads.q[at.b, at.g, :, at.s] = (d_x @ p.table(p.k, at)).unflatten(2, (r, -1)).to(p.q.dtype)
    grads.k[at.b, at.g, : at.keys] += d_x.mT @ p.rows(p.q, at)


def _sparse(grads: Gradients, grad: Tensor, keys: Tensor, at: Chunk) -> None:
    p, r = grads.p, keys.shape[2]
    grads.add_mean(grad, (keys < 0).all(-1), at)
    if p.dropout:
        keys = keys[..., : at.keys]  # as wide as in the forward pass, which had the same chunks
    lookup = Lookup(keys.flatten(2, 3), at.keys)
    queries, d_out, table = p.rows(p.q, at), p.rows(grad, at), p.table(p.k, at)
    x, slope = p.capped(lookup.dots(queries * p.scale, table).unflatten(2, (r, -1)))
    if p.bias is not None:
        x += p.bias[at.b, at.g, :, at.s].gather(-1, keys.clamp(min=0).long())
    weights = softmax_(x.masked_fill_(keys < 0, -torch.inf))
    weights, d_x = _d_scores(p, at, weights, lookup.dots(d_out, p.table(p.v, at)).unflatten(2, (r, -1)))
    grads.v[at.b, at.g, : at.keys] += lookup.spread(d_out, weights, at.keys)
    if grads.bias is not None:
        wide = d_x.new_zeros(*d_x.shape[:-1], at.keys)
        grads.add_bias(wide.scatter_add_(-1, keys.clamp(min=0).long(), d_x), at)
    d_x = (d_x if slope is None else d_x.mul_(slope)).mul_(p.scale).flatten(2, 3)
    grads.q[at.b, at.g, :, at.s] = lookup.mix(table, d_x).unflatten(2, (r, -1)).to(p.q.dtype)
    grads.k[at.b, at.g, : at.keys] += lookup.spread(queries, d_x, at.keys)


def _forward(inputs: Inputs, attrs: Attrs, extra: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return the result, the scores of the chosen keys where the backward pass wants them (CUDA), and those keys."""
    dropped = bool(extra and extra[0])
    scores = keys = None
    if not dropped and cuda.trains(inputs, attrs):
        out, scores, keys = cuda.forward(inputs, attrs, keep=True)
    elif not dropped and not attrs["k"] and torch_run.on_cpu(TOPK_ATTENTION, inputs):
        out = exchanged(torch_run.run(TOPK_ATTENTION, inputs, attrs), OUT, attrs)
    else:
        p = Problem.of(inputs, attrs, extra)
        b, g, r, s, _ = p.q.shape
        out = place(p.q, (b, g * r, s, p.v.shape[3]), attrs).zero_()
        keys = forward(p, out)
    none = out.new_empty((*out.shape[:3], 0), dtype=torch.float32)
    return out, none if scores is None else scores, none.int() if keys is None else keys


def _fake(out: Tensor, inputs: Inputs, attrs: Attrs, extra: Sequence[Any]) -> tuple[Tensor, ...]:
    k = inputs[1]
    if k is None:
        raise ValueError("TopKAttention: k is not optional")
    count = torch.sym_min(attrs["k"], k.shape[2]) if attrs["k"] else 0
    kept = count if not (extra and extra[0]) and cuda.trains(inputs, attrs) else 0
    return tuple(
        out.new_empty((*out.shape[:3], n), dtype=kind) for n, kind in ((kept, torch.float32), (count, torch.int32))
    )


def _backward(
    grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool], inputs: Inputs, attrs: Attrs, extra: Sequence[Any]
) -> Sequence[Tensor]:
    _, scores, keys = saved
    bias = inputs[3] if needs[3] else None
    if scores.shape[3] and bias is None:
        found = cuda.backward(grad, saved, inputs, attrs)
    else:
        chosen = keys.masked_fill(scores == -torch.inf, -1) if scores.shape[3] else keys
        found = backward(Problem.of(inputs, attrs, extra), grad, chosen if attrs["k"] else None, bias)
    # the heads and lengths are those of the inputs; a batch of 1 was shared
    wide = zip(found, (x for x, i in zip(inputs, range(4), strict=False) if i < 3 or needs[3]), strict=True)
    whole = [d if x is None else d.sum_to_size(x.shape) for d, x in wide]
    return [d for d, need in zip(whole, (*needs[:3], *([True] if needs[3] else [])), strict=True) if need]


TRAINING = by_heads(
    TOPK_ATTENTION,
    Training(
        saves=2,
        extra=", float dropout_p=0.0, Tensor? seed=None",
        forward=_forward,
        fake=_fake,
        backward=_backward,
    ),
)
