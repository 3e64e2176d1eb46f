"""Model families that the method supports: one row and one module per attention shape.

The table names the classes of diffusers and imports none. The module of a family is imported when
one of its transformers comes: a class that diffusers renames breaks no other family.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

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
    """Transformers whose attention has one shape. All classes are given by name.

    Attributes:
        module: ours, in this package. It has `self_attentions(transformer)` and
            `patch(transformer)`.
        transformers: classes of diffusers; their subclasses count too.
        stock: processor classes that ours stands in for; subclasses do not count.
        processor_name: our processor, in `module`.
        split_processor_name: our dense processor, in `module`, which stands in for the stock one
            where tokens are split over processes; None where the stock one can do that.
    """

    module: str
    transformers: frozenset[str]
    stock: tuple[str, ...]
    processor_name: str
    split_processor_name: str | None = None

    def self_attentions(self, transformer: Any) -> list[SelfAttention]:
        """The modules of a transformer to replace, by layer; empty where it has none."""
        return self._get("self_attentions")(transformer)

    def patch(self, transformer: Any) -> tuple[int, int, int]:
        """Frames, rows and columns of latents that one token of a transformer stands for."""
        return self._get("patch")(transformer)

    @property
    def processor(self) -> type[SVG2Processor]:
        """The class of our processor."""
        return self._get(self.processor_name)

    @property
    def split_processor(self) -> type | None:
        """The class of our dense processor for split tokens; None where none is needed."""
        name = self.split_processor_name
        return None if name is None else self._get(name)

    def _get(self, name: str) -> Any:
        return getattr(import_module(f"{__name__}.{self.module}"), name)


FAMILIES = (
    Family(
        module="wan",
        transformers=frozenset(
            {"WanTransformer3DModel", "WanVACETransformer3DModel", "SkyReelsV2Transformer3DModel"}
        ),
        stock=("WanAttnProcessor", "SkyReelsV2AttnProcessor"),
        processor_name="WanSVG2Processor",
    ),
    Family(
        module="hunyuan_video",
        transformers=frozenset(
            {"HunyuanVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel"}
        ),
        stock=(
            "HunyuanVideoAttnProcessor2_0",
            "HunyuanVideo15AttnProcessor2_0",
            "JointProcessor",
        ),
        processor_name="HunyuanVideoSVG2Processor",
        split_processor_name="JointProcessor",
    ),
)


def family_of(transformer: Any) -> Family | None:
    """The family of a transformer, or None for an unknown one."""
    names = {parent.__name__ for parent in type(transformer).__mro__}
    return next((family for family in FAMILIES if family.transformers & names), None)


def transformers_of(pipe: Any) -> list[Any]:
    """The transformers that a pipeline denoises with: one, or two experts one after the other.

    Of a transformer that `torch.compile` wrapped it is the one inside.
    """
    return list(_transformers(pipe))


def _transformers(pipe: Any) -> Iterator[Any]:
    for name in ("transformer", "transformer_2"):
        transformer = getattr(pipe, name, None)
        while hasattr(transformer, "_orig_mod"):  # what `torch.compile(module)` returns
            transformer = transformer._orig_mod
        if transformer is not None:
            yield transformer


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
        raise RuntimeError(
            "SVG2 is already enabled for this transformer: disable the first handle before."
        )
    found = type(processor)
    is_known = found.__module__.split(".")[0] in ("diffusers", "svg2")
    if not is_known or found.__name__ not in family.stock:
        raise TypeError(
            f"SVG2 does not support this pipeline: it replaces the attention processor "
            f"{family.stock[0]}, and found {found.__name__}."
        )
