"""Token by token: whether a part of a graph computes every token from that token alone.

A layout is carried forward from the embeddings through every expression. Attention is the one place where tokens may
meet; anything else that joins, reduces, reorders or multiplies along the token axis stops the proof and is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from patterns.site import AttentionSite, Unreadable
from rewriter import layout
from rewriter.layout import Atom, Axes
from runtime_ops.words import Expr

POINTWISE = frozenset((
    "add", "sub", "mul", "div", "pow", "max", "min", "lt", "le", "eq", "and", "or", "not", "neg", "exp", "log", "sqrt",
    "tanh", "erf", "floor", "where", "sigmoid", "relu", "cast",
))  # fmt: skip
REDUCING = ("sum", "mean", "amax")
# Opaque operators that treat every element alone; dynamic quantisation takes one scale over all tokens, which moves
# values by less than its rounding.
_ELEMENTWISE_OPS = frozenset((
    "Clip", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Elu", "LeakyRelu", "HardSwish", "HardSigmoid", "Mish",
    "Swish", "Softplus", "Softsign", "Sin", "Cos", "Abs", "Round", "Ceil", "Sign", "CastLike", "QuantizeLinear",
    "DequantizeLinear", "DynamicQuantizeLinear",
))  # fmt: skip
# Opaque norms by the place of their scale, whose rank says how many of the last axes are normalised together.
_NORMS = {
    "LayerNormalization": 1,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "SkipLayerNormalization": 2,
    "SkipSimplifiedLayerNormalization": 2,
}


class Tokens:
    """Layouts of everything that depends on the tokens, by expression; filled in the order of the graph."""

    def __init__(self) -> None:
        self.axes: dict[int, Axes] = {}

    def start(self, expr: Expr, axis: int) -> None:
        """Say that an axis of ``expr`` is the token axis."""
        shape = expr.shape or ()
        self.axes[id(expr)] = tuple(
            (Atom("t", d),) if i == axis else layout.atom(f"x{i}", d) for i, d in enumerate(shape)
        )

    def axis(self, expr: Expr) -> int | None:
        """Return which axis of ``expr`` is the token axis and nothing else, None if there is no such axis."""
        found = [i for i, axis in enumerate(self.axes.get(id(expr), ())) if [a.name for a in axis] == ["t"]]
        return found[0] if len(found) == 1 else None

    def attention(self, site: AttentionSite) -> None:
        """Carry the token axis over an attention.

        Raises:
            Unreadable: its queries, keys or values do not have it.
        """
        for operand, letter in ((site.q, "s"), (site.k, "t"), (site.v, "t")):
            axis = self.axis(operand.value)
            if axis is None or [a.letter for a in operand.axes[axis]] != [letter]:
                raise Unreadable("attention is not over the tokens of this input", operand.value)
        places = [i for i, axis in enumerate(site.out.axes) if [a.letter for a in axis] == ["s"]]
        if len(places) != 1:
            raise Unreadable("the result of attention has no axis for the tokens alone", site.out.value)
        self.start(site.out.value, places[0])

    def carry(self, expr: Expr) -> None:
        """Work out the layout of an expression from those of its arguments.

        Raises:
            Unreadable: tokens meet here.
        """
        axes = [self.axes.get(id(a)) for a in expr.args]
        if not any(axes):
            return
        found = self._of_word(expr, axes)
        if found is None:
            met = expr.attrs["op"] if expr.word == "opaque" else expr.word
            raise Unreadable(f"{met} may let tokens meet outside attention", expr)
        self.axes[id(expr)] = found

    def _of_word(self, expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
        if expr.shape is None:
            return None
        if expr.word in POINTWISE or (expr.word == "opaque" and expr.attrs["op"] in _ELEMENTWISE_OPS):
            return () if expr.shape == () else _broadcast(expr, axes)
        return _WORDS[expr.word](expr, axes) if expr.word in _WORDS else None


def _broadcast(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    """Return the layout of a pointwise result: tokens stand at one place, counted from the last axis."""
    rank = len(expr.shape or ())
    out: list[layout.Axis] = [layout.atom(f"x{i}", d) for i, d in enumerate(expr.shape or ())]
    placed: dict[int, layout.Axis] = {}
    for one in axes:
        for i, axis in enumerate(one or ()):
            if _has_tokens(axis):
                placed[rank - len(one or ()) + i] = axis
    if len(placed) > 1:
        return None
    for i, axis in placed.items():
        out[i] = axis
    return tuple(out)


def _has_tokens(axis: layout.Axis) -> bool:
    return any(a.letter == "t" for a in axis)


def _view(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    return None if axes[0] is None else layout.forward(expr, axes[0])


def _expanded(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    return _broadcast(expr, axes[:1])


def _reduced(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    inner, rank = axes[0] or (), len(axes[0] or ())
    gone = {a % rank for a in expr.attrs["axes"] or range(rank)}
    if any(_has_tokens(inner[i]) for i in gone):
        return None
    if expr.attrs.get("keepdims", True):
        return tuple(() if i in gone else axis for i, axis in enumerate(inner))
    return tuple(axis for i, axis in enumerate(inner) if i not in gone)


def _softmax(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    inner = axes[0] or ()
    return None if _has_tokens(inner[expr.attrs["axis"]]) else inner


def _product(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    """Multiply by something that no token reaches, over an axis that holds no tokens."""
    left, right = axes
    if left is not None and right is not None:
        return None
    inner = left or right or ()
    if len(inner) != len(expr.shape or ()) or _has_tokens(inner[-1 if left is not None else -2]):
        return None
    fresh = layout.atom("n", (expr.shape or (1,))[-1 if left is not None else -2])
    return (*inner[:-1], fresh) if left is not None else (*inner[:-2], fresh, inner[-1])


def _gathered(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    """Look up rows of a table by tokens, or choose along an axis that holds no tokens."""
    x, which = axes
    table, index = expr.args
    if table.shape is None or index.shape is None or (x is not None and which is not None):
        return None
    at = expr.attrs["axis"] % len(table.shape)
    rest = x or tuple(layout.atom(f"y{i}", d) for i, d in enumerate(table.shape))
    chosen = which or tuple(layout.atom(f"z{i}", d) for i, d in enumerate(index.shape))
    return None if _has_tokens(rest[at]) else (*rest[:at], *chosen, *rest[at + 1 :])


def _sliced(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    inner, cut = axes[0], expr.args[3].known
    if inner is None or cut is None or any(_has_tokens(inner[int(a)]) for a in cut.reshape(-1)):
        return None
    return tuple(
        layout.atom(f"c{i}", (expr.shape or ())[i]) if i in {int(a) % len(inner) for a in cut.reshape(-1)} else axis
        for i, axis in enumerate(inner)
    )


def _joined(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    found, at = _broadcast(expr, axes), expr.attrs["axis"]
    return None if found is None or _has_tokens(found[at]) else found


def _opaque(expr: Expr, axes: Sequence[Axes | None]) -> Axes | None:
    place = _NORMS.get(expr.attrs["op"])
    if place is None or len(expr.args) <= place:
        return None
    found, together = _broadcast(expr, axes), expr.args[place].rank
    if found is None or not together or any(_has_tokens(axis) for axis in found[-together:]):
        return None
    return found


_WORDS: Mapping[str, Callable[[Expr, Sequence[Axes | None]], Axes | None]] = {
    **dict.fromkeys(("reshape", "transpose", "unsqueeze", "squeeze"), _view),
    **dict.fromkeys(REDUCING, _reduced),
    "expand": _expanded,
    "softmax": _softmax,
    "matmul": _product,
    "gather": _gathered,
    "slice": _sliced,
    "concat": _joined,
    "opaque": _opaque,
}
