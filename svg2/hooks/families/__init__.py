"""Model families that the method runs on: one module an attention shape, one row a class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15AttnProcessor2_0,
)
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from svg2.hooks.families import hunyuan_video, wan
from svg2.hooks.families.base import Place, SelfAttention, SVG2Processor

__all__ = [
    "FAMILIES",
    "Family",
    "Place",
    "SVG2Processor",
    "SelfAttention",
    "attention_backend",
    "check_replaceable",
    "family_of",
    "main_attentions",
    "transformers_of",
]


@dataclass(frozen=True)
class Family:
    """Transformers whose attention has one shape.

    Attributes:
        self_attentions: the modules of a transformer to replace, by layer; empty for one of
            another family.
        processor: ours; stock: the classes that it stands in for.
    """

    self_attentions: Callable[[Any], list[SelfAttention]]
    processor: type[SVG2Processor]
    stock: tuple[type, ...]


FAMILIES = (
    Family(wan.self_attentions, wan.WanSVG2Processor, (WanAttnProcessor, SkyReelsV2AttnProcessor)),
    Family(
        hunyuan_video.self_attentions,
        hunyuan_video.HunyuanVideoSVG2Processor,
        (
            HunyuanVideoAttnProcessor2_0,
            HunyuanVideo15AttnProcessor2_0,
            hunyuan_video.JointProcessor,
        ),
    ),
)


def family_of(transformer: Any) -> Family | None:
    """The family of a transformer, or None for an unknown one."""
    return next((family for family in FAMILIES if family.self_attentions(transformer)), None)


def transformers_of(pipe: Any) -> list[Any]:
    """The transformers that a pipeline denoises with: one, or two experts one after the other."""
    candidates = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    return [transformer for transformer in candidates if transformer is not None]


def main_attentions(pipe: Any) -> list[SelfAttention]:
    """The self-attention modules of a pipeline's first transformer; empty for an unknown one."""
    transformers = transformers_of(pipe)
    family = family_of(transformers[0]) if transformers else None
    return [] if family is None else family.self_attentions(transformers[0])


def attention_backend(pipe: Any) -> Any:
    """The attention backend set on a pipeline's self-attention; None for diffusers' default."""
    return main_attentions(pipe)[0].module.processor._attention_backend


def check_replaceable(processor: object, family: Family) -> None:
    """Check that a self-attention processor is the stock one, which ours can stand in for.

    Raises:
        RuntimeError: it is ours already.
        TypeError: it is someone else's, whose work ours would drop.
    """
    if isinstance(processor, SVG2Processor):
        raise RuntimeError("SVG2 is already enabled here: disable the first handle before.")
    if type(processor) not in family.stock:
        raise TypeError(
            f"SVG2 replaces the stock attention, {family.stock[0].__name__}, and found "
            f"{type(processor).__name__}."
        )
