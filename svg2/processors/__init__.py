"""Model families that the method runs on: one module each, which knows its attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from svg2.processors import hunyuan_video, wan
from svg2.processors.base import SVG2Processor

__all__ = ["FAMILIES", "Family", "SVG2Processor", "check_replaceable", "family_of"]


@dataclass(frozen=True)
class Family:
    """Transformers whose attention has one shape.

    Attributes:
        self_attentions: the modules of a transformer to replace, by layer; empty for one of
            another family.
        processor: ours; stock: the class that it stands in for.
    """

    self_attentions: Callable[[Any], list[Any]]
    processor: type[SVG2Processor]
    stock: type


FAMILIES = (
    Family(wan.self_attentions, wan.WanSVG2Processor, wan.STOCK),
    Family(
        hunyuan_video.self_attentions,
        hunyuan_video.HunyuanVideoSVG2Processor,
        hunyuan_video.STOCK,
    ),
)


def family_of(transformer: Any) -> Family | None:
    """The family of a transformer, or None for an unknown one."""
    return next((family for family in FAMILIES if family.self_attentions(transformer)), None)


def check_replaceable(processor: object, family: Family) -> None:
    """Check that a self-attention processor is the stock one, which ours can stand in for.

    Raises:
        RuntimeError: it is ours already.
        TypeError: it is someone else's, whose work ours would drop.
    """
    if isinstance(processor, SVG2Processor):
        raise RuntimeError("SVG2 is already enabled here: disable the first handle before.")
    if type(processor) is not family.stock:
        raise TypeError(
            f"SVG2 replaces the stock attention, {family.stock.__name__}, and found "
            f"{type(processor).__name__}."
        )
