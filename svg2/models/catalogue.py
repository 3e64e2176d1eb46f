"""Published models, one row per model: hub id, parameters, licence and published settings.

`tests/svg2/models/test_catalogue.py` checks the shapes and parameters of the transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from svg2.models.memory_estimate import TransformerShape

WAN_LICENSE = "Apache-2.0"
HUNYUAN_LICENSE = "Tencent Hunyuan Community (not for the EU, the UK or South Korea)"

_UMT5_XXL = 5_680_910_336
_CLIP_VIT_H = 630_766_080
_LLAMA_8B = 7_505_186_816
_CLIP_L = 123_060_480
_CLIP_L_VISION = 303_507_456


@dataclass(frozen=True)
class Published:
    """One model on the hub, with the settings that its authors publish.

    Attributes:
        pipeline: pipeline class in diffusers.
        shape: shape of one transformer.
        others: number of parameters of its text and image encoders.
        source: where the settings are published.
        guidance_scale_2: guidance scale of the second expert, in models with two.
        flow_shift: shift of the noise schedule, where the published one differs from the
            repository's; None otherwise.
        latent_stride: pixels per latent row and column.
        expand_timesteps: whether the model has one timestep per token.
    """

    title: str
    hub_id: str
    pipeline: str
    license: str
    shape: TransformerShape
    others: int
    source: str
    height: int = 480
    width: int = 832
    num_frames: int = 81
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    guidance_scale_2: float | None = None
    fps: float = 16
    flow_shift: float | None = None
    latent_stride: int = 8
    expand_timesteps: bool = False

    @property
    def parameters(self) -> int:
        """Parameters of all networks but the VAE, which is small."""
        return self.shape.parameters * self.shape.experts + self.others

    @property
    def download_gb(self) -> float:
        """Download in GB at 2 bytes per parameter; a repository in fp32 is twice as large."""
        return 2 * self.parameters / 1e9


def _wan_14b(parameters: int = 14_288_491_584, layers: int = 40, experts: int = 1):
    return TransformerShape(layers, 40, 128, 13_824, parameters, experts)


def _wan_1_3b(parameters: int = 1_418_996_800, layers: int = 30):
    return TransformerShape(layers, 12, 128, 8_960, parameters)


_HUNYUAN = TransformerShape(60, 24, 128, 12_288, 12_821_012_544, joint_text=True, branches=1)
_WAN21_SOURCE = "Wan-Video/Wan2.1 and diffusers' Wan page"
_WAN22_SOURCE = "Wan-Video/Wan2.2"
_HUNYUAN_SOURCE = "Tencent/HunyuanVideo and diffusers' HunyuanVideo page"


def _wan21(title: str, name: str, shape: TransformerShape, **changes) -> Published:
    fields = {"pipeline": "WanPipeline", "others": _UMT5_XXL, "flow_shift": 3.0, **changes}
    if fields.get("height") == 720:
        fields |= {"width": 1280, "flow_shift": 5.0}
    return Published(
        title, f"Wan-AI/{name}", license=WAN_LICENSE, shape=shape, source=_WAN21_SOURCE, **fields
    )


def _wan22(title: str, name: str, shape: TransformerShape, **changes) -> Published:
    fields = {"pipeline": "WanPipeline", "others": _UMT5_XXL, "width": 1280, **changes}
    return Published(
        title, f"Wan-AI/{name}", license=WAN_LICENSE, shape=shape, source=_WAN22_SOURCE, **fields
    )


def _hunyuan(title: str, name: str, others: int, **changes) -> Published:
    return Published(
        title,
        f"hunyuanvideo-community/{name}",
        license=HUNYUAN_LICENSE,
        shape=_HUNYUAN,
        others=others,
        source=_HUNYUAN_SOURCE,
        height=720,
        width=1280,
        num_frames=129,
        guidance_scale=6.0,
        fps=24,
        **changes,
    )


_I2V = {"pipeline": "WanImageToVideoPipeline", "others": _UMT5_XXL + _CLIP_VIT_H}
_I2V_14B = _wan_14b(16_394_878_784)
_VACE = {"pipeline": "WanVACEPipeline"}

PUBLISHED: Mapping[str, Published] = {
    "wan2.1-1.3b": _wan21("Wan 2.1 1.3B", "Wan2.1-T2V-1.3B-Diffusers", _wan_1_3b()),
    "wan2.1-14b": _wan21("Wan 2.1 14B", "Wan2.1-T2V-14B-Diffusers", _wan_14b(), height=720),
    "wan2.1-i2v-480p": _wan21(
        "Wan 2.1 image to video, 480p", "Wan2.1-I2V-14B-480P-Diffusers", _I2V_14B, **_I2V
    ),
    "wan2.1-i2v-720p": _wan21(
        *("Wan 2.1 image to video, 720p", "Wan2.1-I2V-14B-720P-Diffusers", _I2V_14B),
        **_I2V,
        height=720,
    ),
    "wan2.1-vace-1.3b": _wan21(
        *("Wan 2.1 VACE 1.3B", "Wan2.1-VACE-1.3B-diffusers"),
        _wan_1_3b(2_153_972_032, layers=45),
        **_VACE,
    ),
    "wan2.1-vace-14b": _wan21(
        *("Wan 2.1 VACE 14B", "Wan2.1-VACE-14B-diffusers"),
        _wan_14b(17_337_592_896, layers=48),
        **_VACE,
        height=720,
    ),
    "wan2.2-t2v-a14b": _wan22(
        *("Wan 2.2 A14B", "Wan2.2-T2V-A14B-Diffusers", _wan_14b(experts=2)),
        height=720,
        num_inference_steps=40,
        guidance_scale=4.0,
        guidance_scale_2=3.0,
    ),
    "wan2.2-i2v-a14b": _wan22(
        *("Wan 2.2 A14B image to video", "Wan2.2-I2V-A14B-Diffusers"),
        _wan_14b(14_288_901_184, experts=2),
        pipeline="WanImageToVideoPipeline",
        height=720,
        num_inference_steps=40,
        guidance_scale=3.5,
        guidance_scale_2=3.5,
    ),
    "wan2.2-ti2v-5b": _wan22(
        *("Wan 2.2 5B, text or image to video", "Wan2.2-TI2V-5B-Diffusers"),
        TransformerShape(30, 24, 128, 14_336, 4_999_787_712),
        height=704,
        num_frames=121,
        fps=24,
        latent_stride=16,
        expand_timesteps=True,
    ),
    "hunyuanvideo": _hunyuan(
        "HunyuanVideo", "HunyuanVideo", _LLAMA_8B + _CLIP_L, pipeline="HunyuanVideoPipeline"
    ),
    "hunyuanvideo-i2v": _hunyuan(
        *("HunyuanVideo image to video", "HunyuanVideo-I2V"),
        _LLAMA_8B + _CLIP_L + _CLIP_L_VISION,
        pipeline="HunyuanVideoImageToVideoPipeline",
    ),
}

MODELS: Mapping[str, str] = {
    "builtin": "our own small model of moving shapes, for CPUs",
    **{
        name: f"{row.title}, {row.parameters / 1e9:.1f} billion parameters with encoders"
        for name, row in PUBLISHED.items()
    },
}
"""Model id to a description of one line. `model_spec` also takes folders and hub ids."""
