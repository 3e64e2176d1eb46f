"""Pictures of traces: the explorer, charts, contact sheets, exports. Everything here is drawn from a trace alone."""

from viz.page import explorer_component, explorer_html, explorer_value
from viz.payload import explorer_payload, payload_bytes

__all__ = [
    "explorer_component",
    "explorer_value",
    "explorer_html",
    "explorer_payload",
    "payload_bytes",
]
