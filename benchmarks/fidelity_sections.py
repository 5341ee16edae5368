"""What the fidelity page measures, section by section: each gives rows of what was asked for and what it cost."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_models import Files, LongSentences, LongWindows, Sentences, Subject, Titles, Windows
from fidelity_pairs import Pairs
from fidelity_setup import Setup

import rewriter
from runtime_ops.ops.combiner_attention import VARIANTS
from runtime_ops.ops.remainder import REMAINDERS

Row = dict[str, Any]
KINDS: Mapping[str, Callable[[Setup], Subject]] = {
    "sentences": Sentences,
    "titles": Titles,
    "windows": Windows,
    "long sentences": LongSentences,
    "long windows": LongWindows,
}
UNGATED, GATED = ("preactivation", "magnitude"), ("contribution", "magnitude", "preactivation")
SELECTIONS = {"sentences": UNGATED, "titles": GATED, "windows": GATED}
NEURONS = {"sentences": 1536, "titles": 1024, "windows": 1536}
TOKENS = {"sentences": 512, "titles": 48, "windows": 512}  # that texts are cut to
FORMS = {
    "mean, counted": "pooling=mean,region_logit=counted",
    "max, counted": "pooling=max,region_logit=counted",
    "paper": "pooling=max,region_logit=paper",
}
SPANS = (64, 128, 256)  # beside the default


@dataclass(kw_only=True)
class Lab:
    """Where sections are measured.

    Attributes:
        setup: how.
        subjects: the models that were loaded.
        about: a sentence about every model and its sample, by its name in rows.
    """

    setup: Setup
    subjects: dict[str, Subject] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def subject(self, kind: str) -> Subject:
        """Return a model, loaded once."""
        if kind not in self.subjects:
            self.subjects[kind] = KINDS[kind](self.setup)
            self.about[self.subjects[kind].name] = self.subjects[kind].about
        return self.subjects[kind]

    def rows(self, kind: str, settings: Sequence[tuple[Row, str | None, str | None]]) -> list[Row]:
        """Return what each setting costs: (labels, rule, sites); without a rule it is the original."""
        subject, found = self.subject(kind), []
        for n, (labels, rule, sites) in enumerate(settings):
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=self.setup.folder) as scratch:
                made, changed = rewritten(subject.files, rule, sites, Path(scratch)) if rule else (subject.files, 0)
                row = {"model": subject.name, **labels, "sites": changed, **subject.score(made)}
            found.append(row)
            tell(f"[{n + 1}/{len(settings)}] {row}, {time.perf_counter() - begun:.0f} s")
        return found


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def rewritten(files: Files, rule: str, sites: str | None, folder: Path) -> tuple[Files, int]:
    """Return the files of a model with one rule applied, and how many sites that changed."""
    made, changed = {}, 0
    for part, path in files.items():
        made[part] = folder / f"{part}.onnx"
        report = rewriter.apply(path, (rule,), output=made[part], sites=sites, verify=False)
        if sites is None and report.rewritten < report.sites:
            raise SystemExit(f"{rule} does not take all of {path}: {report.declined[0].reason}")
        changed += report.rewritten
    return made, changed


def feed_forward(lab: Lab) -> Iterator[Row]:
    """Keep the k best neurons of every feed-forward block, by each selection."""
    for kind, selections in SELECTIONS.items():
        some = [k for k in (64, 128, 256, 512, 768, 1024) if k < NEURONS[kind]]
        some = some[1::2] if lab.setup.quick else some
        settings: list[Any] = [({"k": NEURONS[kind], "select_by": "–"}, None, None)]
        settings += [
            ({"k": k, "select_by": by}, f"topk-feed-forward:k={k},select_by={by}", None)
            for by in selections
            for k in some
        ]
        yield from lab.rows(kind, settings)


def attention(lab: Lab) -> Iterator[Row]:
    """Keep the k best keys of every query in every attention."""
    some = (8, 32, 128) if lab.setup.quick else (4, 8, 16, 32, 64, 128)
    for kind in SELECTIONS:
        settings: list[Any] = [({"k": TOKENS[kind]}, None, None)]
        settings += [({"k": k}, f"topk-attention:k={k}", None) for k in some]
        yield from lab.rows(kind, settings)


def remainder(lab: Lab) -> Iterator[Row]:
    """Keep the k best keys of every query in every attention, and by each way what the others weigh."""
    settings: list[Any] = [({"k": LongWindows.length, "remainder": "–"}, None, None)]
    settings += [
        ({"k": k, "remainder": way}, f"topk-attention:k={k},remainder={way}", None)
        for way in REMAINDERS
        for k in ((64,) if lab.setup.quick else (16, 64, 128))
    ]
    yield from lab.rows("long windows", settings)


def combiner(lab: Lab) -> Iterator[Row]:
    """Use Combiner in all layers: every variant, and longer spans."""
    ways = [(variant, 0, form) for variant in VARIANTS for form in ("mean, counted", "paper")]
    ways += [("fixed", 0, "max, counted")]
    ways += [("fixed", span, form) for span in SPANS for form in ("mean, counted", "paper")]
    for kind in ("long sentences", "windows"):
        settings: list[Any] = [({"variant": "dense", "span": "all", "form": "dense"}, None, None)]
        for variant, span, form in ways[:4] if lab.setup.quick else ways:
            rule = f"combiner-attention:variant={variant},span={span},{FORMS[form]}"
            settings.append(({"variant": variant, "span": span or "default", "form": form}, rule, None))
        yield from lab.rows(kind, settings)


def combiner_by_layer(lab: Lab) -> Iterator[Row]:
    """Use Combiner in one layer at a time; of many layers in every third."""
    for kind, layers in (("long sentences", range(6)), ("windows", (*range(0, 29, 3), 29))):
        settings: list[Any] = [({"layer": "none", "form": "dense"}, None, None)]
        settings += [
            ({"layer": n, "form": name}, f"combiner-attention:{FORMS[name]}", f"attention.{n}")
            for n in (layers[::4] if lab.setup.quick else layers)
            for name in ("mean, counted", "paper")
        ]
        yield from lab.rows(kind, settings)


def activity(lab: Lab, kinds: Iterable[str] = tuple(SELECTIONS)) -> Iterator[Row]:
    """Measure how many neurons are at work in each block."""
    for kind in kinds:
        subject = lab.subject(kind)
        for part, feeds in subject.feeds().items():
            with tempfile.TemporaryDirectory(dir=lab.setup.folder) as scratch:
                inputs = Path(scratch) / "inputs.npz"
                np.savez(inputs, **feeds)
                shown = rewriter.show(subject.files[part], inputs)
            blocks = [site.activity for site in shown.sites if site.activity]
            yield from ({"model": subject.name, "part": part, "block": n, **a.to_dict()} for n, a in enumerate(blocks))


def zero_shot(lab: Lab) -> Iterator[Row]:
    """Repeat the tests' table of Combiner's error on sequences of correlated tokens."""
    from test_combiner import ZERO_SHOT, zero_shot_errors

    yield from ({"correlation": correlation, **zero_shot_errors(correlation)} for correlation in ZERO_SHOT)


def encoders(lab: Lab) -> Iterator[Row]:
    """Decompose the lower layers of an encoder, on pairs of a question and a paragraph."""
    pairs = Pairs(lab.setup)
    lab.about[pairs.name] = pairs.about
    some = (3,) if lab.setup.quick else range(1, 7)
    for layers, positions in [(0, "keep"), *((n, p) for n in some for p in ("keep", "restart"))]:
        row = {"model": pairs.name, "layers": layers, "positions": positions, **pairs.score(layers, positions)}
        tell(str(row))
        yield row


SECTIONS: Mapping[str, Callable[[Lab], Iterator[Row]]] = {
    "feed-forward": feed_forward,
    "activity": activity,
    "attention": attention,
    "remainder": remainder,
    "combiner": combiner,
    "combiner-by-layer": combiner_by_layer,
    "zero-shot": zero_shot,
    "encoders": encoders,
}
