"""Decoding step by step with a decoder's files, and two decoders side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewriter import inputs, sessions
from rewriter.errors import GraftError
from rewriter.inputs import SIZES, Feeds, Signature
from rewriter.reading import State

_STEPS = 4  # tokens that are decoded after the beginning
PathLike = str | os.PathLike[str]


class Decoder:
    """A decoder's files, and what goes from a run to the next: a file without past and one with, or one that is both.

    Args:
        files: the two files, or the one.
        kept: what each run gives to the next.
        switch: the input of a file that is both by which it is told whether there is a past.
        ours: whether our kernels are registered.
        optimize: how far ONNX Runtime may rewrite the graph.
    """

    def __init__(
        self,
        files: Sequence[PathLike],
        kept: Sequence[State],
        switch: str | None = None,
        *,
        ours: bool = True,
        optimize: str = "all",
    ) -> None:
        opened = [sessions.open_session(file, ours=ours, optimize=optimize) for file in files]
        self.first, self.later = opened[0], opened[-1]
        self.kept, self.switch = kept, switch
        self.wanted = {x.name for x in self.later.get_inputs()} - {state.past for state in kept} - {switch}
        self.state: Feeds = {}

    def begin(self, feeds: Feeds) -> Feeds:
        """Run without past; return the outputs, without what is kept."""
        out = self._run(self.first, {**feeds, **self._nothing(len(next(iter(feeds.values()))))}, past=False)
        self.state = {state.past: out.pop(state.first) for state in self.kept}
        return out

    def step(self, feeds: Feeds) -> Feeds:
        """Run on what was kept; inputs that are not read then are left out."""
        given = {name: x for name, x in feeds.items() if name in self.wanted}
        out = self._run(self.later, {**given, **self.state}, past=True)
        for state in self.kept:
            if state.later is not None:
                self.state[state.past] = out.pop(state.later)
            else:
                out.pop(state.first, None)  # a file that is both gives it, empty
        return out

    def _run(self, session: Any, feeds: Feeds, past: bool) -> Feeds:
        told = {} if self.switch is None else {self.switch: np.array([past])}
        names = [x.name for x in session.get_outputs()]
        return dict(zip(names, sessions.run(session, {**feeds, **told}, names), strict=True))

    def _nothing(self, batch: int) -> Feeds:
        """Return an empty past, which a file that is both takes all the same."""
        pasts = {state.past for state in self.kept} if self.switch is not None else set()
        shapes = {x.name: x.shape for x in self.first.get_inputs() if x.name in pasts}
        free = {name: [n if isinstance(n, int) else 0 for n in shape[1:]] for name, shape in shapes.items()}
        return {name: np.zeros((batch, *rest), np.float32) for name, rest in free.items()}

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


def distance(one: Decoder, two: Decoder, feeds: Feeds, ids: str) -> float:
    """Return the largest relative L2 error of an output while both go through the same tokens, also with two beams.

    Args:
        one: the reference.
        two: what is compared with it.
        feeds: the inputs of the first run.
        ids: which of them is the tokens.
    """
    return max(_apart(one, two, feeds, ids, beams) for beams in (1, 2))


def noise(one: Decoder, files: Sequence[PathLike], feeds: Feeds, ids: str) -> float:
    """Return how far the original is from itself when ONNX Runtime computes it in another order."""
    levels = sessions.LESS_OPTIMIZED
    return max(
        distance(one, Decoder(files, one.kept, one.switch, ours=False, optimize=level), feeds, ids) for level in levels
    )


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


def beginning(decoder: Decoder, signature: Signature, file: PathLike | None) -> tuple[Feeds, str]:
    """Return the inputs of a first run, from an .npz file or made up, and which of them is the tokens.

    Raises:
        GraftError: the decoder does not run on inputs that are made up for it, or the file does not fit.
    """
    ids = next((i.name for i in signature.inputs if i.vocabulary is not None and i.name in decoder.wanted), None)
    if ids is None:
        raise GraftError("with a past, the decoder has no input for token ids that it has without one too")
    return (_runnable(decoder, signature) if file is None else inputs.load(file, signature)), ids


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
