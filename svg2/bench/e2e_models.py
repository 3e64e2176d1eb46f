"""What the end-to-end suite measures: transformers in their published sizes, and settings."""

from dataclasses import dataclass, field, replace
from typing import Any

from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel

from svg2.method.selection import COMPENSATED_METHOD, PAPER_METHOD, ROUTED_METHOD


@dataclass(frozen=True)
class Setting:
    """Settings of the method; `density` is over the sparse calls and takes the place of top-p.

    Where `is_budget`, the method takes the density itself; else the suite searches the top-p.
    """

    density: float
    warmup_fraction: float
    num_q_clusters: int
    num_k_clusters: int
    method: str = PAPER_METHOD
    is_budget: bool = False
    kmeans_iters_init: int = 50


@dataclass(frozen=True)
class Model:
    """A transformer in its published configuration and the latent video it denoises.

    Attributes:
        latent: channels, frames, rows, columns.
        num_steps: denoising steps of a run.
        config: arguments of the transformer's class that differ from its defaults, which are
            those of the largest model.
        text_tokens: prompt tokens without padding; HunyuanVideo has them in its self-attention.
        branches: forwards per step: 2 with classifier-free guidance, 1 if guidance is distilled.
    """

    name: str
    latent: tuple[int, int, int, int]
    num_steps: int
    settings: tuple[Setting, ...]
    config: dict[str, Any] = field(default_factory=dict)
    transformer: type = WanTransformer3DModel
    text_tokens: int = 512
    branches: int = 2

    @property
    def tokens(self) -> int:
        """Number of video tokens; a patch is 1x2x2."""
        return self.latent[1] * (self.latent[2] // 2) * (self.latent[3] // 2)


_PAPER = Setting(0.295, 0.3, 300, 1000)
_FURTHER = Setting(0.2, 0.1, 300, 1000, method=COMPENSATED_METHOD)
MODELS = (
    Model("Wan 2.1 14B, 720p, 81 frames", (16, 21, 90, 160), 50, (_PAPER, _FURTHER)),
    Model(
        "Wan 2.1 1.3B, 480p, 81 frames",
        (16, 21, 60, 104),
        50,
        (Setting(0.295, 0.3, 200, 1000), Setting(0.2, 0.1, 200, 1000, method=COMPENSATED_METHOD)),
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    Model(
        "HunyuanVideo 13B, 720p, 129 frames",
        (16, 33, 90, 160),
        50,
        (Setting(0.255, 0.1, 400, 1000), Setting(0.2, 0.1, 400, 1000, method=COMPENSATED_METHOD)),
        transformer=HunyuanVideoTransformer3DModel,
        config={"guidance_embeds": True},
        text_tokens=256,
        branches=1,
    ),
)


def _routed(num_q_clusters: int) -> Setting:
    """What routing by error allows, with the k-means that ships."""
    return Setting(0.1, 0.1, num_q_clusters, 1000, ROUTED_METHOD, True, 20)


BLOCK_MODELS = tuple(
    replace(model, settings=(model.settings[0], _routed(model.settings[0].num_q_clusters)))
    for model in (MODELS[0], MODELS[2])
)
"""Models that are measured by a few blocks: the paper's settings, and what routing allows."""

TOY_MODELS = (
    Model(
        "toy",
        (16, 3, 16, 16),
        4,
        (Setting(0.4, 0.25, 6, 12), Setting(0.3, 0.25, 6, 12, method=COMPENSATED_METHOD)),
        {
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "ffn_dim": 64,
            "num_layers": 3,
            "text_dim": 32,
        },
        text_tokens=8,
    ),
    Model(
        "toy, joint",
        (4, 3, 16, 16),
        4,
        (Setting(0.4, 0.25, 6, 12),),
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "num_layers": 2,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (8, 12, 12),
            "guidance_embeds": True,
        },
        transformer=HunyuanVideoTransformer3DModel,
        text_tokens=8,
        branches=1,
    ),
)


TOY_BLOCK_MODELS = tuple(
    replace(
        model,
        settings=(
            model.settings[0],
            replace(model.settings[0], method=ROUTED_METHOD, density=0.3, is_budget=True),
        ),
    )
    for model in TOY_MODELS
)
