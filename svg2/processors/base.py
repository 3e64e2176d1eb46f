"""What the processors of all families share."""

from typing import Any

from svg2.session import Session


class SVG2Processor:
    """Stands in for the stock processor of one self-attention layer.

    No nn.Module, so that it is never saved, moved or cast with the model. What diffusers sets on a
    processor (attention backend, parallel configuration) goes to the one that it wraps.
    """

    def __init__(self, session: Session, original: Any, transformer: int, layer: int) -> None:
        self._session = session
        self._original = original
        self._transformer = transformer
        self._layer = layer

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
