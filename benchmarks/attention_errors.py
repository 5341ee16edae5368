"""How far top-k attention is from exact top-k attention in fp64, on made and on captured queries and keys.

Errors are |out - golden| / |golden| over all compared queries, and of the worst of them. A query whose k-th and next
scores lie nearer to each other than fp32 can tell is left out and counted: either key is right there. Equal scores are
not left out: the first keys win.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from attention_systems import kernels
from fidelity_export import GGUF, LANGUAGE, SENTENCE, packaged, sentence_tokenizer
from fidelity_setup import read_texts

Array = np.ndarray[Any, Any]
SAMPLED = 256  # queries of every head that are compared


@dataclass(frozen=True, kw_only=True)
class Data:
    """q [1 h s d], k and v [1 g t d] of one layer."""

    q: Array
    k: Array
    v: Array
    causal: bool = False


def made(kind: str, t: int = 4096, h: int = 4, d: int = 64) -> Data:
    """Return data of one kind: gaussian, outlier (one channel of the keys 50 times the others) or ties."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, h, t, d), np.float32) for _ in range(3))
    if kind == "outlier":
        k[..., 5] *= 50
    if kind == "ties":  # whole numbers: products are exact, and no score is the only one of its value
        q, k = (np.rint(x) for x in (q, k[:, :, random.integers(t // 16, size=t)]))
    return Data(q=q, k=k, v=v)


def captured(model: Any, ids: Array, causal: bool) -> Iterator[Data]:
    """Run a transformers model on a text [t]; yields what every layer's attention was given."""
    import torch
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layers: list[Data] = []

    def keep(module: Any, q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> Any:
        layers.append(Data(q=q.numpy(), k=k.numpy(), v=v.numpy(), causal=causal))
        return sdpa_attention_forward(module, q, k, v, *rest, **more)

    AttentionInterface.register("kept", keep)
    model.set_attn_implementation("kept")
    with torch.inference_mode():
        model.eval()(torch.from_numpy(ids)[None])
    yield from layers


def of_minilm(data: Path | None) -> Iterator[Data]:
    """Yield the layers of MiniLM on 512 tokens of prose."""
    from transformers import AutoModel

    words = sentence_tokenizer().encode(read_texts(data).prose[:10000], add_special_tokens=False).ids
    ids = np.array([101, *words[:510], 102])
    yield from captured(AutoModel.from_pretrained(packaged(*SENTENCE)), ids, causal=False)


def of_smollm2(data: Path | None) -> Iterator[Data]:
    """Yield the layers of SmolLM2 on 2,048 tokens of prose."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packaged(*LANGUAGE), gguf_file=GGUF)
    ids = np.array(tokenizer(read_texts(data).prose[:20000])["input_ids"][:2048])
    model = AutoModelForCausalLM.from_pretrained(packaged(*LANGUAGE), gguf_file=GGUF, dtype="float32")
    yield from captured(model, ids, causal=True)


def scores64(x: Data, head: int, rows: Array) -> Array:
    """fp64 scores [rows t] of one query head, -inf where causality hides a key."""
    q, k = x.q[0, head, rows], x.k[0, head * x.k.shape[1] // x.q.shape[1]]
    scores = q.astype(np.float64) @ k.T.astype(np.float64) * q.shape[1] ** -0.5
    return np.where(np.arange(len(k)) <= rows[:, None], scores, -np.inf) if x.causal else scores


def best(scores: Array, k: int) -> tuple[Array, Array]:
    """Return which scores are the k best of their row, the first of equal ones, and whether fp32 can tell."""
    kth, after = -np.partition(-scores, (k - 1, k), axis=1)[:, [k - 1, k]].T
    above, equal = scores > kth[:, None], scores == kth[:, None]
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= k - above.sum(axis=1, keepdims=True)))
    size = np.abs(np.where(np.isfinite(scores), scores, 0.0)).max(axis=1)
    with np.errstate(invalid="ignore"):  # rows that see fewer keys than k
        clear = (kth - after > 2e-6 * size) | (kth == after)
    return chosen & np.isfinite(scores), clear


def golden_rows(x: Data, k: int, head: int, rows: Array) -> tuple[Array, Array]:
    """Return fp64 outputs [rows e] of some queries of a head, and whether fp32 can tell their k best keys."""
    scores = scores64(x, head, rows)
    chosen, clear = best(scores, k)
    weights = np.exp(np.where(chosen, scores - scores.max(axis=1, keepdims=True), -np.inf))
    v = x.v[0, head * x.v.shape[1] // x.q.shape[1]].astype(np.float64)
    return weights / weights.sum(axis=1, keepdims=True) @ v, clear


def error_of(x: Data, k: int, isa: str) -> dict[str, Any]:
    """Return the errors of one kernel on the data, and how often scores in 8 bits proved its selection."""
    before = kernels.topk_proofs()
    out = kernels.run_topk_attention(x.q, x.k, x.v, k_top=k, causal=x.causal, isa=isa)
    proofs = {name: count - before[name] for name, count in kernels.topk_proofs().items()}
    rows = np.unique(np.linspace(0, x.q.shape[2] - 1, SAMPLED).astype(int))
    heads = [golden_rows(x, k, head, rows) for head in range(x.q.shape[1])]
    golden, clear = (np.concatenate(part) for part in zip(*heads, strict=True))
    missed, length = (np.linalg.norm(y[clear], axis=1) for y in (np.concatenate(out[0][:, rows]) - golden, golden))
    total = float(np.linalg.norm(missed) / np.linalg.norm(length))
    return {"error": total, "worst": float((missed / length).max()), "left_out": int((~clear).sum()), "proofs": proofs}


def errors(k: int, data: Path | None) -> list[dict[str, Any]]:
    """Measure every kernel of this machine on every kind of data; of several layers, the worst."""
    isas = [row["isa"] for row in kernels.kernels() if row["op"] == "TopKAttention" and row["usable"]]
    sources: Mapping[str, Any] = {
        **{kind: partial(lambda kind: iter([made(kind)]), kind) for kind in ("gaussian", "outlier", "ties")},
        "MiniLM": partial(of_minilm, data),
        "SmolLM2": partial(of_smollm2, data),
    }
    rows = []
    for name, layers in sources.items():
        found = [{isa: error_of(x, k, isa) for isa in isas} for x in layers()]
        for isa in isas:
            each = [layer[isa] for layer in found]
            proofs = {key: sum(one["proofs"][key] for one in each) for key in each[0]["proofs"]}
            row = {"data": name, "isa": isa, "k": k, "layers": len(each)}
            row |= {key: max(one[key] for one in each) for key in ("error", "worst")}
            row |= {"left_out": sum(one["left_out"] for one in each), "proofs": proofs if proofs["blocks"] else None}
            rows.append(row)
    return rows
