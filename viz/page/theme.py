"""The look of the page: Gradio's theme in the explorer's colours, style sheet and head."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).resolve().parents[2] / "assets" / "static" / "page.css"

# A slide shows the workspace alone: `?embed=1`, and `&view=masks` or another for one view of it;
# `?present=1` goes from view to view.
HEAD = """<script>
if (['embed', 'present'].some((n) => new URLSearchParams(location.search).get(n) === '1'))
  document.documentElement.classList.add('embed');
// Gradio opens a list again for the Tab that leaves it; Escape closes it.
document.addEventListener('focusout', ({ target }) => setTimeout(() => {
  if (document.activeElement !== target && target.matches?.('[role=combobox][aria-expanded=true]'))
    target.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }));
}, 50));
</script>"""


def theme() -> gr.themes.Base:
    """The explorer's colours, so that both halves are one page; no font is fetched."""
    sans = ["-apple-system", "BlinkMacSystemFont", "Segoe UI", "Inter", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(font=sans, font_mono=mono, radius_size="md").set(
        body_background_fill="#f6f6f4",
        body_background_fill_dark="#121316",
        body_text_color="#1a1c21",
        body_text_color_dark="#ececea",
        body_text_color_subdued="#5a5f69",
        body_text_color_subdued_dark="#a3a8b2",
        background_fill_primary="#f6f6f4",
        background_fill_primary_dark="#121316",
        background_fill_secondary="#ffffff",
        background_fill_secondary_dark="#191b20",
        border_color_primary="#e2e2dd",
        border_color_primary_dark="#2d3038",
        border_color_accent="#2f56d0",
        border_color_accent_dark="#8eaeff",
        color_accent="#2f56d0",
        color_accent_soft="#eaeffc",
        color_accent_soft_dark="#232b42",
        link_text_color="#2f56d0",
        link_text_color_dark="#8eaeff",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_padding="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_title_text_color="#5a5f69",
        block_title_text_color_dark="#a3a8b2",
        block_title_text_weight="500",
        input_background_fill="#ffffff",
        input_background_fill_dark="#191b20",
        input_border_color="#c9cbd0",
        input_border_color_dark="#454a55",
        input_border_color_focus="#2f56d0",
        input_border_color_focus_dark="#8eaeff",
        input_shadow="none",
        input_shadow_focus="none",
        slider_color="#2f56d0",
        slider_color_dark="#8eaeff",
        button_primary_background_fill="#2f56d0",
        button_primary_background_fill_dark="#8eaeff",
        button_primary_background_fill_hover="#2447b4",
        button_primary_background_fill_hover_dark="#a8c1ff",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#10131c",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#191b20",
        button_secondary_border_color="#8a8f99",
        button_secondary_border_color_dark="#6d737f",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_border_width="0px",
        checkbox_label_padding="2px 0",
        checkbox_background_color_selected="#2f56d0",
        checkbox_background_color_selected_dark="#8eaeff",
        checkbox_border_color_selected="#2f56d0",
        checkbox_border_color_selected_dark="#8eaeff",
    )
