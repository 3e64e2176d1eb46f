"""Pictures of traces: the explorer, charts, contact sheets, exports. All is drawn from a trace."""

from viz.explorer_page import explorer_component, explorer_html, explorer_value
from viz.payload import explorer_payload, payload_bytes

__all__ = [
    "explorer_component",
    "explorer_html",
    "explorer_payload",
    "explorer_value",
    "payload_bytes",
]
