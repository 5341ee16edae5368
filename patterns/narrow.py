"""Tokens that are read: which of them an encoder's head chooses, and expressions made again for those alone.

Where every token is computed from itself alone (``patterns.tokens``), it is the same to choose tokens at the end and at
the beginning. Attention too treats its queries alone, once its keys and values are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patterns.scores import place
from patterns.site import AttentionSite, Unreadable
from patterns.tokens import POINTWISE, REDUCING, Tokens
from rewriter.hosts.base import Graphs
from rewriter.layout import Axis
from runtime_ops.dims import Dim, product
from runtime_ops.interpret import topological
from runtime_ops.words import Expr, const, make, reshape

_ALIGNED = POINTWISE | {"concat"}
_ALIKE = frozenset((*REDUCING, "softmax", "gather", "slice", "transpose", "unsqueeze", "squeeze"))
_CENTRED = {"LayerNormalization": True, "RMSNormalization": False, "SimplifiedLayerNormalization": False}


def chosen(graphs: Graphs, tokens: Tokens, after: Sequence[Expr]) -> Expr:
    """Return the gather of fixed tokens that alone reads what an encoder's last layer gives.

    Args:
        graphs: the model.
        tokens: what is known of the token axis.
        after: what depends on the tokens from the last attention's result on, in order.

    Raises:
        Unreadable: something else reads it, or all of it is the model's output.
    """
    found: Expr | None = None
    for expr in (e for e in after if id(e) in tokens.axes):
        if id(expr) in graphs.outputs:
            raise Unreadable("every token of the last layer is an output of the model", expr)
        for reader in graphs.readers(expr):
            if id(reader) in tokens.axes or reader is found:
                continue
            if found is not None or not _chooses(reader, tokens):
                raise Unreadable(f"{place(reader)} reads more than fixed tokens of the last layer", reader)
            found = reader
    if found is None:
        raise Unreadable("nothing chooses tokens after the last layer", after[0])
    return found


def _chooses(expr: Expr, tokens: Tokens) -> bool:
    fixed = expr.word == "gather" and expr.args[1].known is not None and expr.args[1].known.dtype.kind == "i"
    return fixed and expr.handle is not None and tokens.axis(expr.args[0]) == expr.attrs["axis"]


def narrowed(choice: Expr, below: Expr, layer: AttentionSite) -> Expr:
    """Return a chosen token's value with everything between ``below`` and it computed for chosen tokens alone.

    Args:
        choice: what ``chosen`` found.
        below: the hidden state [b t m] that the layer starts from.
        layer: the attention above it, whose keys and values stay as they are.

    Raises:
        Unreadable: something on the way cannot be made again.
    """
    ends, tokens = {id(below), id(layer.k.value), id(layer.v.value)}, Tokens()
    tokens.start(below, 1)
    order = topological(choice.args[0], lambda e: id(e) in ends or e.word == "dim")
    for expr in order:
        if id(expr) not in ends and expr.word != "dim":
            tokens.carry(expr)
    index = choice.args[1].known
    assert index is not None  # ``chosen`` looked
    again = _Narrower(tokens, below, index.reshape(-1))
    for expr in order:
        if id(expr) in tokens.axes and id(expr) not in ends:
            again.add(expr)
    where = const(np.arange(index.size).reshape(index.shape))
    return make("gather", again.made[id(choice.args[0])], where, axis=choice.attrs["axis"])


class _Narrower:
    """Expressions over all tokens, made again over ``which`` tokens."""

    def __init__(self, tokens: Tokens, below: Expr, which: np.ndarray) -> None:
        self.tokens, self.which, self.count = tokens, const(which), len(which)
        self.made = {id(below): make("gather", below, self.which, axis=1)}

    def add(self, expr: Expr) -> None:
        """Make an expression again whose arguments were.

        Raises:
            Unreadable: its word cannot be.
        """
        args = [self.made.get(id(a), a) for a in expr.args]
        if expr.word == "reshape":
            self.made[id(expr)] = reshape(args[0], self._lengths(expr))
        elif expr.word == "matmul" or expr.word in _ALIGNED:
            self.made[id(expr)] = make(expr.word, *(self._aligned(expr, a) for a in expr.args), **expr.attrs)
        elif expr.word in _ALIKE:
            self.made[id(expr)] = make(expr.word, *args, **expr.attrs)
        elif expr.word == "opaque" and expr.attrs["op"] in _CENTRED and "epsilon" in expr.attrs:
            self.made[id(expr)] = _norm(args, expr.attrs["epsilon"], _CENTRED[expr.attrs["op"]])
        else:
            met = expr.attrs["op"] if expr.word == "opaque" else expr.word
            raise Unreadable(f"{met} in the last layer cannot be made again for some tokens", expr)

    def _aligned(self, expr: Expr, arg: Expr) -> Expr:
        """Return an argument for the chosen tokens; one that no token reaches may differ by place, as masks do."""
        if id(arg) in self.made:
            return self.made[id(arg)]
        at = next(i for i, axis in enumerate(self.tokens.axes[id(expr)]) if any(a.letter == "t" for a in axis))
        from_the_end = (expr.rank or 0) - at
        if arg.shape is None:
            raise Unreadable("a shape in the last layer is not known", arg)
        if (expr.word == "matmul" and from_the_end <= 2) or len(arg.shape) < from_the_end:
            return arg
        if arg.shape[-from_the_end] == 1:
            return arg
        if self.tokens.axis(expr) is None:
            raise Unreadable("tokens of the last layer share an axis with others", expr)
        return make("gather", arg, self.which, axis=len(arg.shape) - from_the_end)

    def _lengths(self, expr: Expr) -> list[int]:
        """Return what a reshape makes of chosen tokens: at most one length that is not a number."""
        lengths = [self._length(axis, n) for axis, n in zip(self.tokens.axes[id(expr)], expr.shape or (), strict=True)]
        if lengths.count(-1) > 1:
            raise Unreadable("lengths in the last layer are not known", expr)
        return lengths

    def _length(self, axis: Axis, length: Dim) -> int:
        sizes: list[Dim] = [self.count if a.name == "t" else a.size for a in axis] if axis else [length]
        whole = product(sizes)
        return whole if isinstance(whole, int) else -1


def _norm(args: Sequence[Expr], epsilon: float, centred: bool) -> Expr:
    """Return a norm over as many of the last axes as its scale has."""
    x, scale, *bias = args
    over = tuple(range((x.rank or 0) - (scale.rank or 0), x.rank or 0))
    if centred:
        x = make("sub", x, make("mean", x, axes=over, keepdims=True))
    spread = make("mean", make("pow", x, const(2.0, x.dtype)), axes=over, keepdims=True)
    y = make("mul", make("div", x, make("sqrt", make("add", spread, const(epsilon, x.dtype)))), scale)
    return make("add", y, bias[0]) if bias else y
