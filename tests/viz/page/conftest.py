"""The page without a browser."""

from __future__ import annotations

from tests.viz.page.fixtures import studio, traces

__all__ = ["studio", "traces"]
