"""The pipeline classes of diffusers that can be generated with: what the call of each takes.

A row a class. Attention is the business of `svg2.hooks.families`, one module a shape of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from svg2.models.request import ResolvedRequest

Guidance = Literal["two passes", "embedded", "guider"]
"""How a pipeline follows its prompt: a second pass without it, a number that the model was trained
to read, or a guider of the pipeline's own."""


@dataclass(frozen=True)
class PipelineKind:
    """One pipeline class, and what it does where nobody says otherwise.

    Attributes:
        name: the class in diffusers.
        takes: `image` or `video`, what it starts from beside the prompt; None for the prompt
            alone. needs_input: it can't do without.
        strength: share of the steps that a pipeline does which starts from a given video; None
            where it does all.
        joint_text: prompt tokens attend together with the video's.
        warmup_fraction: published setting of the method for its models.
        with_video: class that the same weights serve when a video is given.
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
        """As the paper's authors publish them: by family and resolution."""
        if self.joint_text:
            return 400
        return 300 if height >= 700 else 200

    def num_steps(self, num_inference_steps: int) -> int:
        """Steps that it really does of those asked for."""
        if self.strength is None:
            return num_inference_steps
        return min(int(num_inference_steps * self.strength), num_inference_steps)


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
    kind: PipelineKind, request: ResolvedRequest, max_sequence_length: int | None, given: Any
) -> dict[str, Any]:
    """A request as the arguments of the pipeline's call; `given` is the image or video, if any."""
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
    if given is not None:
        assert kind.takes is not None
        arguments[kind.takes] = given
    return arguments
