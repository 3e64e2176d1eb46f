"""What the processors of all families share."""

from dataclasses import dataclass
from typing import Any

from svg2.session import Session
from svg2.ulysses import HeadShare, head_share


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


class SVG2Processor:
    """Stands in for the stock processor of one self-attention layer.

    No nn.Module, so that it is never saved, moved or cast with the model. What diffusers sets on a
    processor (attention backend, parallel configuration) goes to the one that it wraps.
    """

    def __init__(self, session: Session, original: Any, place: Place) -> None:
        self._session = session
        self._original = original
        self._place = place

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
