"""What is to be generated, made and checked once, before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svg2.config import SVG2Config
from svg2.method.selection import METHODS, Method
from svg2.models.finding import model_spec
from svg2.models.pipelines import PipelineKind
from svg2.models.request import Request, ResolvedRequest
from svg2.models.spec import ModelSpec


@dataclass(frozen=True)
class Run:
    """A model, a request of known size, and the method with its settings.

    Everything in it is checked: whoever gets a `Run` resolves and checks nothing again.

    Attributes:
        spec: the model of the request.
        request: with every default filled in.
        config: names the method.
    """

    spec: ModelSpec
    request: ResolvedRequest
    config: SVG2Config

    @classmethod
    def of(
        cls,
        request: Request,
        *,
        spec: ModelSpec | None = None,
        preset: str = "published",
        settings: Mapping[str, Any] | None = None,
    ) -> Run:
        """Resolve and check a request with the model's own settings, and `settings` over them.

        Args:
            spec: of the request's model, where it is known already.
            preset: one of `svg2.models.spec.PRESETS`.
            settings: of `SVG2Config`, by name.
        Raises:
            RequestError: the model is unknown, or cannot make this video.
            ConfigError: a setting cannot work, or not at this size.
        """
        spec = (model_spec(request.model) if spec is None else spec).preset(preset)
        resolved = spec.resolve(request)
        size = (resolved.num_frames, resolved.height, resolved.width)
        config = spec.config_for(*size).replace(**(settings or {}))
        config.check_tokens(math.prod(spec.grid(*size)))
        return cls(spec, resolved, config)

    @property
    def method(self) -> Method:
        return METHODS[self.config.method]

    @property
    def kind(self) -> PipelineKind:
        """The pipeline that generates it."""
        return self.spec.kind_for(self.request)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of tokens (T, Y, X)."""
        request = self.request
        return self.spec.grid(request.num_frames, request.height, request.width)

    @property
    def n_tokens(self) -> int:
        """Video tokens."""
        return math.prod(self.grid)

    def with_settings(self, **settings: Any) -> Run:
        """The same video with other settings of the method.

        Raises:
            ConfigError: a setting cannot work.
        """
        config = self.config.replace(**settings)
        config.check_tokens(self.n_tokens)
        return dataclasses.replace(self, config=config)

    def with_prompt(self, prompt: str) -> Run:
        """The same with another prompt.

        Raises:
            RequestError: the prompt cannot work.
        """
        return dataclasses.replace(self, request=dataclasses.replace(self.request, prompt=prompt))
