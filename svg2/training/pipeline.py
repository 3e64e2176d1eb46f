"""Assemble the built-in model as a real `WanPipeline`, and put trained weights into it."""

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models import AutoencoderKLWan
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from svg2.training.grammar import vocabulary
from svg2.training.vae import LATENT_CHANNELS

TEXT_DIM = 96
# What the clips were rendered at, and what the model samples best at; shipped as lab.json.
DEFAULTS: dict[str, float] = {
    "height": 192,
    "width": 192,
    "num_frames": 17,
    "fps": 16,
    "num_inference_steps": 16,
    "guidance_scale": 3.0,
    "max_sequence_length": 24,
    "top_p": 0.9,
    "num_q_clusters": 32,
    "num_k_clusters": 192,
    "kmeans_iters_init": 10,
    "kmeans_iters_step": 1,
    "warmup_fraction": 0.15,
    "dense_layers": 0,
    "min_keep_ratio": 0.05,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the grammar; every other word is the unknown token."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=TEXT_DIM,
        d_kv=32,
        d_ff=192,
        num_layers=2,
        num_heads=3,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return UMT5EncoderModel(config)


def build_transformer() -> WanTransformer3DModel:
    """About 3 M parameters; at 2,304 tokens two thirds of its arithmetic is self-attention."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=3,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=512,
        num_layers=6,
        rope_max_seq_len=256,
    )


def build_scheduler(shift: float = 2.0) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)


def assemble(
    vae: AutoencoderKLWan, transformer: WanTransformer3DModel, text_encoder: UMT5EncoderModel
) -> WanPipeline:
    """A pipeline of the given parts with our tokenizer and scheduler."""
    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=build_scheduler(),
        transformer=transformer,
    )


def ship(pipeline: WanPipeline, folder: Path) -> None:
    """Save `pipeline` in bf16 with shards below 10 MB, and `DEFAULTS` as lab.json beside it."""
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(folder, max_shard_size="9MB", safe_serialization=True)
    (folder / "lab.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")
