"""A run: what to generate and how. It is made and checked once, before a model is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from svg2.config import SVG2Config
from svg2.method.selection import METHODS, Method
from svg2.models.finding import model_spec
from svg2.models.pipelines import PipelineKind
from svg2.models.request import Request, ResolvedRequest
from svg2.models.spec import ModelSpec


@dataclass(frozen=True)
class Run:
    """A model, a resolved request, and the settings of the method.

    All of it is checked, so code that gets a `Run` does not resolve or check it again.

    Attributes:
        spec: the model of the request.
        request: the request with the model's defaults filled in.
        config: settings of the method, with its name.
        chosen: the settings that were asked for, in place of the model's own.
    """

    spec: ModelSpec
    request: ResolvedRequest
    config: SVG2Config
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        request: Request,
        *,
        spec: ModelSpec | None = None,
        preset: str = "published",
        settings: Mapping[str, Any] | None = None,
    ) -> Run:
        """Resolve a request and check it.

        Args:
            spec: spec of the request's model; None finds it.
            preset: one of `svg2.models.spec.PRESETS`.
            settings: settings of `SVG2Config` by name, in place of the model's own.

        Raises:
            RequestError: an unknown model, or a video that it does not support.
            ConfigError: an invalid setting, or more clusters than tokens.
        """
        spec = (model_spec(request.model) if spec is None else spec).preset(preset)
        resolved = spec.resolve(request)
        return cls(spec, resolved, spec.config).with_settings(**(settings or {}))

    @property
    def method(self) -> Method:
        """The registry's row of the method."""
        return METHODS[self.config.method]

    @property
    def kind(self) -> PipelineKind:
        """The pipeline class that generates the video."""
        return self.spec.kind_for(self.request)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of video tokens (T, Y, X)."""
        request = self.request
        return self.spec.grid(request.num_frames, request.height, request.width)

    @property
    def n_tokens(self) -> int:
        """Number of video tokens."""
        return math.prod(self.grid)

    @property
    def branches(self) -> int:
        """Forwards of the transformer per step: 2 with classifier-free guidance, else 1."""
        return self.kind.branches(self.request.guidance_scale, self.request.true_cfg_scale)

    def with_settings(self, **settings: Any) -> Run:
        """The same video with other settings of the method.

        Another method takes the model's settings for it, but what was chosen stays. A `top_p`
        replaces a `density`, and the other way round.

        Raises:
            ConfigError: an invalid setting, or more clusters than tokens.
        """
        chosen = dict(self.chosen)
        if settings.get("top_p") is not None and settings.get("density") is None:
            settings = settings | {"density": None}
        chosen |= settings
        SVG2Config().replace(**chosen)  # checks the names and the method
        request = self.request
        size = (request.num_frames, request.height, request.width)
        config = self.spec.config_for(*size, chosen.get("method")).replace(**chosen)
        config.check_tokens(self.n_tokens)
        return dataclasses.replace(self, config=config, chosen=chosen)

    def with_prompt(self, prompt: str, seed: int | None = None) -> Run:
        """The same run with another prompt, and with another seed if one is given.

        Raises:
            RequestError: an empty, too long or invalid prompt, or a seed out of range.
        """
        seed = self.request.seed if seed is None else seed
        request = dataclasses.replace(self.request, prompt=prompt, seed=seed)
        return dataclasses.replace(self, request=request)
