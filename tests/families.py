"""Model families of transformers, tiny and with random weights: a row per family and nothing else.

A row says which class, which configuration, which kind of inputs, and how many blocks are in it. ``exports.py``
makes an ONNX file of any row with any exporter; ``test_families.py`` and ``benchmarks/coverage.py`` read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Config = Mapping[str, object]
BOTH = ("eager", "sdpa")
EAGER = ("eager",)  # transformers has no other for this class


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: attention and feed_forward are the number of blocks that reading must find."""

    name: str
    model: str  # class of transformers
    config: Config
    inputs: str = "text"  # key of exports.INPUTS
    implementations: Sequence[str] = BOTH
    attention: int = 2
    feed_forward: int = 2


@dataclass(frozen=True, kw_only=True)
class Exporter:
    name: str  # "torchscript" | "dynamo"
    opset: int


EXPORTERS = (
    Exporter(name="torchscript", opset=14),
    Exporter(name="torchscript", opset=17),
    Exporter(name="dynamo", opset=18),
    Exporter(name="dynamo", opset=20),
    Exporter(name="dynamo", opset=23),
)
# Every combination is met by some family of the quick run, which exports each family once.
COMBINATIONS = tuple((exporter, implementation) for implementation in BOTH for exporter in EXPORTERS)

TEXT: Config = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: Config = {**TEXT, "num_key_value_heads": 2, "head_dim": 16}
IMAGE: Config = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
TRANSLATE: Config = {
    "vocab_size": 96,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5: Config = {
    "vocab_size": 96,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
WHISPER: Config = {**TRANSLATE, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64}
CLIP: Config = {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 32}
DEBERTA: Config = {
    **TEXT,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
    "max_relative_positions": 64,  # no length that is run is longer
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
XLNET: Config = {"vocab_size": 96, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}
SWIN: Config = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
SEGFORMER: Config = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [32, 64],
    "num_attention_heads": [2, 4],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "mlp_ratios": [2, 2],
}
SPEECH: Config = {
    **TEXT,
    "conv_dim": [32, 32],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def encoder(name: str, model: str, config: Config = TEXT, **more: object) -> Family:
    return Family(name=name, model=model, config=config, **more)  # type: ignore[arg-type]


def decoder(name: str, model: str, config: Config = TEXT, **more: object) -> tuple[Family, Family]:
    """Return the family without and with past keys and values."""
    bare = Family(name=name, model=model, config={**config, "use_cache": False}, **more)  # type: ignore[arg-type]
    past = Family(name=f"{name}-past", model=model, config=config, inputs="past", **more)  # type: ignore[arg-type]
    return bare, past


FAMILIES = (
    encoder("bert", "BertModel"),
    encoder("roberta", "RobertaModel"),
    encoder("distilbert", "DistilBertModel", {**TEXT, "hidden_dim": 128}),
    encoder("albert", "AlbertModel", {**TEXT, "embedding_size": 32}),
    encoder("electra", "ElectraModel", {**TEXT, "embedding_size": 32}),
    encoder("mpnet", "MPNetModel", implementations=EAGER),
    encoder("deberta", "DebertaModel", DEBERTA, implementations=EAGER),
    encoder("deberta-v2", "DebertaV2Model", DEBERTA, implementations=EAGER),
    encoder("modernbert", "ModernBertModel", {**TEXT, "global_attn_every_n_layers": 2, "local_attention": 8}),
    encoder("xlnet", "XLNetModel", XLNET, implementations=EAGER),
    *decoder("gpt2", "GPT2LMHeadModel"),
    *decoder("gpt-neox", "GPTNeoXForCausalLM"),
    *decoder("gptj", "GPTJForCausalLM", {**TEXT, "rotary_dim": 8}, implementations=EAGER),
    *decoder("gpt-bigcode", "GPTBigCodeForCausalLM"),
    *decoder("opt", "OPTForCausalLM", {**TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    *decoder("bloom", "BloomForCausalLM", {**TEXT, "n_head": 4}, implementations=EAGER),
    *decoder("falcon", "FalconForCausalLM", {**TEXT, "alibi": False}),
    *decoder("llama", "LlamaForCausalLM", GROUPED),
    *decoder("mistral", "MistralForCausalLM", {**GROUPED, "sliding_window": 6}),
    *decoder("qwen2", "Qwen2ForCausalLM", GROUPED),
    *decoder("qwen3", "Qwen3ForCausalLM", GROUPED),
    *decoder("phi", "PhiForCausalLM"),
    *decoder("phi3", "Phi3ForCausalLM", GROUPED),
    *decoder("stablelm", "StableLmForCausalLM", GROUPED),
    *decoder(
        "gemma2",
        "Gemma2ForCausalLM",
        {**GROUPED, "sliding_window": 6, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
        implementations=EAGER,
    ),
    *decoder("mpt", "MptForCausalLM", {**TEXT, "n_heads": 4}, implementations=EAGER),
    encoder("t5", "T5Model", T5, inputs="seq2seq", attention=6, feed_forward=4),
    encoder(
        "t5-gated", "T5Model", {**T5, "feed_forward_proj": "gated-gelu"}, inputs="seq2seq", attention=6, feed_forward=4
    ),
    encoder("bart", "BartModel", TRANSLATE, inputs="seq2seq", attention=6, feed_forward=4),
    encoder("marian", "MarianModel", TRANSLATE, inputs="seq2seq", attention=6, feed_forward=4),
    encoder("whisper", "WhisperModel", WHISPER, inputs="speech2text", attention=6, feed_forward=4),
    encoder("wav2vec2", "Wav2Vec2Model", SPEECH, inputs="wave"),
    encoder("vit", "ViTModel", IMAGE, inputs="image"),
    encoder("beit", "BeitModel", {**IMAGE, "use_relative_position_bias": True}, inputs="image"),
    encoder("dinov2", "Dinov2Model", {**IMAGE, "mlp_ratio": 2}, inputs="image"),
    encoder("swin", "SwinModel", SWIN, inputs="image", attention=4, feed_forward=4),
    encoder("segformer", "SegformerModel", SEGFORMER, inputs="image"),
    encoder("clip", "CLIPModel", CLIP, inputs="text+image", attention=4, feed_forward=4),
    encoder("siglip", "SiglipModel", CLIP, inputs="text+image", attention=5, feed_forward=5),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family as one exporter writes it."""

    family: Family
    exporter: Exporter
    implementation: str

    @property
    def name(self) -> str:
        return f"{self.family.name}-{self.exporter.name}-{self.exporter.opset}-{self.implementation}"


# Exporters that raise, by family: the quick run chooses another, the sweep tries them and says so.
RAISING: Mapping[str, str] = {
    "xlnet": "dynamo",
    "falcon": "dynamo-23-sdpa",
    "falcon-past": "dynamo-23-sdpa",
    "mpt-past": "dynamo",
}
# Feed-forward blocks that are not of the form product, activation, product, and the reason that each must be given.
UNREAD: Mapping[str, str] = {"segformer": "a depthwise Conv stands between its products and mixes neighbouring tokens"}
SWEEP = tuple(
    Case(family=family, exporter=exporter, implementation=implementation)
    for family in FAMILIES
    for exporter, implementation in COMBINATIONS
    if implementation in family.implementations
)


def _raises(case: Case) -> bool:
    raising = RAISING.get(case.family.name)
    return raising is not None and case.name.removeprefix(f"{case.family.name}-").startswith(raising)


def _quick() -> tuple[Case, ...]:
    """One case for each family; of those that it allows, the one met least often so far."""
    met = dict.fromkeys(COMBINATIONS, 0)
    chosen = []
    for family in FAMILIES:
        cases = [case for case in SWEEP if case.family is family and not _raises(case)]
        case = min(cases, key=lambda case: met[case.exporter, case.implementation])
        met[case.exporter, case.implementation] += 1
        chosen.append(case)
    return tuple(chosen)


QUICK = _quick()
