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
SDPA = ("sdpa",)  # the other is spelled like one of the rows that have both


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
# Families of the quick run are exported once each; all of these combinations are met among them.
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

EXPERTS: Config = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
LATENT: Config = {
    **TEXT,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "first_k_dense_replace": 2,
}
FUNNEL: Config = {
    "vocab_size": 96,
    "block_sizes": [1, 1],
    "num_decoder_layers": 0,
    "d_model": 64,
    "n_head": 4,
    "d_head": 16,
    "d_inner": 128,
}
PERCEIVER: Config = {
    "num_latents": 10,
    "d_latents": 64,
    "d_model": 48,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 4,
}
XLM: Config = {
    "vocab_size": 96,
    "emb_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MOBILE: Config = {**TEXT, "embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2}
PROPHET: Config = {
    "vocab_size": 96,
    "hidden_size": 64,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "ngram": 2,
    "num_buckets": 8,
    "relative_max_distance": 16,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
SPEECHT5: Config = {
    **SPEECH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": 2,
    "encoder_max_relative_position": 8,
    "max_speech_positions": 400,
    "max_text_positions": 64,
}
SAM: Config = {**IMAGE, "output_channels": 16, "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 32}
RESNET: Config = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "out_features": ["stage2"],
}
DETR: Config = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "num_queries": 5,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone_config": RESNET,
}
LEVIT: Config = {
    "image_size": 32,
    "hidden_sizes": [32, 48, 64],
    "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1],
    "key_dim": [16, 16, 16],
    "patch_size": 16,
    "mlp_ratio": [2, 2, 2],
    "attention_ratio": [2, 2, 2],
    "kernel_size": 3,
    "stride": 2,
    "padding": 1,
}
PVT: Config = {
    "image_size": 32,
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sequence_reduction_ratios": [2, 1],
    "hidden_sizes": [32, 64],
    "num_attention_heads": [2, 4],
    "patch_sizes": [4, 2],
    "strides": [4, 2],
    "mlp_ratios": [2, 2],
}


def encoder(name: str, model: str, config: Config = TEXT, **more: object) -> Family:
    return Family(name=name, model=model, config=config, **more)  # type: ignore[arg-type]


def decoder(name: str, model: str, config: Config = TEXT, **more: object) -> tuple[Family, Family]:
    """Return the family without and with past keys and values."""
    bare = Family(name=name, model=model, config={**config, "use_cache": False}, **more)  # type: ignore[arg-type]
    past = Family(name=f"{name}-past", model=model, config=config, inputs="past", **more)  # type: ignore[arg-type]
    return bare, past


# Not here, because no exporter writes them so that ONNX Runtime runs them: Falcon with ALiBi (arithmetic in bfloat16),
# Reformer, Nyströmformer and the block-sparse BigBird (lengths that depend on data). Mask2Former asks for scipy.
# What every run exports.
CORE = (
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
# What the sweep exports too.
MORE = (
    # decoders; [1:] is the family with past keys and values only
    *decoder("gpt-oss", "GptOssForCausalLM", {**GROUPED, "sliding_window": 6, **EXPERTS}, implementations=EAGER),
    *decoder("cohere", "CohereForCausalLM", {**GROUPED, "use_qk_norm": True}, implementations=SDPA),
    *decoder("olmo2", "Olmo2ForCausalLM", GROUPED, implementations=SDPA)[1:],
    *decoder(
        "gemma3",
        "Gemma3ForCausalLM",
        {**GROUPED, "sliding_window": 6, "query_pre_attn_scalar": 16},
        implementations=SDPA,
    ),
    *decoder("granite", "GraniteForCausalLM", {**GROUPED, "attention_multiplier": 0.3}, implementations=SDPA)[1:],
    *decoder("smollm3", "SmolLM3ForCausalLM", {**GROUPED, "no_rope_layers": [1, 0]}, implementations=SDPA)[1:],
    *decoder("mixtral", "MixtralForCausalLM", {**GROUPED, **EXPERTS}, implementations=SDPA),
    *decoder("nemotron", "NemotronForCausalLM", GROUPED, implementations=SDPA)[1:],
    *decoder("deepseek-v3", "DeepseekV3ForCausalLM", LATENT, implementations=SDPA),
    *decoder(
        "gpt-neo",
        "GPTNeoForCausalLM",
        {**TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6},
        implementations=EAGER,
    ),
    *decoder(
        "codegen",
        "CodeGenForCausalLM",
        {**TEXT, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "rotary_dim": 8},
        implementations=EAGER,
    )[1:],
    *decoder(
        "xglm",
        "XGLMForCausalLM",
        {**TEXT, "d_model": 64, "attention_heads": 4, "num_layers": 2, "ffn_dim": 128},
        implementations=EAGER,
    )[1:],
    *decoder("starcoder2", "Starcoder2ForCausalLM", {**GROUPED, "sliding_window": 6}, implementations=SDPA)[1:],
    *decoder("persimmon", "PersimmonForCausalLM", implementations=SDPA)[1:],
    # encoders
    encoder(
        "longformer",
        "LongformerModel",
        {**TEXT, "attention_window": 8, "max_position_embeddings": 80},
        implementations=EAGER,
    ),
    encoder("funnel", "FunnelModel", FUNNEL, implementations=EAGER),
    encoder("big-bird", "BigBirdModel", {**TEXT, "attention_type": "original_full"}, implementations=EAGER),
    encoder("convbert", "ConvBertModel", {**TEXT, "embedding_size": 64}, implementations=EAGER),
    encoder("fnet", "FNetModel", inputs="ids", attention=0, implementations=EAGER),
    encoder(
        "perceiver", "PerceiverModel", PERCEIVER, inputs="perceiver", attention=3, feed_forward=3, implementations=EAGER
    ),
    encoder("layoutlm", "LayoutLMModel", TEXT, implementations=EAGER),
    encoder(
        "canine",
        "CanineModel",
        {**TEXT, "local_transformer_stride": 64, "num_hash_buckets": 32},
        attention=4,
        feed_forward=4,
        implementations=EAGER,
    ),
    encoder("esm", "EsmModel", {**TEXT, "position_embedding_type": "rotary", "mask_token_id": 3}, implementations=SDPA),
    encoder("roformer", "RoFormerModel", implementations=EAGER),
    encoder("xlm", "XLMModel", XLM, implementations=EAGER),
    encoder("mobilebert", "MobileBertModel", MOBILE, feed_forward=4, implementations=SDPA),
    encoder("squeezebert", "SqueezeBertModel", {**TEXT, "embedding_size": 64}, implementations=EAGER),
    # encoder and decoder
    encoder("pegasus", "PegasusModel", TRANSLATE, inputs="seq2seq", attention=6, feed_forward=4, implementations=SDPA),
    encoder("mbart", "MBartModel", TRANSLATE, inputs="seq2seq", attention=6, feed_forward=4, implementations=SDPA),
    encoder("m2m100", "M2M100Model", TRANSLATE, inputs="seq2seq", attention=6, feed_forward=4, implementations=SDPA),
    encoder(
        "led",
        "LEDModel",
        {
            **TRANSLATE,
            "attention_window": 8,
            "max_encoder_position_embeddings": 80,
            "max_decoder_position_embeddings": 64,
        },
        inputs="seq2seq",
        attention=6,
        feed_forward=4,
        implementations=EAGER,
    ),
    encoder(
        "prophetnet", "ProphetNetModel", PROPHET, inputs="seq2seq", attention=8, feed_forward=4, implementations=EAGER
    ),
    encoder(
        "umt5",
        "UMT5Model",
        {**T5, "num_decoder_layers": 2},
        inputs="seq2seq",
        attention=6,
        feed_forward=4,
        implementations=SDPA,
    ),
    # speech
    encoder(
        "wav2vec2-conformer",
        "Wav2Vec2ConformerModel",
        {**SPEECH, "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 7},
        inputs="wave",
        feed_forward=4,
        implementations=EAGER,
    ),
    encoder("hubert", "HubertModel", SPEECH, inputs="wave", implementations=SDPA),
    encoder("wavlm", "WavLMModel", SPEECH, inputs="wave", implementations=EAGER),
    encoder(
        "speecht5",
        "SpeechT5ForSpeechToText",
        SPEECHT5,
        inputs="wave2text",
        attention=6,
        feed_forward=4,
        implementations=EAGER,
    ),
    encoder(
        "musicgen-decoder",
        "MusicgenForCausalLM",
        {**TEXT, "ffn_dim": 128, "num_codebooks": 2},
        inputs="ids",
        implementations=SDPA,
    ),
    # images
    encoder("dpt", "DPTModel", IMAGE, inputs="image", implementations=SDPA),
    encoder("sam-encoder", "SamVisionModel", SAM, inputs="image", implementations=SDPA),
    encoder("detr", "DetrModel", DETR, inputs="image", attention=6, feed_forward=4, implementations=EAGER),
    encoder("blip", "BlipModel", CLIP, inputs="text+image", attention=4, feed_forward=4, implementations=EAGER),
    encoder("owlvit", "OwlViTModel", CLIP, inputs="text+image", attention=4, feed_forward=4, implementations=SDPA),
    encoder("swinv2", "Swinv2Model", SWIN, inputs="image", attention=4, feed_forward=4, implementations=EAGER),
    encoder("levit", "LevitModel", LEVIT, inputs="image", attention=5, feed_forward=5, implementations=EAGER),
    encoder("pvt", "PvtModel", PVT, inputs="image", implementations=EAGER),
    # decoders that reuse the keys and values of both attentions
    encoder("t5-past", "T5ForConditionalGeneration", T5, inputs="decode", attention=4, implementations=SDPA),
    encoder("bart-past", "BartForConditionalGeneration", TRANSLATE, inputs="decode", attention=4, implementations=SDPA),
    encoder(
        "whisper-past",
        "WhisperForConditionalGeneration",
        WHISPER,
        inputs="decode-speech",
        attention=4,
        implementations=SDPA,
    ),
)
FAMILIES = (*CORE, *MORE)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family as one exporter writes it."""

    family: Family
    exporter: Exporter
    implementation: str

    @property
    def name(self) -> str:
        return f"{self.family.name}-{self.exporter.name}-{self.exporter.opset}-{self.implementation}"


# Exporters that raise, or whose files do not run: the quick run chooses another, the sweep tries them and says so.
RAISING: Mapping[str, str] = {
    "xlnet": "dynamo",
    "falcon": "dynamo-23-sdpa",
    "falcon-past": "dynamo-23-sdpa",
    "mpt-past": "dynamo",
    "cohere": "torchscript",
    "cohere-past": "torchscript",
    "longformer": "dynamo",
    "led": "dynamo",
    "prophetnet": "dynamo",
    "fnet": "torchscript",
    "canine": "torchscript",
    "gpt-neo-past": "dynamo",
    "xglm-past": "dynamo",
}
# Feed-forward blocks that are not of the form product, activation, product, and words of the reason that is given.
EXPERTS = "a mixture of experts"
UNREAD: Mapping[str, str] = {
    "segformer": "a depthwise Conv stands between its products and mixes neighbouring tokens",
    "squeezebert": "convolutions in 4 groups",
    "levit": "a BatchNormalization stands between its products",
    "gpt-oss": EXPERTS,
    "gpt-oss-past": EXPERTS,
    "mixtral": EXPERTS,
    "mixtral-past": EXPERTS,
}
# Declines of what looks like a feed-forward block and is none, and words of the reason.
BESIDE: Mapping[str, str] = {
    "blip": "tanh stands between its products",  # a pooler before a projection
    "convbert": "two linear results meet between its products",  # query times convolved key, then the kernel's weights
}
# Attention that reading declines, by the start of a case's name: how many blocks, and words of the reason.
DECLINED: Mapping[str, tuple[int, str]] = {
    "gpt-oss": (2, "more than the keys"),  # a learned sink beside them
    "longformer": (2, "go into Where"),  # windows cut out of blocks: the probabilities are masked once more
    "led": (4, "go into Where"),  # and its keys for cross-attention are padded to whole blocks
    "swinv2-torchscript": (2, "cannot be brought to"),  # the number of windows is computed in the graph
}
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
    """One case for each family at the core and for each with a decline; of those that it allows, the one met least."""
    met = dict.fromkeys(COMBINATIONS, 0)
    chosen = []
    for family in (*CORE, *(family for family in MORE if family.name in (*UNREAD, *DECLINED))):
        cases = [case for case in SWEEP if case.family is family and not _raises(case)]
        case = min(cases, key=lambda case: met[case.exporter, case.implementation])
        met[case.exporter, case.implementation] += 1
        chosen.append(case)
    return tuple(chosen)


QUICK = _quick()
