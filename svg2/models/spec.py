"""One model: its defaults, its limits, and how it resolves a request."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from svg2.config import SVG2Config, ceil_fraction
from svg2.errors import ConfigError, RequestError
from svg2.models.catalogue import Published
from svg2.models.inputs import check_image, check_video
from svg2.models.memory_estimate import MemoryNeed, memory_need
from svg2.models.pipelines import PIPELINES, PipelineKind
from svg2.models.request import MODEL_DEFAULTS, Request, ResolvedRequest

PRESETS: Mapping[str, str] = {
    "published": "the settings that were published for the model",
    "fast": "a smaller budget and half the dense warm-up",
    "faithful": "a larger budget and a dense warm-up of at least 30 % of the steps",
    "draft": "fewer frames or steps, for a quick look",
}
"""Preset names to one line about each."""

DRAFT_SETTINGS = ("num_frames", "num_inference_steps")


@dataclass(frozen=True)
class ModelSpec:
    """One model: where its weights are, what it needs, its defaults and limits.

    Attributes:
        title: name in messages and on the page.
        source: folder or hub id for `from_pretrained`.
        kind: pipeline class of the weights; `kind_for` gives the one that runs a request.
        needs: what running it requires, in one sentence.
        is_local: whether its weights are in a folder on this machine.
        config: default settings, with the default method.
        method_settings: settings in which a method differs from those, by name of the method.
        fps: frames per second of its clips.
        guidance_scale_2: guidance scale of the second expert; None for models with one.
        size_multiple: height and width are multiples of this many pixels.
        frame_stride: the number of frames is one more than a multiple of this.
        latent_stride: pixels per latent row and column.
        patch: latent frames, rows and columns per token.
        max_tokens: most video tokens that it generates.
        draft: frames and steps of the preset `draft`, where the model has its own.
        expand_timesteps: whether it was trained with one timestep per token, so that it also
            takes an image.
        published: its row of the catalogue; None for models without one.
    """

    title: str
    source: str
    kind: PipelineKind
    needs: str
    is_local: bool
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int | None
    fps: float
    config: SVG2Config
    method_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    guidance_scale_2: float | None = None
    size_multiple: int = 16
    frame_stride: int = 4
    latent_stride: int = 8
    patch: tuple[int, int, int] = (1, 2, 2)
    max_tokens: int = 200_000
    draft: Mapping[str, int] = field(default_factory=dict)
    expand_timesteps: bool = False
    published: Published | None = field(default=None, repr=False)

    def config_of(self, method: str | None = None) -> SVG2Config:
        """The default settings of a method; of the model's own method without one."""
        method = self.config.method if method is None else method
        return self.config.replace(method=method, **self.method_settings.get(method, {}))

    def config_for(
        self, num_frames: int, height: int, width: int, method: str | None = None
    ) -> SVG2Config:
        """The default settings of a method at a size; at most one cluster per four tokens."""
        most = max(1, math.prod(self.grid(num_frames, height, width)) // 4)
        config = self.config_of(method)
        return config.replace(
            num_q_clusters=min(config.num_q_clusters, most),
            num_k_clusters=min(config.num_k_clusters, most),
        )

    def preset(self, name: str) -> ModelSpec:
        """This model with the settings of a preset.

        Raises:
            ConfigError: an unknown preset.
        """
        if name in ("fast", "faithful"):
            return replace(
                self,
                config=self.config.replace(**_preset_settings(name, self.config)),
                method_settings={
                    method: {**settings, **_preset_settings(name, self.config_of(method))}
                    for method, settings in self.method_settings.items()
                },
            )
        if name == "draft":
            half = (self.num_frames - 1) // 2
            usual = {
                "num_frames": half - half % self.frame_stride + 1,
                "num_inference_steps": ceil_fraction(0.6, self.num_inference_steps),
            }
            return replace(self, **{**usual, **self.draft})
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError(f"Unknown preset {name!r}: choose one of {', '.join(PRESETS)}.")
        return self

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, rows and columns of video tokens (T, Y, X) at a size in frames and pixels."""
        frames = (num_frames - 1) // self.frame_stride + 1
        rows, columns = height // self.latent_stride, width // self.latent_stride
        return frames // self.patch[0], rows // self.patch[1], columns // self.patch[2]

    def kind_for(self, request: Request) -> PipelineKind:
        """The pipeline class that runs a request; another one if an image or video is given."""
        if request.image is not None and self.kind.takes != "image" and self.expand_timesteps:
            return PIPELINES["WanImageToVideoPipeline"]
        is_plain = not self.expand_timesteps and self.guidance_scale_2 is None
        has_other = self.kind.with_video is not None and is_plain
        if request.video is not None and self.kind.takes != "video" and has_other:
            return PIPELINES[str(self.kind.with_video)]
        return self.kind

    def check_given(self, request: Request) -> None:
        """Check the image or video of a request, and its guidance, against the model.

        Raises:
            RequestError: a missing, unsupported or unreadable input; or an unsupported guidance.
        """
        kind = self.kind_for(request)
        for name, check in (("image", check_image), ("video", check_video)):
            path = getattr(request, name)
            if path is None and kind.takes == name and kind.needs_input:
                raise RequestError(
                    f"{capitalised(self.title)} starts from {_a(name)}: name its file."
                )
            if path is None:
                continue
            if kind.takes != name:
                raise RequestError(f"{capitalised(self.title)} takes no {name}: leave it out.")
            check(path)
        if kind.guidance != "embedded":
            if request.true_cfg_scale != 1:
                raise RequestError(
                    f"{capitalised(self.title)} has no true_cfg_scale: set guidance_scale, which "
                    "weighs its negative prompt."
                )
        elif request.negative_prompt and request.true_cfg_scale <= 1:
            raise RequestError(
                f"{capitalised(self.title)} uses a negative prompt only with a true_cfg_scale "
                "above 1."
            )
        if request.guidance_scale_2 is not None and self.guidance_scale_2 is None:
            raise RequestError(
                f"{capitalised(self.title)} has one transformer and no guidance_scale_2: leave "
                "it out."
            )

    def memory(self, num_frames: int, height: int, width: int) -> MemoryNeed | None:
        """Memory of one step at a size; None for a model that is not in the catalogue."""
        if self.published is None:
            return None
        tokens = math.prod(self.grid(num_frames, height, width))
        size = (num_frames, height, width)
        return memory_need(self.published.shape, tokens, self.config_for(*size))

    def resolve(self, request: Request) -> ResolvedRequest:
        """Fill in this model's defaults and check the request against its limits.

        Raises:
            RequestError: a size, image, video or guidance that the model does not support.
        """
        self.check_given(request)
        filled = {
            name: getattr(request, name)
            if getattr(request, name) is not None
            else getattr(self, name)
            for name in MODEL_DEFAULTS
        }
        if request.guidance_scale_2 is None and self.guidance_scale_2 is not None:
            is_for_both = request.guidance_scale is not None  # one scale alone is for both experts
            filled["guidance_scale_2"] = (
                request.guidance_scale if is_for_both else self.guidance_scale_2
            )
        is_passed_by = filled["guidance_scale"] <= 1 and self.kind.guidance == "two passes"
        if request.negative_prompt and is_passed_by:
            raise RequestError(
                f"{capitalised(self.title)} uses a negative prompt only with a guidance_scale "
                f"above 1, not {filled['guidance_scale']:g}: raise it, or leave that prompt out."
            )
        for name in ("height", "width"):
            if filled[name] % self.size_multiple:
                raise RequestError(
                    f"{name} must be a multiple of {self.size_multiple}, not {filled[name]}."
                )
        frames, stride = filled["num_frames"], self.frame_stride
        if (frames - 1) % stride:
            below = frames - (frames - 1) % stride
            raise RequestError(
                f"num_frames must be one more than a multiple of {stride}, not {frames}: choose "
                f"{below} or {below + stride}."
            )
        tokens = math.prod(self.grid(frames, filled["height"], filled["width"]))
        if tokens > self.max_tokens:
            raise RequestError(
                f"{frames} frames of {filled['width']} by {filled['height']} are {tokens:,} "
                f"tokens, and {self.title} takes at most {self.max_tokens:,}: ask for a smaller "
                "or shorter video."
            )
        return ResolvedRequest(**(dataclasses.asdict(request) | filled))


def _preset_settings(name: str, config: SVG2Config) -> dict[str, float]:
    """Budget and warm-up of the presets `fast` and `faithful`."""
    top_p, warmup = config.top_p, config.warmup_fraction
    if name == "fast":
        return {"top_p": max(0.05, round(top_p - 0.1, 2)), "warmup_fraction": warmup / 2}
    return {"top_p": round((1 + top_p) / 2, 3), "warmup_fraction": max(0.3, warmup)}


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, for the start of a sentence."""
    return text[:1].upper() + text[1:]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
