"""What the processors of all families share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from svg2.hooks.session import Session
from svg2.hooks.steps import original_of_copy
from svg2.hooks.ulysses import HeadShare, head_share


@dataclass(frozen=True)
class SelfAttention:
    """One self-attention module of a transformer.

    Attributes:
        depth: how far into the model it lies, which the gate for the first layers counts.
        runs_first: whether a forward of the model begins with it.
    """

    module: Any
    depth: int
    runs_first: bool = False


@dataclass(frozen=True)
class Place:
    """Where a processor stands: the pipeline's nth transformer, its nth self-attention."""

    transformer: int
    layer: int
    depth: int
    runs_first: bool


class SVG2Processor(ABC):
    """Stands in for the stock processor of one self-attention layer.

    It is not an nn.Module, so it is never saved, moved or cast with the model. What diffusers sets
    on a processor (attention backend, parallel configuration) goes to the stock processor, which
    this one holds. A copy or a pickle of the model gets that stock processor alone.

    A compiled block sees one operation: whether a step is dense, and where the centroids are, is
    Python state, for which a graph would be compiled anew at every step.
    """

    def __init__(self, session: Session, attn: Any, place: Place) -> None:
        self._session = session
        self._attn = attn
        self._original = attn.processor
        self._place = place
        number = next(_NUMBERS)
        _PROCESSORS[number] = self
        # A Python number would be a constant of the graph, another one in each layer.
        self._number = torch.tensor(number)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy works alone and dense: it is of the stock processor."""
        return original_of_copy, (self._original,)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """The layer's attention, with the arguments that diffusers hands to a processor.

        Raises:
            ConfigError: there are more clusters than video tokens.
            RuntimeError: tokens are split over devices in a way other than Ulysses', or a mask
                stands where the family has none.
        """
        rotary = image_rotary_emb if rotary_emb is None else rotary_emb
        if not torch.compiler.is_compiling():
            return self.attend(attn, hidden_states, encoder_hidden_states, attention_mask, rotary)
        outs = attend_opaquely(
            self._number, hidden_states, encoder_hidden_states, attention_mask, rotary or ()
        )
        return outs[0] if encoder_hidden_states is None else tuple(outs)

    @abstractmethod
    def attend(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary_emb: tuple[Tensor, Tensor] | None,
    ) -> Any:
        """Stock attention where the gate says dense, ours elsewhere."""

    @property
    def _attention_backend(self) -> Any:
        return self._original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self._original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self._original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, parallel_config: Any) -> None:
        self._original._parallel_config = parallel_config

    def _arrive(self, n_local: int, heads: int) -> HeadShare | None:
        """This process's share of the heads, where there are several; a forward may begin here.

        Raises:
            ConfigError: there are more clusters than tokens.
            RuntimeError: tokens are split over devices in a way other than Ulysses'.
        """
        share = head_share(self._parallel_config, heads)
        if self._place.runs_first:
            n_tokens = n_local if share is None else n_local * share.world
            self._session.begin_forward(self._place.transformer, n_tokens)
        return share


_NUMBERS = count()
_PROCESSORS: WeakValueDictionary[int, SVG2Processor] = WeakValueDictionary()


@torch.library.custom_op("svg2::attend", mutates_args=())
def attend_opaquely(
    number: Tensor,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None,
    attention_mask: Tensor | None,
    rotary_emb: Sequence[Tensor],
) -> list[Tensor]:
    """`SVG2Processor.attend` of the processor with this number, as one operation of a graph."""
    processor = _PROCESSORS[int(number)]
    rotary = (rotary_emb[0], rotary_emb[1]) if rotary_emb else None
    out = processor.attend(
        processor._attn, hidden_states, encoder_hidden_states, attention_mask, rotary
    )
    # As the graph was told: contiguous, and none of the arguments themselves.
    return [x.contiguous() for x in (out if isinstance(out, tuple) else (out,))]


@attend_opaquely.register_fake
def _(
    number: Tensor,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None,
    attention_mask: Tensor | None,
    rotary_emb: Sequence[Tensor],
) -> list[Tensor]:
    sources = (hidden_states, encoder_hidden_states)
    return [x.new_empty(x.shape) for x in sources if x is not None]
