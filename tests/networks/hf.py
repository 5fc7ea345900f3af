"""Networks of the ``transformers`` package from small random configurations.

Two layers each, with sizes that differ from one another; ``transformers`` is imported when one is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .zoo import Inputs, Network, Unavailable

Sizes = dict[str, Any]
Draw = Callable[[], Tensor]


def words(batch: int = 2, length: int = 7) -> Draw:
    """Token ids; the first three are kept for padding, begin and end."""
    return lambda: torch.randint(3, 99, (batch, length))


def normal(*shape: int) -> Draw:
    return lambda: torch.randn(shape)


def ones(*shape: int) -> Draw:
    return lambda: torch.ones(shape, dtype=torch.long)


def given(**draws: Draw) -> Inputs:
    return lambda: ((), {name: draw() for name, draw in draws.items()})


def build(model: str, sizes: Sizes) -> nn.Module:
    """The model of this class name, from its own configuration class."""
    try:
        import transformers
    except ImportError as error:
        raise Unavailable("transformers is not installed") from error
    kind = getattr(transformers, model, None)
    if kind is None:
        raise Unavailable(f"transformers {transformers.__version__} has no {model}")
    try:
        return kind(kind.config_class(**sizes))
    except ImportError as error:  # an optional package that this model alone needs
        raise Unavailable(f"{model}: {str(error).strip().splitlines()[0]}") from error


NETWORKS: list[Network] = []


def add(models: str, inputs: Inputs, *defaults: Sizes, variant: str = "", **sizes: Any) -> None:
    """Enter classes of one configuration; a name is the class's without its task."""
    merged: Sizes = {}
    for default in (*defaults, sizes):
        merged |= default
    for model in models.split():
        name = re.sub(r"(LMHead|MT)?Model$|(?<=.)For[A-Z]\w+$|ModelWith\w+$", "", model).lower()
        name = f"hf_{name}_{variant}" if variant else f"hf_{name}"
        NETWORKS.append(Network(name, lambda model=model: build(model, merged), inputs))


EAGER: Sizes = {"attn_implementation": "eager"}
LABELS: Sizes = {"num_labels": 5}
SPECIAL: Sizes = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 99}
BLOCK: Sizes = {"hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 6}
TEXT: Sizes = SPECIAL | BLOCK | {"max_position_embeddings": 40}
DECODER: Sizes = TEXT | {"use_cache": False}
SHARED: Sizes = DECODER | {"num_key_value_heads": 2}
IDS = given(input_ids=words())
MASKED = given(input_ids=words(), attention_mask=ones(2, 7))
PAIR = given(input_ids=words(2, 9), decoder_input_ids=words(2, 7))

# -- decoders ------------------------------------------------------------------------------------

add(
    "LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Starcoder2ForCausalLM CohereForCausalLM",
    IDS,
    SHARED,
)
add("Cohere2ForCausalLM OlmoForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM GraniteForCausalLM", IDS, SHARED)
add("StableLmForCausalLM PhiForCausalLM Phi3ForCausalLM SmolLM3ForCausalLM DiffLlamaForCausalLM", IDS, SHARED)
add(
    "ArceeForCausalLM ApertusForCausalLM NemotronForCausalLM Exaone4ForCausalLM BitNetForCausalLM",
    IDS,
    SHARED,
)
add("HeliumForCausalLM", IDS, SHARED, head_dim=8)
add("Qwen3ForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM", IDS, SHARED, head_dim=10)
add("GlmForCausalLM Glm4ForCausalLM HunYuanDenseV1ForCausalLM", IDS, SHARED, head_dim=10)
add("Ernie4_5ForCausalLM SeedOssForCausalLM", IDS, SHARED, head_dim=10)
add("NanoChatForCausalLM PersimmonForCausalLM GPTNeoXForCausalLM BioGptForCausalLM", IDS, DECODER)
add("LlamaForCausalLM", MASKED, SHARED, EAGER, variant="eager_masked")
XGLM: Sizes = {"d_model": 48, "ffn_dim": 88, "num_layers": 2, "attention_heads": 6}
add("XGLMForCausalLM", IDS, SPECIAL, XGLM, max_position_embeddings=40, use_cache=False)
GPT: Sizes = SPECIAL | {"n_positions": 40, "n_embd": 48, "n_layer": 2, "n_head": 4, "use_cache": False}
add("GPT2LMHeadModel GPTJForCausalLM CodeGenForCausalLM", IDS, GPT, n_inner=88, rotary_dim=6, n_ctx=40)
add("GPTBigCodeForCausalLM", IDS, GPT, n_inner=88)
add("OpenAIGPTLMHeadModel", IDS, GPT)
add("CTRLLMHeadModel", IDS, GPT, dff=88)
add("BloomForCausalLM", IDS, DECODER, n_layer=2, n_head=6)
add("MptForCausalLM", IDS, SPECIAL, d_model=48, n_layers=2, n_heads=6, max_seq_len=40, use_cache=False)
add("FalconForCausalLM", IDS, DECODER, ffn_hidden_size=88)
add("FalconForCausalLM", IDS, DECODER, new_decoder_architecture=True, num_kv_heads=2, variant="grouped")
add("OPTForCausalLM", IDS, DECODER, ffn_dim=88, word_embed_proj_dim=40)
LOCAL: Sizes = {"num_layers": 2, "num_heads": 6, "attention_types": [[["global", "local"], 1]]}
add("GPTNeoForCausalLM", IDS, DECODER, LOCAL, window_size=4)
EXPERTS: Sizes = SHARED | {"experts_implementation": "batched_mm", "moe_intermediate_size": 56}
EXPERTS |= {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2}
add("MixtralForCausalLM Qwen3MoeForCausalLM OlmoeForCausalLM GraniteMoeForCausalLM", IDS, EXPERTS)
add("Qwen2MoeForCausalLM", IDS, EXPERTS, shared_expert_intermediate_size=60)
add("GptOssForCausalLM", IDS, EXPERTS, head_dim=10, sliding_window=4)
LATENT: Sizes = {"q_lora_rank": 20, "kv_lora_rank": 14, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6}
LATENT |= {"v_head_dim": 9, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_key_value_heads": 6}
LATENT |= {"num_local_experts": 4, "num_experts": 4}
add("DeepseekV2ForCausalLM DeepseekV3ForCausalLM", IDS, EXPERTS, LATENT, first_k_dense_replace=1)
SCAN: Sizes = TEXT | {"state_size": 7, "time_step_rank": 5, "expand": 2, "use_cache": False}
add("MambaForCausalLM FalconMambaForCausalLM", IDS, SCAN)
add("Mamba2ForCausalLM", IDS, SCAN, num_heads=6, head_dim=16, n_groups=2, chunk_size=4)
add("RwkvForCausalLM", IDS, TEXT, attention_hidden_size=40, context_length=40, use_cache=False)
add("RecurrentGemmaForCausalLM", IDS, SHARED, lru_width=54, head_dim=8, num_hidden_layers=3)
add("Lfm2ForCausalLM", IDS, SHARED, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)

# -- encoders ------------------------------------------------------------------------------------

ENCODER: Sizes = TEXT | {"mask_token_id": 3, "channel_shrink_ratio": 2, "max_2d_position_embeddings": 30}
add("BertModel RobertaForMaskedLM CamembertModel XLMRobertaModel RobertaPreLayerNormModel", IDS, ENCODER)
add("MPNetModel DebertaModel DebertaV2Model ErnieModel MegatronBertModel Data2VecTextModel", IDS, ENCODER)
add("SplinterModel LayoutLMModel IBertModel FNetModel EsmModel LiltModel", IDS, ENCODER)
add("BertForMaskedLM", IDS, TEXT, variant="lm")
add("BertForSequenceClassification", MASKED, TEXT, EAGER, LABELS, variant="eager_masked")
RELATIVE: Sizes = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 9}
add("DebertaV2ForSequenceClassification", MASKED, TEXT, RELATIVE, LABELS, variant="relative")
add("AlbertModel ElectraForPreTraining RoFormerModel", IDS, TEXT, embedding_size=28)
add("RemBertModel", IDS, TEXT, input_embedding_size=28, output_embedding_size=36)
add("ConvBertModel", IDS, TEXT, embedding_size=28, head_ratio=2, conv_kernel_size=3)
GROUPED: Sizes = {f"{part}_groups": 2 for part in ("q", "k", "v", "intermediate", "output")}
add("SqueezeBertModel", IDS, TEXT, GROUPED, embedding_size=48)
MOBILE_BERT: Sizes = {"embedding_size": 28, "intra_bottleneck_size": 36, "true_hidden_size": 36}
add("MobileBertModel", IDS, TEXT, MOBILE_BERT, num_feedforward_networks=2)
add("NystromformerModel", IDS, TEXT, num_landmarks=7, segment_means_seq_len=7)
DISTIL: Sizes = {"dim": 48, "hidden_dim": 88, "n_layers": 2, "n_heads": 6, "max_position_embeddings": 40}
add("DistilBertForSequenceClassification", IDS, SPECIAL, DISTIL, LABELS)
XLM: Sizes = {"n_words": 99, "emb_dim": 48, "n_layers": 2, "n_heads": 6, "max_position_embeddings": 40}
add("XLMModel", IDS, SPECIAL, XLM, use_cache=False)
add("XLNetModel", IDS, SPECIAL, d_model=48, d_inner=88, n_layer=2, n_head=6)
FUNNEL: Sizes = {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 48, "d_inner": 88}
add("FunnelModel", IDS, FUNNEL, vocab_size=99, n_head=6, d_head=9)
add("ModernBertModel", IDS, TEXT, local_attention=4)
add("EuroBertModel", IDS, SHARED)
READER: Sizes = {"d_model": 26, "num_latents": 5, "d_latents": 48, "num_self_attends_per_block": 2}
READER |= {"num_blocks": 1, "num_self_attention_heads": 6, "num_cross_attention_heads": 2}
add("PerceiverModel", given(inputs=normal(2, 9, 26)), READER)

# -- encoders with decoders ----------------------------------------------------------------------

T5: Sizes = {"vocab_size": 99, "d_model": 48, "d_kv": 9, "d_ff": 88, "num_layers": 2, "num_heads": 6}
T5 |= {"use_cache": False, "decoder_start_token_id": 0, "relative_attention_num_buckets": 8}
add("T5ForConditionalGeneration MT5ForConditionalGeneration UMT5Model", PAIR, T5)
GATED: Sizes = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
add("T5ForConditionalGeneration", PAIR, T5, GATED, variant="gated")
PAIR_MASKED = given(input_ids=words(2, 9), attention_mask=ones(2, 9), decoder_input_ids=words(2, 7))
add("LongT5Model", PAIR_MASKED, T5, local_radius=4)
BART: Sizes = SPECIAL | {"d_model": 48, "max_position_embeddings": 40, "use_cache": False}
BART |= {"encoder_layers": 2, "decoder_layers": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}
BART |= {"encoder_attention_heads": 6, "decoder_attention_heads": 4}
BART |= {"encoder_ffn_dim": 88, "decoder_ffn_dim": 76}
add("BartForConditionalGeneration MBartForConditionalGeneration PegasusForConditionalGeneration", PAIR, BART)
add("MarianMTModel BlenderbotModel BlenderbotSmallModel M2M100Model PLBartModel MvpModel", PAIR, BART)
HEARD: Sizes = BART | {"num_mel_bins": 14, "max_source_positions": 15, "max_target_positions": 20}
SOUND = given(input_features=normal(2, 14, 30), decoder_input_ids=words(2, 7))
add("WhisperForConditionalGeneration", SOUND, HEARD, suppress_tokens=None)
SPEECH = given(input_features=normal(2, 30, 14), decoder_input_ids=words(2, 7))
add("Speech2TextModel", SPEECH, HEARD, input_feat_per_channel=14, conv_channels=36)

# -- images --------------------------------------------------------------------------------------

PIXELS = given(pixel_values=normal(2, 3, 32, 32))
WIDE = given(pixel_values=normal(2, 3, 64, 64))
PATCHES: Sizes = BLOCK | LABELS | {"image_size": 32, "patch_size": 8, "projection_dim": 36}
add("ViTForImageClassification DeiTForImageClassification BeitForImageClassification", PIXELS, PATCHES)
add(
    "Data2VecVisionModel Dinov2ForImageClassification Dinov2WithRegistersModel DINOv3ViTModel",
    PIXELS,
    PATCHES,
)
add("ViTMSNModel IJepaModel SiglipVisionModel CLIPVisionModelWithProjection", PIXELS, PATCHES)
add("Aimv2VisionModel VitDetModel", PIXELS, PATCHES)
add("ViTModel", PIXELS, PATCHES, EAGER, variant="eager")
BIASED: Sizes = {"use_relative_position_bias": True, "layer_scale_init_value": 0.5}
add("BeitModel", PIXELS, PATCHES, BIASED, variant="relative")
add("YolosForObjectDetection", PIXELS, PATCHES | {"image_size": [32, 32]}, num_detection_tokens=5)
FRAMES = given(pixel_values=normal(2, 4, 3, 16, 16))
add("TimesformerModel", FRAMES, BLOCK, image_size=16, patch_size=8, num_frames=4)
add("VivitModel", FRAMES, BLOCK, image_size=16, tubelet_size=[2, 8, 8], num_frames=4)
WINDOWS: Sizes = {"image_size": 64, "patch_size": 4, "depths": [2, 2], "window_size": 4}
add("SwinForImageClassification Swinv2Model", WIDE, WINDOWS, embed_dim=24, num_heads=[3, 6])
STAGES: Sizes = LABELS | {"embedding_size": 12, "hidden_sizes": [16, 24, 36, 40], "depths": [1, 2, 1, 1]}
add("ConvNextForImageClassification ConvNextV2Model", PIXELS, STAGES, layer_scale_init_value=0.5)
add("ResNetForImageClassification", PIXELS, STAGES, layer_type="basic")
add("ResNetModel", PIXELS, STAGES, layer_type="bottleneck", variant="bottleneck")
add("RegNetForImageClassification", PIXELS, STAGES, groups_width=4)
add("RegNetModel", PIXELS, STAGES, groups_width=4, layer_type="x", variant="x")
add("BitModel", PIXELS, STAGES, layer_type="preactivation", num_groups=4)
THIN: Sizes = LABELS | {"depth_multiplier": 0.25, "min_depth": 8}
add("MobileNetV1ForImageClassification MobileNetV2ForImageClassification", PIXELS, THIN)
NARROW: Sizes = LABELS | {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320}
add("EfficientNetForImageClassification", PIXELS, NARROW, image_size=32)
PYRAMID: Sizes = LABELS | {"hidden_sizes": [16, 24, 36, 40], "depths": [1, 1, 1, 1]}
PYRAMID |= {"num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 28, "mlp_ratios": [2, 2, 2, 2]}
add("SegformerForSemanticSegmentation GLPNModel", WIDE, PYRAMID)
add("PvtModel PvtV2Model", WIDE, PYRAMID, image_size=64)
add("PoolFormerForImageClassification", WIDE, PYRAMID, mlp_ratio=2.0)
LEVIT: Sizes = {"hidden_sizes": [24, 36, 40], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]}
add("LevitForImageClassification", WIDE, LABELS, LEVIT, image_size=64, key_dim=[6, 6, 6])
CVT: Sizes = {"embed_dim": [12, 24, 36], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}
add("CvtForImageClassification", WIDE, LABELS, CVT, mlp_ratio=[2.0, 2.0, 2.0])
MOBILE_VIT: Sizes = {"hidden_sizes": [24, 36, 40], "neck_hidden_sizes": [8, 12, 16, 18, 20, 22, 44]}
add("MobileViTForImageClassification", WIDE, LABELS, MOBILE_VIT, image_size=64, num_attention_heads=4)
add("MobileViTV2Model", WIDE, image_size=64, width_multiplier=0.25)
add("FocalNetModel", WIDE, image_size=64, embed_dim=12, depths=[1, 1], focal_levels=[2, 2])
SWIFT: Sizes = {"depths": [1, 1, 1, 1], "embed_dims": [12, 16, 24, 28], "mlp_ratio": 2}
add("SwiftFormerModel", WIDE, SWIFT, drop_path_rate=0.0)
HIERA: Sizes = {"image_size": [64, 64], "depths": [1, 1], "num_heads": [2, 4], "num_query_pool": 1}
add("HieraModel", WIDE, HIERA, embed_dim=24, masked_unit_size=[4, 4])
GNET: Sizes = {"stem_channels": [3, 8, 12], "stage_in_channels": [12, 16, 24, 28], "embedding_size": 12}
GNET |= {"stage_mid_channels": [8, 10, 12, 14], "stage_out_channels": [16, 24, 28, 36]}
GNET |= {"hidden_sizes": [16, 24, 28, 36], "depths": [1, 1, 1, 1], "stage_num_of_layers": [2, 2, 2, 2]}
add("HGNetV2ForImageClassification", WIDE, LABELS, GNET, stage_num_blocks=[1, 1, 1, 1])
RESTORE: Sizes = {"image_size": 16, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 3], "window_size": 4}
add("Swin2SRModel", given(pixel_values=normal(2, 3, 16, 16)), RESTORE)

# -- images with text ----------------------------------------------------------------------------

BOTH = given(input_ids=words(), pixel_values=normal(2, 3, 32, 32))
SEEN: Sizes = PATCHES | {"hidden_size": 40, "num_attention_heads": 4}
TOWERS: Sizes = {"text_config": TEXT | {"projection_dim": 36}, "vision_config": SEEN, "projection_dim": 36}
add("CLIPModel ChineseCLIPModel", BOTH, TOWERS)
add("SiglipModel", BOTH, text_config=TEXT | {"projection_size": 48}, vision_config=PATCHES)
add("CLIPTextModelWithProjection SiglipTextModel", IDS, TEXT, projection_dim=36, projection_size=36)

# -- sound and series ----------------------------------------------------------------------------

WAVE = given(input_values=normal(2, 800))
SPOKEN: Sizes = BLOCK | SPECIAL | {"conv_dim": [12, 16], "conv_kernel": [10, 4], "conv_stride": [8, 4]}
SPOKEN |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 7, "num_conv_pos_embedding_groups": 3}
SPOKEN |= {"conv_pos_kernel_size": 7, "apply_spec_augment": False, "layerdrop": 0.0, "vocab_size": 13}
add("Wav2Vec2ForCTC HubertModel WavLMModel UniSpeechModel Data2VecAudioModel", WAVE, SPOKEN)
add("Wav2Vec2ConformerModel", WAVE, SPOKEN)
STABLE: Sizes = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
add("Wav2Vec2Model", WAVE, SPOKEN, STABLE, variant="layer_norm")
add("SEWModel", WAVE, SPOKEN, squeeze_factor=2)
SPECTRUM = given(input_values=normal(2, 24, 16))
add("ASTForAudioClassification", SPECTRUM, PATCHES, max_length=24, num_mel_bins=16, frequency_stride=8)
SERIES = given(past_values=normal(2, 24, 5))
TIME: Sizes = {"num_input_channels": 5, "context_length": 24, "patch_length": 6, "patch_stride": 6}
TIME |= {"prediction_length": 8, "num_hidden_layers": 2, "num_layers": 2, "num_attention_heads": 6}
add("PatchTSTForPrediction PatchTSMixerForPrediction", SERIES, TIME, d_model=48, ffn_dim=88, loss="mse")

HF: tuple[Network, ...] = tuple(NETWORKS)
