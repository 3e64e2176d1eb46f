"""Stage `ship`: the parts of the built-in model, assembled and saved as a `WanPipeline`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models import AutoencoderKLWan
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from svg2.method.selection import COMPENSATED_METHOD, PAPER_METHOD, ROUTED_METHOD
from svg2.models.prompts import tokens_of, vocabulary
from svg2.training.vae import LATENT_CHANNELS

TEXT_DIM = 96
TEXT_LENGTH = 48  # tokens, enough for the longest prompt of the grammar
_SEMANTIC = {"num_q_clusters": 100, "num_k_clusters": 300}
_TILES = {"num_q_clusters": 324, "num_k_clusters": 324}
# Of those tried on queries and keys of the shipped model at equal compute the best; the routed
# method has fewer than the best, for speed.
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    ROUTED_METHOD: {
        "top_p": 0.3,
        "num_q_clusters": 64,
        "num_k_clusters": 150,
        "warmup_fraction": 0.0,
        "min_keep_ratio": 0.0,
    },
    PAPER_METHOD: _SEMANTIC,
    COMPENSATED_METHOD: _SEMANTIC,
    "svg2-ear": _SEMANTIC,
    "random": _SEMANTIC,
    "position": {"num_q_clusters": 576, "num_k_clusters": 576},
    "svg1": _TILES,
    "radial": _TILES,
}
# Size of the rendered clips, and the best settings for sampling. Shipped as lab.json.
DEFAULTS: dict[str, Any] = {
    "height": 192,
    "width": 192,
    "num_frames": 17,
    "fps": 16,
    "num_inference_steps": 10,
    "guidance_scale": 2.0,
    "top_p": 0.9,
    "num_q_clusters": 24,
    "num_k_clusters": 400,
    "kmeans_iters_init": 4,
    "kmeans_iters_step": 1,
    "warmup_fraction": 0.15,
    "dense_layers": 0,
    "min_keep_ratio": 0.05,
    "method": ROUTED_METHOD,
    "methods": METHOD_SETTINGS,
    "draft": {"num_frames": 17, "num_inference_steps": 5},
}
_GUIDED_STEPS = 8  # of a student of the guidance alone, which may take any number
# In which lab.json differs after the stage `long`. Blocks and tiles keep their size in tokens.
_LONG_BLOCKS = {"position": 17 * 64, "svg1": 17 * 36, "radial": 17 * 36}
LONG_LAB: dict[str, Any] = {
    "num_frames": 33,
    "methods": METHOD_SETTINGS
    | {ROUTED_METHOD: METHOD_SETTINGS[ROUTED_METHOD] | {"top_p": 0.35}}
    | {
        method: {"num_q_clusters": count, "num_k_clusters": count}
        for method, count in _LONG_BLOCKS.items()
    },
}


# Sizes of the transformer. Checkpoints store them.
SIZES = {"num_attention_heads": 4, "num_layers": 6, "ffn_dim": 768}
_SPECIAL = ("<pad>", "</s>", "<unk>")


def build_tokenizer(words: Sequence[str] = vocabulary()) -> PreTrainedTokenizerFast:
    """One token per word of the vocabulary, and the unknown token for all other words."""
    ids = {w: i for i, w in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
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


def words_of(folder: Path) -> tuple[str, ...]:
    """Words of a shipped pipeline's tokenizer, in the order of their tokens."""
    return tuple(tokens_of(folder)[len(_SPECIAL) :])


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """A UMT5 encoder of two layers, with random weights."""
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


def build_transformer(
    num_attention_heads: int = SIZES["num_attention_heads"],
    num_layers: int = SIZES["num_layers"],
    ffn_dim: int = SIZES["ffn_dim"],
) -> WanTransformer3DModel:
    """A Wan transformer with random weights; 6 M parameters at the default sizes."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=num_attention_heads,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=ffn_dim,
        num_layers=num_layers,
        rope_max_seq_len=256,
    )


Scheduler = UniPCMultistepScheduler | DPMSolverMultistepScheduler
_FLOW = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 5.0,
}
UNIPC, EULER = "unipc", "euler"
SCHEDULERS: Mapping[str, Callable[[], Scheduler]] = {
    UNIPC: lambda: UniPCMultistepScheduler(**_FLOW),
    EULER: lambda: DPMSolverMultistepScheduler(solver_order=1, **_FLOW),
}
"""By name. `unipc` is the one that Wan ships, of second order, so ten steps suffice.

`euler` is for a student of few steps, whose velocity leads to the next time in a straight line. Of
first order, DPM-Solver++ is Euler's method on a flow. Its times are within 0.003 of `unipc`'s.
`FlowMatchEulerDiscreteScheduler` ends with a step from 0.02 to 0, one of eight for nothing, and
rounds the clip to the precision of the weights after each step.
"""


def distilled_lab(steps: int) -> dict[str, Any]:
    """In which lab.json differs for a student of `steps` steps; 0 for one of any number."""
    told = {"num_inference_steps": steps or _GUIDED_STEPS}
    return LONG_LAB | {"guidance_scale": 1.0, "draft": DEFAULTS["draft"] | told} | told


def lab_of(stage: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """lab.json of weights: the settings for `stage`, and what the `record` of its training adds.

    That is the length of prompts, and the rule of the held-out combinations, which an evaluation
    must know.
    """
    settings = {
        "long": LONG_LAB,
        "distil": distilled_lab(record.get("recipe", {}).get("steps", 0)),
    }
    told = {name: record[name] for name in ("max_sequence_length", "rule")}
    return DEFAULTS | settings.get(stage, {}) | told


def assemble(
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    scheduler: str = UNIPC,
) -> WanPipeline:
    """A pipeline of the given parts, with a scheduler of `SCHEDULERS`."""
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        scheduler=SCHEDULERS[scheduler](),
        transformer=transformer,
    )


def ship(pipeline: WanPipeline, folder: Path, lab: Mapping[str, Any]) -> None:
    """Save `pipeline` in bf16 with shards below 10 MB, and `lab` beside it as lab.json."""
    for old in folder.glob("*/*.safetensors*"):
        old.unlink()  # a model with fewer shards would leave shards of an earlier one
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(folder, max_shard_size="9MB", safe_serialization=True)
    for path in folder.glob("*/config.json"):  # without the folder that a part was read from
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "lab.json").write_text(json.dumps(lab, indent=2) + "\n")
