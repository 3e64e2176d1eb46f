"""The supported pipeline classes of diffusers, one row per class, and their call arguments.

How the attention of each is replaced is in `svg2.hooks.families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from svg2.models.request import ResolvedRequest

Guidance = Literal["two passes", "embedded", "guider"]
"""How a pipeline follows its prompt: a second pass with the negative prompt, a guidance scale that
is an input of the model, or a guider object of the pipeline."""


@dataclass(frozen=True)
class PipelineKind:
    """One pipeline class and its default settings.

    Attributes:
        name: name of the class in diffusers.
        takes: `image` or `video`, the input that it takes besides the prompt; None if it takes
            the prompt alone.
        needs_input: whether that input is required.
        strength: share of the denoising steps that run, in pipelines that start from a noised
            video; None where all steps run.
        joint_text: whether prompt tokens take part in the self-attention of the video.
        max_sequence_length: prompt tokens; None where the call has no such argument.
        fps: frames per second of its clips.
        warmup_fraction: setting of the method that its authors published for these models.
        with_video: class that runs the same weights when a video is given; None if there is none.
    """

    name: str
    guidance: Guidance = "two passes"
    takes: Literal["image", "video"] | None = None
    needs_input: bool = False
    strength: float | None = None
    joint_text: bool = False
    max_sequence_length: int | None = 512
    height: int = 480
    width: int = 832
    num_frames: int = 81
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    fps: float = 16
    warmup_fraction: float = 0.2
    with_video: str | None = None

    def num_q_clusters(self, height: int) -> int:
        """Query clusters that the method's authors published, by family and height in pixels."""
        if self.joint_text:
            return 400
        return 300 if height >= 700 else 200

    def num_steps(self, num_inference_steps: int) -> int:
        """Denoising steps that really run when `num_inference_steps` are asked for."""
        if self.strength is None:
            return num_inference_steps
        return min(int(num_inference_steps * self.strength), num_inference_steps)

    def branches(self, guidance_scale: float, true_cfg_scale: float = 1.0) -> int:
        """Forwards of the transformer per step: 2 with classifier-free guidance, else 1."""
        scale = true_cfg_scale if self.guidance == "embedded" else guidance_scale
        return 2 if scale > 1 else 1


_WAN = PipelineKind("WanPipeline", with_video="WanVideoToVideoPipeline")
_HUNYUAN = PipelineKind(
    "HunyuanVideoPipeline",
    guidance="embedded",
    joint_text=True,
    max_sequence_length=256,
    height=720,
    width=1280,
    num_frames=129,
    guidance_scale=6.0,
    fps=24,
    warmup_fraction=0.1,
)
_SKYREELS = PipelineKind(
    "SkyReelsV2Pipeline", height=544, width=960, num_frames=97, guidance_scale=6.0, fps=24
)

_ROWS = (
    _WAN,
    replace(_WAN, name="WanImageToVideoPipeline", takes="image", needs_input=True),
    replace(_WAN, name="WanVideoToVideoPipeline", takes="video", needs_input=True, strength=0.8),
    replace(_WAN, name="WanVACEPipeline", takes="video", with_video=None),
    _HUNYUAN,
    replace(
        _HUNYUAN,
        name="HunyuanVideoImageToVideoPipeline",
        takes="image",
        needs_input=True,
    ),
    replace(
        _HUNYUAN,
        name="HunyuanVideo15Pipeline",
        guidance="guider",
        max_sequence_length=None,
        num_frames=121,
        fps=24,
    ),
    _SKYREELS,
    replace(
        _SKYREELS,
        name="SkyReelsV2ImageToVideoPipeline",
        takes="image",
        needs_input=True,
        guidance_scale=5.0,
    ),
)
PIPELINES: Mapping[str, PipelineKind] = {row.name: row for row in _ROWS}


def call_arguments(
    kind: PipelineKind, request: ResolvedRequest, max_sequence_length: int | None, media: Any
) -> dict[str, Any]:
    """The arguments of the pipeline's call for a request.

    Args:
        max_sequence_length: prompt tokens of the model; None leaves the argument out.
        media: the image, or the list of video frames, to start from; None without one.
    """
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.num_inference_steps,
    }
    if kind.strength is None:
        arguments["num_frames"] = request.num_frames
    else:
        arguments["strength"] = kind.strength
    if max_sequence_length is not None:
        arguments["max_sequence_length"] = max_sequence_length
    if kind.guidance == "embedded":
        arguments["guidance_scale"] = request.guidance_scale
        if request.true_cfg_scale > 1:
            arguments["true_cfg_scale"] = request.true_cfg_scale
            arguments["negative_prompt"] = request.negative_prompt
    else:
        arguments["negative_prompt"] = request.negative_prompt
    if kind.guidance == "two passes":
        arguments["guidance_scale"] = request.guidance_scale
        if request.guidance_scale_2 is not None:
            arguments["guidance_scale_2"] = request.guidance_scale_2
    if media is not None:
        assert kind.takes is not None
        arguments[kind.takes] = media
    return arguments
