"""What becomes of the keys that top-k attention did not choose: the attribute ``remainder`` of ``TopKAttention``.

Softmax goes over all visible keys. The chosen ones keep their weights. The mass of the others goes to a mean: in the
whole row to that of their values; in every block of keys to that of the block's visible values, the chosen ones among
them. A key whose score lies more than ``FAINT`` below the row's best has no weight in float32, so it takes no part in a
mean: keys that a large finite number hides would spoil it. This is ours; no paper has it.
"""

from __future__ import annotations

import numpy as np

from runtime_ops.ops.pieces import ceiling, count, peak, weights
from runtime_ops.words import Expr, const, dim, make, reshape

NONE, MEAN, BLOCKS = REMAINDERS = ("none", "mean", "blocks")
BLOCK = 64  # keys that share a mean, from the first key on
FAINT = 80.0


def spread(logits: Expr, best: Expr, place: Expr, remainder: str) -> Expr:
    """Return the weights of all keys, with the mass of those that are not ``best`` spread over means.

    Args:
        logits: scores [b h s t], -inf where hidden.
        best: the chosen keys [b h s k].
        place: where each query stands among the keys [b or 1, 1, s, 1].
        remainder: "mean" or "blocks".
    """
    share, zero, others = weights(logits), const(0.0), _clear(logits)
    if remainder == BLOCKS:
        others = make("and", others, make("not", _own_block(place, dim(logits, 3))))
    rest = make("and", others, _left(logits, best))
    given = make("where", rest, share, zero)
    if remainder == MEAN:
        return make("where", rest, _level(given, rest), share)
    levels = make("squeeze", _level(_in_blocks(given), _in_blocks(others)), axes=(4,))
    of_key = make("gather", levels, _block_of(dim(logits, 3)), axis=3)
    return make("add", make("where", rest, zero, share), make("where", others, of_key, zero))


def _clear(logits: Expr) -> Expr:
    """Return which keys are not faint."""
    return make("le", make("sub", peak(logits), const(FAINT)), logits)


def _left(logits: Expr, best: Expr) -> Expr:
    """Return which keys are not chosen."""
    zeros, ones = (make("expand", const(x), make("dim", like)) for x, like in ((0.0, logits), (1.0, best)))
    return make("eq", make("scatter", zeros, best, ones), const(0.0))


def _level(shares: Expr, among: Expr) -> Expr:
    """Return the sum of the shares along the last axis, by how many keys it is spread ``among``."""
    mass, size = (
        make("sum", x, axes=(-1,), keepdims=True) for x in (shares, make("cast", among, to=np.dtype(np.float32)))
    )
    return make("div", mass, make("max", size, const(1.0)))


def _block_of(t: Expr) -> Expr:
    """Return the number of each key's block [t]."""
    return make("div", count(t), const(BLOCK))


def _own_block(place: Expr, t: Expr) -> Expr:
    """Return which keys lie in the block in which a query stands: none where it stands outside of all."""
    start = make("mul", _block_of(t), const(BLOCK))
    return make("and", make("le", start, place), make("lt", place, make("add", start, const(BLOCK))))


def _in_blocks(x: Expr) -> Expr:
    """Return [b h s t] as [b h s n 64], zeros (false) behind the last key."""
    n = make("max", ceiling(dim(x, 3), const([BLOCK])), const([1]))
    more = make("sub", make("mul", n, const([BLOCK])), dim(x, 3))
    edge = make("concat", make("dim", x, start=0, end=3), more, axis=0)
    filler = make("expand", const(False if x.dtype == np.bool_ else 0.0), edge)
    return reshape(make("concat", x, filler, axis=3), [dim(x, 0), dim(x, 1), dim(x, 2), n, BLOCK])
