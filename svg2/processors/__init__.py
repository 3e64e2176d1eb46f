"""Model families that the method runs on: one module each, which knows its attention."""

from svg2.processors.wan import (
    WanSVG2Processor,
    check_replaceable,
    self_attentions,
)

__all__ = ["WanSVG2Processor", "check_replaceable", "self_attentions"]
