"""Decoding step by step with a decoder's two files, and two decoders side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from rewriter import sessions
from rewriter.errors import GraftError
from rewriter.inputs import SIZES, Feeds, Signature
from rewriter.reading import Kept, State

_STEPS = 4  # tokens that are decoded after the beginning
PathLike = str | os.PathLike[str]


class Decoder:
    """A decoder's file without past and that with past, and what goes from a run to the next.

    Args:
        files: the two files.
        kept: what each run gives to the next.
        ours: whether our kernels are registered.
    """

    def __init__(self, files: Sequence[PathLike], kept: Sequence[State], ours: bool = True) -> None:
        self.first, self.later = (sessions.open_session(file, ours=ours) for file in files)
        self.kept = kept
        self.wanted = {x.name for x in self.later.get_inputs()} - {state.past for state in kept}
        self.state: Feeds = {}

    def begin(self, feeds: Feeds) -> Feeds:
        """Run the file without past; return its outputs, without what is kept."""
        names = [x.name for x in self.first.get_outputs()]
        out = dict(zip(names, sessions.run(self.first, feeds, names), strict=True))
        self.state = {state.past: out.pop(state.first) for state in self.kept}
        return out

    def step(self, feeds: Feeds) -> Feeds:
        """Run the file with past on what was kept; inputs that it does not have are left out."""
        given = {name: x for name, x in feeds.items() if name in self.wanted}
        names = [x.name for x in self.later.get_outputs()]
        out = dict(zip(names, sessions.run(self.later, {**given, **self.state}, names), strict=True))
        self.state.update({state.past: out.pop(state.later) for state in self.kept if state.later is not None})
        return out

    def spread(self, beams: int) -> None:
        """Give every row of the state to so many beams, side by side."""
        self.state = {name: np.repeat(x, beams, axis=0) for name, x in self.state.items()}

    def reorder(self, beams: np.ndarray) -> None:
        """Let each row go on from another one's state, as beam search does."""
        self.state.update({s.past: self.state[s.past][beams] for s in self.kept if s.later is not None})

    @property
    def bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(x.nbytes for x in self.state.values())


def distance(old: Sequence[PathLike], new: Sequence[PathLike], kept: Kept, signature: Signature) -> float:
    """Return the largest relative L2 error of an output while both go through the same tokens, also with two beams.

    Raises:
        GraftError: the original does not run on inputs that are made up for it.
    """
    one, two = Decoder(old, kept.old, ours=False), Decoder(new, kept.new)
    feeds = _runnable(one, signature)
    ids = next((i.name for i in signature.inputs if i.vocabulary is not None and i.name in one.wanted), None)
    if ids is None:
        raise GraftError("the file with past has no input for token ids that the file without past has too")
    return max(_apart(one, two, feeds, ids, beams) for beams in (1, 2))


def _apart(one: Decoder, two: Decoder, feeds: Feeds, ids: str, beams: int) -> float:
    errors = [_error(one.begin(feeds), two.begin(feeds))]
    for decoder in (one, two):
        decoder.spread(beams)
    # hidden states are shared by the beams of a sentence, everything else has a row for each
    later = {name: x if x.dtype.kind == "f" else np.repeat(x, beams, axis=0) for name, x in feeds.items()}
    for count in range(_STEPS):
        step = {**later, ids: np.roll(later[ids], (count + 1, count), axis=(1, 0))[:, :1]}
        errors.append(_error(one.step(step), two.step(step)))
    return max(errors)


def _runnable(decoder: Decoder, signature: Signature) -> Feeds:
    problem: GraftError | None = None
    for batch, length in SIZES:
        try:
            feeds = signature.feeds(signature.sizes({}, batch, length), 1, "ragged")
            decoder.begin(feeds)
        except GraftError as error:  # noqa: PERF203 - few sizes
            problem = problem or error
        else:
            return feeds
    assert problem is not None  # there are sizes
    raise problem


def _error(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    missing = sorted(set(a) ^ set(b))
    if missing:
        raise GraftError(f"output '{missing[0]}' is given by only one of the decoders")
    return max(float(np.linalg.norm(b[n] - x) / max(float(np.linalg.norm(x)), 1e-30)) for n, x in a.items())
