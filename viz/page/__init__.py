"""The Gradio page around the explorer. No other part of viz knows Gradio, models or runs."""
