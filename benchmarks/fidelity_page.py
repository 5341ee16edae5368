"""Writes the fidelity page and its plots from the results of benchmarks/fidelity.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
RESULTS = Path(__file__).parent / "results"
MARK = "<!-- Written by benchmarks/fidelity.py from benchmarks/results/fidelity.json. -->"
INTRO = """What an approximation costs on real models, as they come from the package index, without any training.
Everything is measured with graft itself: `rewriter.apply` writes a model, `runtime_ops.session` runs it with our
kernels, and what it answers is compared with the original's answers. Where k covers all neurons or keys, or a span all
tokens, the numbers are the original's; the tests and `graft apply` prove that for every rewrite."""
DEFORMER = """`examples/deformer`: {layers} layers of 6 of MiniLM apart; 8 paragraphs scored for each of {questions}
questions. {steps} steps (rate {rate:g}, KD {weights[1]:g}, LRS {weights[2]:g}), {cpu_seconds} s on one core. Choices
and decisions as the teacher's, right choices, the scores' error; {back:.0%} of the choices that changed come back."""
COMBINER = """`examples/combiner`: a tiny language model, dense for {steps} steps, made Combiner (`{variant}`) and
fine-tuned for {more} beside the dense one trained on for as long: loss on unseen text."""
REMAINDER = """Without a remainder, as in the paper, softmax goes over the k chosen keys; with one, over all visible
keys. The mass of those not chosen goes with *mean* to the mean of their values; with *blocks*, in every block of 64
keys, to the mean of the block's visible values, the chosen ones among them; the query's own block stays exact."""
PERCENT = ("found", "same", "titles", "place", "positive")


def write(results: Mapping[str, Any], docs: Path) -> None:
    """Write the page and the plots of what was measured."""
    parts = ["# Fidelity", MARK, INTRO, summary(results), "## Models and texts", _models(results), _settings(results)]
    for name, (title, body) in SECTIONS.items():
        if name in results:
            parts += [f"## {title}", *body(results[name], docs)]
    parts += ["## Trained back", *trained()]
    (docs / "fidelity.md").write_text("\n\n".join(part for part in parts if part) + "\n", "utf-8")


def trained() -> list[str]:
    """Return what training gives back, as the two examples last measured it."""
    names = ("distillation", "combiner_finetuning")
    lesson, tuned = (json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in names)
    deformer = DEFORMER.format(**{**lesson, **lesson["settings"]})
    shares = ("agreement", "decisions", "right")
    rows = [[name, *(f"{row[x]:.0%}" for x in shares), f"{row['rel_l2']:.2f}"] for name, row in lesson["rows"].items()]
    losses = [[name, f"{loss:.4f}"] for name, loss in tuned["rows"].items()]
    heads = ["", "choices", "decisions", "right", "rel L2"]
    return [deformer, table(heads, rows), COMBINER.format(**tuned["settings"]), table(["", "loss"], losses)]


def _settings(results: Mapping[str, Any]) -> str:
    """Return with what it was measured; a set of sections with the same settings is told once."""
    told: dict[str, list[str]] = {}
    for name, section in results.items():
        packages = ", ".join(f"{package} {version}" for package, version in section["packages"].items())
        how = f"Texts: {section['texts']}. Software: {packages}; {section['machine']}, fp32."
        told.setdefault(how + (" Quick settings, few texts." if section["quick"] else ""), []).append(name)
    whole = len(told) == 1
    return "\n\n".join(how if whole else f"{how} Sections: {', '.join(names)}." for how, names in told.items())


def _models(results: Mapping[str, Any]) -> str:
    """Return the list of models, samples and what is measured on them."""
    told = {model: text for section in results.values() for model, text in section["about"].items()}
    return "\n".join(f"* **{model}**: {text}." for model, text in told.items())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, the first column left, the others right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(name: str, value: float | None) -> str:
    """Return a measured number as the page shows it."""
    if value is None:
        return "–"
    if name in PERCENT:
        return f"{100 * value:.1f} %"
    if name == "perplexity":
        return f"{value:.2f}" if value < 1000 else f"{value:.0f}"
    return f"{value:.4f}"


def scores(row: Row, labels: Sequence[str]) -> list[str]:
    """Return the names of what was measured in a row."""
    return [name for name in row if name not in ("model", "sites", *labels)]


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows by model, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def plain(title: str, rows: Sequence[Row], labels: Sequence[str]) -> str:
    """Return one table with a line per row."""
    names = scores(rows[0], labels)
    lines = [[*(_label(row, x) for x in labels), *(number(name, row[name]) for name in names)] for row in rows]
    return f"**{title}**\n\n{table([*labels, *names], lines)}"


def _label(row: Row, name: str) -> str:
    return "all" if name == "k" and not row["sites"] else str(row[name])


def smallest(rows: Sequence[Row], labels: Mapping[str, Any]) -> int | None:
    """Return the k from which on a model is within one percent of the original, which is the first row."""
    original, rest = rows[0], [row for row in rows[1:] if all(row[x] == y for x, y in labels.items())]
    good = [row["k"] for row in rest if _near(row, original)]
    return min((k for k in good if all(row["k"] < k or _near(row, original) for row in rest)), default=None)


def _near(row: Row, original: Row) -> bool:
    if "perplexity" in row:
        return bool(row["perplexity"] <= 1.01 * original["perplexity"])
    return bool(row["cosine"] >= 0.99)


def _said(rows: Sequence[Row], labels: Mapping[str, Any]) -> str:
    k = smallest(rows, labels)
    return "none of these" if k is None else f"k = {k}"


def summary(results: Mapping[str, Any]) -> str:
    """Return what is enough for each model, in one table."""
    lines: list[list[str]] = []
    models: list[str] = []
    for name, by in (("feed-forward", "select_by"), ("attention", None)):
        found = by_model(results.get(name, {"rows": []})["rows"])
        models, line = models or list(found), [f"top-k {name}"]
        for rows in found.values():
            kinds = list(dict.fromkeys(row[by] for row in rows[1:])) if by else [None]
            ks = {kind: k for kind in kinds if (k := smallest(rows, {by: kind} if by else {})) is not None}
            best = min(ks, key=lambda kind: ks[kind], default=None)
            line.append("–" if not ks else f"{ks[best]} of {rows[0]['k']}" + (f" ({best})" if best else ""))
        lines += [line] if found else []
    text = "Enough for a mean cosine of 0.99, for SmolLM2 for a perplexity within 1 %, of the k that were tried:"
    return f"{text}\n\n{table(['', *models], lines)}" if lines else ""


def plot(path: Path, panels: Sequence[Mapping[str, Any]]) -> str:
    """Draw panels side by side, each with a title, names of its axes and lines of points by name."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "graft", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        for name, points in panel["lines"].items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name)
        if panel.get("level") is not None:
            axis.axhline(panel["level"], color="black", linewidth=0.8, linestyle=":")
        if panel.get("logarithmic", True):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        axis.set(title=panel["title"], xlabel=panel["x"], ylabel=panel["y"], yscale=panel.get("scale", "linear"))
        if panel.get("limit") is not None:
            axis.set_ylim(*panel["limit"])
        if len(panel["lines"]) > 1:
            axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return f"![{path.stem}]({path.name})"


def sweep(name: str, x: str, by: str | None, *texts: str) -> Callable[[Mapping[str, Any], Path], list[str]]:
    """Return the body of a section that sweeps k: what there is to say, a table and a panel per model."""

    def body(section: Mapping[str, Any], docs: Path) -> list[str]:
        parts, panels = list(texts), []
        for model, rows in by_model(section["rows"]).items():
            labels = ["k", *([by] if by else [])]
            kinds = list(dict.fromkeys(row[by] for row in rows[1:])) if by else [None]
            said = [f"{kind + ': ' if kind else ''}{_said(rows, {by: kind} if by else {})}" for kind in kinds]
            what = "perplexity within 1 %" if "perplexity" in rows[0] else "a mean cosine of 0.99 or more"
            parts += [plain(model, rows, labels), f"Smallest k with {what}: {'; '.join(said)}."]
            panels.append(_panel(model, rows, x, by, kinds))
        return [*parts, plot(docs / f"fidelity-{name}.svg", panels)]

    return body


def _panel(model: str, rows: Sequence[Row], x: str, by: str | None, kinds: Sequence[str | None]) -> dict[str, Any]:
    y = "perplexity" if "perplexity" in rows[0] else "cosine"
    lines = {kind or y: [(row["k"], row[y]) for row in rows[1:] if by is None or row[by] == kind] for kind in kinds}
    level = rows[0][y]
    limit = (0.98 * level, 2 * level) if y == "perplexity" else None
    return {"title": model, "x": x, "y": y, "lines": lines, "level": level, "limit": limit}


def activity(section: Mapping[str, Any], docs: Path) -> list[str]:
    """Return how many neurons are at work, a line per part of a model."""
    del docs
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in section["rows"]:
        parts.setdefault((row["model"], row["part"]), []).append(row)
    lines = []
    for (model, part), rows in parts.items():
        name = model if part == "model" else f"{model}, {part}"
        shares = [_range([row["largest"][x]["median"] for row in rows]) for x in rows[0]["largest"]]
        positive = [round(100 * row["positive"]) for row in rows if row["positive"] is not None]
        told = [_range(positive) + " %" if positive else "–", _range([row["nonzero"]["median"] for row in rows])]
        lines.append([name, str(len(rows)), str(rows[0]["tokens"]), *told, *shares])
    of = [f"{100 * float(share):g} %" for share in section["rows"][0]["largest"]]
    heads = ["model", "blocks", "tokens", "positive", "not zero", *of]
    text = (
        "`graft show MODEL --inputs F.npz` measures it for every block. From the block with the fewest to the block "
        "with the most: the share of neurons that are positive; how many are not zero; how many of the largest hold "
        "99 % and 99.9 % of the sum of squares of a token (medians over tokens). With ReLU the neurons that are not "
        "zero are the k that loses nothing; GELU and SiLU leave hardly any at zero: begin with the last columns."
    )
    return [text, table(heads, lines)]


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}"


def combiner(section: Mapping[str, Any], docs: Path) -> list[str]:
    """Return all layers at once, a table per model."""
    del docs
    text = (
        "Combiner in all layers at once, which trained weights do not bear: it is meant to be trained with, or for "
        "single layers (next section). Form *paper* pools by the maximum and gives a region the logit of one key; "
        "*counted* adds the logarithm of its number of tokens; *mean* pools by the mean (the rule's default). At "
        "512 tokens the default span is 32 for `fixed` and 22, the side of a square, for `axial`; `logsparse` has none."
    )
    parts = [text]
    for model, rows in by_model(section["rows"]).items():
        parts.append(plain(model, rows, ["variant", "span", "form"]))
    return parts


def by_layer(section: Mapping[str, Any], docs: Path) -> list[str]:
    """Return one layer at a time: a table and a panel per model."""
    parts, panels = (
        ["`fixed`, spans of 32 of 512 tokens, in one layer, all others dense; of SmolLM2 every third layer."],
        [],
    )
    for model, rows in by_model(section["rows"]).items():
        names = scores(rows[0], ["layer", "form"])
        dense, *rest = rows
        forms = list(dict.fromkeys(row["form"] for row in rest))
        cells = {(row["layer"], row["form"]): row for row in rest}
        layers = sorted({row["layer"] for row in rest})
        heads = ["layer", *(f"{name}, {form}" for form in forms for name in names)]
        lines = [["none", *(number(x, dense[x]) for _ in forms for x in names)]]
        lines += [[str(n), *(number(x, cells[n, form][x]) for form in forms for x in names)] for n in layers]
        parts.append(f"**{model}**\n\n{table(heads, lines)}")
        y = names[0]
        made = {form: [(n, cells[n, form][y]) for n in layers] for form in forms}
        panels.append({"title": model, "x": "layer", "y": y, "lines": made, "level": dense[y], "logarithmic": False})
    return [*parts, plot(docs / "fidelity-combiner.svg", panels)]


def zero_shot(section: Mapping[str, Any], docs: Path) -> list[str]:
    """Return the table of synthetic sequences."""
    del docs
    text = (
        "Relative error of the output of one attention (8 heads of width 64, 512 tokens, spans of 32, every query sees "
        "every key) on random sequences whose neighbouring tokens are correlated, mean of four draws. The tests hold "
        "these numbers to 10 %."
    )
    heads = list(section["rows"][0])
    return [text, table(heads, [[f"{row[x]:.2f}" for x in heads] for row in section["rows"]])]


def encoders(section: Mapping[str, Any], docs: Path) -> list[str]:
    """Return how near a decomposed encoder is, by K and positions."""
    rows = section["rows"]
    names = scores(rows[0], ["layers", "positions"])
    lines = {p: {row["layers"]: row for row in rows if row["positions"] == p} for p in ("keep", "restart")}
    made = [
        {"title": name, "x": "K", "y": name, "logarithmic": False,
         "lines": {p: [(k, row[name]) for k, row in found.items()] for p, found in lines.items()}}
        for name in names
    ]  # fmt: skip
    told = plain("K layers apart, by positions of the paragraph", rows, ["layers", "positions"])
    text = (
        "`graft split` without any training. *keep*: the paragraph stands behind the padded question, as in the model; "
        "*restart*: it starts at position 0, as in the paper. This model was trained on single texts and not on pairs: "
        "a paragraph by itself at position 0 is what it knows best. `rewriter.distill` gives back what is lost."
    )
    return [text, told, plot(docs / "fidelity-encoders.svg", made)]


SECTIONS: Mapping[str, tuple[str, Callable[[Mapping[str, Any], Path], list[str]]]] = {
    "feed-forward": ("Top-k feed-forward", sweep("feed-forward", "neurons per token", "select_by")),
    "activity": ("Which k to begin with", activity),
    "attention": ("Top-k attention", sweep("attention", "keys per query", None)),
    "remainder": ("What the other keys weigh", sweep("remainder", "keys per query", "remainder", REMAINDER)),
    "combiner": ("Combiner, all layers", combiner),
    "combiner-by-layer": ("Combiner, layer by layer", by_layer),
    "zero-shot": ("Combiner on sequences made up", zero_shot),
    "encoders": ("Decomposed encoders", encoders),
}
