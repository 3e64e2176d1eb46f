"""The models of the catalogue as the command line lists them."""

from __future__ import annotations

import math
from typing import Any

from svg2.errors import RequestError
from svg2.models.catalogue import MODELS
from svg2.models.finding import model_spec
from svg2.models.loading import availability
from svg2.models.memory_estimate import GIB
from svg2.models.request import MODEL_DEFAULTS

_SIZES = (("480p", 480, 832), ("720p", 720, 1280))


def listed_models() -> list[dict[str, Any]]:
    """Every model as JSON values: availability, settings, memory, licence and source."""
    return [_description(model, title) for model, title in MODELS.items()]


def _description(model: str, title: str) -> dict[str, Any]:
    """One model as JSON values: availability, settings, memory, licence and source."""
    entry: dict[str, Any] = {"model": model, "title": title}
    try:
        spec = model_spec(model)
    except RequestError as error:
        return entry | {"available": False, "why": str(error)}
    missing = availability(spec)
    entry |= {
        "available": missing is None,
        "why": missing or spec.needs,
        "pipeline": spec.kind.name,
        "settings": {name: getattr(spec, name) for name in (*MODEL_DEFAULTS, "guidance_scale_2")},
        "config": spec.config_of().to_dict(),
    }
    row = spec.published
    if row is None:
        return entry
    memory = {}
    for name, height, width in _SIZES:
        multiple = spec.size_multiple
        height, width = (side // multiple * multiple for side in (height, width))
        need = spec.memory(spec.num_frames, height, width)
        assert need is not None
        memory[name] = {
            "tokens": math.prod(spec.grid(spec.num_frames, height, width)),
            "dense_gib": round(need.dense_peak / GIB, 2),
            "added_gib": round(need.added / GIB, 2),
            "added_share": round(need.added_share, 4),
        }
    return entry | {
        "hub_id": row.hub_id,
        "download_gb": row.download_gb,
        "license": row.license,
        "source": row.source,
        "memory": memory,
    }
