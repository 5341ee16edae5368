"""Models of transformers on our attention: same numbers as on eager attention, in forward, generation and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers, an extra of the tests")

from runtime_ops import torch_ops, transformers_attention  # noqa: E402

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


def llama(**rest: Any) -> Any:
    config = transformers.LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, pad_token_id=0, **rest)
    return transformers.LlamaForCausalLM(config)


def mistral() -> Any:
    config = transformers.MistralConfig(
        **SMALL, intermediate_size=48, num_key_value_heads=2, sliding_window=4, pad_token_id=0
    )
    return transformers.MistralForCausalLM(config)


def gemma2() -> Any:
    config = transformers.Gemma2Config(
        **SMALL, intermediate_size=48, num_key_value_heads=1, head_dim=8, sliding_window=4, query_pre_attn_scalar=8,
        attn_logit_softcapping=3.0, pad_token_id=0,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_head=4, n_layer=2, n_positions=64, bos_token_id=1,
                                     eos_token_id=2, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert() -> Any:
    config = transformers.BertConfig(**SMALL, intermediate_size=48, attention_probs_dropout_prob=0.0,
                                     hidden_dropout_prob=0.0)  # fmt: skip
    return transformers.BertForMaskedLM(config)


def t5() -> Any:
    config = transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                                   dropout_rate=0.0, decoder_start_token_id=0)  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


MODELS = {f.__name__: f for f in (llama, mistral, gemma2, gpt2, bert, t5)}
WRITERS = [name for name in MODELS if name != "bert"]


@pytest.fixture(autouse=True)
def registered() -> None:
    transformers_attention.register()


def made(name: str, attention: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.set_attn_implementation(attention)
    for p in model.parameters():  # the usual small start would make every attention the mean
        p.data.mul_(1 if name == "t5" else 3)  # T5 starts wide: it does not scale its scores
    return model


def feeds(name: str, padding: str) -> dict[str, Any]:
    ids = torch.randint(3, 99, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding == "left":
        mask[1, :4] = 0
    if padding == "right":
        mask[1, -4:] = 0
    more = {"decoder_input_ids": ids[:, :5]} if name == "t5" else {}
    return {"input_ids": ids, **({} if padding == "none" else {"attention_mask": mask}), **more}


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_exact_is_eager(name: str, padding: str) -> None:
    inputs = feeds(name, padding)
    with torch.no_grad():
        expected, found = (made(name, at)(**inputs).logits for at in ("eager", "graft_exact"))
    live = inputs.get("attention_mask")
    if live is not None and name != "t5":  # rows of padding see no key: what they say means nothing
        expected, found = expected[live.bool()], found[live.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", WRITERS)
def test_generation(name: str, cache: str | None) -> None:
    if cache and name == "t5":
        pytest.skip("transformers gives T5 no static cache of its encoder's length here")
    inputs = {k: v for k, v in feeds(name, "left").items() if not k.startswith("decoder")}
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "cache_implementation": cache}
    expected, found = (made(name, at).generate(**inputs, **settings) for at in ("eager", "graft_exact"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_training(name: str) -> None:
    gradients = []
    for attention in ("eager", "graft_exact", "graft_topk"):
        model = made(name, attention).train()
        model.config.graft_k = 32  # more than there are keys: top-k is exact as well
        inputs = feeds(name, "right")
        labels = inputs.get("decoder_input_ids", inputs["input_ids"]).contiguous()
        model(**inputs, labels=labels).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for found in gradients[1:]:
        for expected, grad in zip(gradients[0], found, strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", MODELS)
def test_top_k_is_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = torch_ops.topk_attention

    def spy(*args: Any, k_top: int, **rest: Any) -> Any:
        asked.append(k_top)
        return real(*args, k_top=k_top, **rest)

    monkeypatch.setattr(transformers_attention, "topk_attention", spy)
    model = made(name, "graft_topk")
    with torch.no_grad():
        default = model(**feeds(name, "none")).logits
        assert set(asked) == {64}
        asked.clear()
        for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
            config.graft_k = 2
        few = model(**feeds(name, "none")).logits
    assert set(asked) == {2}
    assert not torch.allclose(default, few, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_remainder_with_every_key_chosen_is_exact(name: str) -> None:
    """What is asked for arrives: with as many keys as there are nothing is left, and one block keeps every key."""
    logits = {}
    for k, remainder in ((32, "none"), (32, "blocks"), (2, "none"), (2, "mean"), (2, "blocks")):
        model = made(name, "graft_topk")
        for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
            config.graft_k, config.graft_remainder = k, remainder
        with torch.no_grad():
            logits[k, remainder] = model(**feeds(name, "none")).logits
    torch.testing.assert_close(logits[32, "blocks"], logits[32, "none"])
    assert not torch.allclose(logits[2, "mean"], logits[2, "none"], atol=1e-3)
    torch.testing.assert_close(logits[2, "blocks"], logits[32, "none"], rtol=1e-3, atol=1e-3)


def test_a_step_stands_at_the_end_of_what_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means by block need the place of a query even where nothing is hidden from it."""
    places: list[Any] = []
    real = torch_ops.topk_attention

    def spy(q: Any, k: Any, *rest: Any, **options: Any) -> Any:
        place = rest[3]
        places.append((0 if place is None else int(place), q.shape[2], k.shape[2]))
        return real(q, k, *rest, **options)

    monkeypatch.setattr(transformers_attention, "topk_attention", spy)
    model = made("llama", "graft_topk")
    model.config.graft_remainder = "blocks"
    with torch.no_grad():
        model.generate(**feeds("llama", "none"), max_new_tokens=3, pad_token_id=0)
    assert {s for _, s, _ in places} == {1, 11}
    assert all(place == t - s for place, s, t in places)


def test_padding_needs_no_mask_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = torch_ops.topk_attention

    def spy(q: Any, k: Any, v: Any, bias: Any, *rest: Any, **options: Any) -> Any:
        seen.append(bias)
        return real(q, k, v, bias, *rest, **options)

    monkeypatch.setattr(transformers_attention, "topk_attention", spy)
    for padding in ("none", "left"):
        with torch.no_grad():
            made("llama", "graft_topk").generate(**feeds("llama", padding), max_new_tokens=3, pad_token_id=0)
    assert seen
    assert all(bias is None for bias in seen)


def test_dropout_in_training() -> None:
    model = llama(attention_dropout=0.5)
    model.set_attn_implementation("graft_topk")
    ids = feeds("llama", "none")
    first, second = (model.train()(**ids).logits for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval()(**ids).logits for _ in range(2))
    assert torch.equal(first, second)


def test_sinks_are_refused() -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="attention sinks"):
        transformers_attention.attend_exact(None, x, x, x, None, s_aux=torch.zeros(1))
