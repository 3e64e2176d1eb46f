"""Small random checkpoints in the layout of each published model family."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.hunyuan_video import (
    pipeline_hunyuan_video as hunyuan_t2v,
)
from diffusers.pipelines.hunyuan_video import (
    pipeline_hunyuan_video_image2video as hunyuan_i2v,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

PROMPT = "a red ball rolling to the right"
LAB = {
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "fps": 8,
    "num_q_clusters": 6,
    "num_k_clusters": 12,
    "kmeans_iters_init": 3,
    "kmeans_iters_step": 1,
    "dense_layers": 0,
    "warmup_fraction": 0.25,
    "min_keep_ratio": 0.0,
    "top_p": 0.6,
}
WORDS = f"{PROMPT} blue cube left over floor"


@dataclass(frozen=True)
class TinyFamily:
    """How to make a checkpoint.

    Attributes:
        build: makes the pipeline.
        lab: content of lab.json, over the defaults in `LAB`.
        layers: self-attention layers of one transformer.
        branches: guidance passes per step.
        given: `image` or `video` if the pipeline starts from one, else None.
        tokens: video tokens at the default size.
        request: further fields of the request.
    """

    build: Callable[[], Any]
    lab: Mapping[str, Any]
    layers: int
    branches: int = 2
    given: str | None = None
    tokens: int = 72
    request: Mapping[str, Any] = field(default_factory=dict)


def save(family: TinyFamily, folder: Path) -> Path:
    """Write the checkpoint and its lab.json into a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = family.build()
    pipe.save_pretrained(folder)
    (folder / "lab.json").write_text(json.dumps({**LAB, **family.lab}))
    return folder


def word_tokenizer(text: str, special: tuple[str, ...] = (), end: str | None = "</s>"):
    """A tokenizer of the words and signs of `text`: one token each, and more for long words.

    Long words are cut because the pipelines drop as many tokens from the front as their real
    tokenizers make of the prompt template.
    """
    split = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    punctuation = pre_tokenizers.Punctuation()
    tokenizer = Tokenizer(models.WordLevel({}, unk_token="<unk>"))
    pieces = pre_tokenizers.Split(Regex(r"\w{7}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, punctuation, pieces])
    plain = text
    for token in special:
        plain = plain.replace(token, " ")
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain)]
    names = dict.fromkeys(["<pad>", "</s>", "<unk>", *special, *words])
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer.model = models.WordLevel(vocabulary, unk_token="<unk>")
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
    )


def _umt5() -> dict[str, Any]:
    tokenizer = word_tokenizer(WORDS)
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    return {"tokenizer": tokenizer, "text_encoder": transformers.UMT5EncoderModel(config).eval()}


def _wan_parts(z_dim: int = 16, **vae: Any) -> dict[str, Any]:
    config = {
        "base_dim": 4,
        "z_dim": z_dim,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }
    return {
        **_umt5(),
        "vae": diffusers.AutoencoderKLWan(**(config | vae)).eval(),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            num_train_timesteps=1000,
            flow_shift=3.0,
        ),
    }


def _wan_transformer(kind=diffusers.WanTransformer3DModel, **changes: Any):
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 3,
        "rope_max_seq_len": 32,
        "patch_size": (1, 1, 1),
    }
    return kind(**(config | changes)).eval()


def wan_t2v(**transformer: Any):
    return diffusers.WanPipeline(**_wan_parts(), transformer=_wan_transformer(**transformer))


def _wan_v2v():
    return diffusers.WanVideoToVideoPipeline(**_wan_parts(), transformer=_wan_transformer())


def _wan21_i2v():
    """The image goes in both as tokens of the cross-attention and as channels."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    return diffusers.WanImageToVideoPipeline(
        **_wan_parts(),
        transformer=_wan_transformer(in_channels=36, image_dim=16, added_kv_proj_dim=64),
        image_encoder=transformers.CLIPVisionModel(vision).eval(),
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
    )


def _wan22_t2v():
    return diffusers.WanPipeline(
        **_wan_parts(),
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer(),
        boundary_ratio=0.875,
    )


def _wan22_i2v():
    return diffusers.WanImageToVideoPipeline(
        **_wan_parts(),
        transformer=_wan_transformer(in_channels=36),
        transformer_2=_wan_transformer(in_channels=36),
        boundary_ratio=0.9,
    )


def _wan22_ti2v():
    """Its VAE has 16 pixels per latent, and each token has its own timestep."""
    vae = {
        "base_dim": 4,
        "decoder_base_dim": 4,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 8,
        "latents_std": [1.0] * 8,
    }
    return diffusers.WanPipeline(
        **_wan_parts(8, **vae),
        transformer=_wan_transformer(in_channels=8, out_channels=8, patch_size=(1, 2, 2)),
        expand_timesteps=True,
    )


def _wan_vace():
    return diffusers.WanVACEPipeline(
        **_wan_parts(),
        transformer=_wan_transformer(
            diffusers.WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=96
        ),
    )


def _skyreels():
    return diffusers.SkyReelsV2Pipeline(
        **_wan_parts(), transformer=_wan_transformer(diffusers.SkyReelsV2Transformer3DModel)
    )


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")


def _llama_config(vocab_size: int) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )


def _clip_text() -> dict[str, Any]:
    tokenizer = word_tokenizer(WORDS)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    encoder = transformers.CLIPTextModel(config).eval()
    return {"tokenizer_2": tokenizer, "text_encoder_2": encoder}


def _hunyuan_parts() -> dict[str, Any]:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return {**_clip_text(), "vae": vae.eval(), "scheduler": scheduler}


def _hunyuan_transformer(**changes: Any):
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 2,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 1,
        "text_embed_dim": 16,
        "pooled_projection_dim": 16,
        "rope_axes_dim": (8, 12, 12),
    }
    return diffusers.HunyuanVideoTransformer3DModel(**(config | changes)).eval()


def _template(module: Any) -> str:
    return module.DEFAULT_PROMPT_TEMPLATE["template"]


def _hunyuan_t2v():
    tokenizer = word_tokenizer(_template(hunyuan_t2v) + WORDS, _HEADERS, end=None)
    return diffusers.HunyuanVideoPipeline(
        **_hunyuan_parts(),
        tokenizer=tokenizer,
        text_encoder=transformers.LlamaModel(_llama_config(len(tokenizer))).eval(),
        transformer=_hunyuan_transformer(),
    )


def _hunyuan_i2v(**transformer: Any):
    tokenizer = word_tokenizer(_template(hunyuan_i2v) + WORDS, _HEADERS, end=None)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=48,
        patch_size=2,  # 576 patches, as the pipeline assumes
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=_llama_config(len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    config.pad_token_id = 0
    return diffusers.HunyuanVideoImageToVideoPipeline(
        **_hunyuan_parts(),
        tokenizer=tokenizer,
        text_encoder=transformers.LlavaForConditionalGeneration(config).eval(),
        transformer=_hunyuan_transformer(**transformer),
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
        ),
    )


def _hunyuan_i2v_concat():
    return _hunyuan_i2v(in_channels=9, image_condition_type="latent_concat", guidance_embeds=False)


def _hunyuan_i2v_replace():
    return _hunyuan_i2v(image_condition_type="token_replace")


_WAN = {"height": 32, "width": 48, "num_frames": 9, "max_sequence_length": 16}
_HUNYUAN = {"height": 32, "width": 48, "num_frames": 9, "max_sequence_length": 64}
_TI2V = {**_WAN, "height": 128, "width": 128}

TINY: Mapping[str, TinyFamily] = {
    "wan2.1-t2v": TinyFamily(wan_t2v, _WAN, 3),
    "wan2.1-i2v": TinyFamily(_wan21_i2v, {**_WAN, "max_sequence_length": 512}, 3, given="image"),
    "wan2.1-v2v": TinyFamily(_wan_v2v, {**_WAN, "num_inference_steps": 5}, 3, given="video"),
    "wan2.1-vace": TinyFamily(_wan_vace, _WAN, 5, given="video"),
    "wan2.2-t2v": TinyFamily(_wan22_t2v, _WAN, 3),
    "wan2.2-i2v": TinyFamily(_wan22_i2v, _WAN, 3, given="image"),
    "wan2.2-ti2v": TinyFamily(_wan22_ti2v, _TI2V, 3, tokens=48),
    "wan2.2-ti2v-image": TinyFamily(_wan22_ti2v, _TI2V, 3, given="image", tokens=48),
    "skyreels-v2": TinyFamily(_skyreels, _WAN, 3),
    "hunyuanvideo": TinyFamily(_hunyuan_t2v, _HUNYUAN, 3, branches=1),
    "hunyuanvideo-negative": TinyFamily(
        _hunyuan_t2v,
        _HUNYUAN,
        3,
        request={"negative_prompt": "a blue cube", "true_cfg_scale": 2.0},
    ),
    "hunyuanvideo-i2v": TinyFamily(_hunyuan_i2v_replace, _HUNYUAN, 3, branches=1, given="image"),
    "hunyuanvideo-i2v-33ch": TinyFamily(
        _hunyuan_i2v_concat, _HUNYUAN, 3, branches=1, given="image"
    ),
}
