"""A studio with a tiny model, and open traces: for the page's own tests and the browser's."""

from __future__ import annotations

from pathlib import Path

import pytest

from svg2.method.selection import ROUTED_METHOD
from svg2.runs.jobs import Studio
from tests.svg2.pipelines import make_model_folder
from tests.traces import make_synthetic_trace
from viz.page.open_traces import READY_MADE, OpenTrace, OpenTraces


@pytest.fixture(scope="session")
def studio(tiny_pipeline_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("studio") / "tiny"
    return Studio(str(make_model_folder(tiny_pipeline_path, folder, method=ROUTED_METHOD)))


@pytest.fixture(scope="session")
def traces() -> OpenTraces:
    """Two ready-made traces, the second of another prompt."""
    first = make_synthetic_trace(grid=(5, 6, 7), num_q=7, num_k=15, steps=5)
    second = make_synthetic_trace(grid=(3, 6, 6), num_q=5, num_k=9, steps=5, seed=1)
    second.request["prompt"] = "a blue cube bouncing"
    named = zip((first, second), ("red-ball", "blue-cube"), strict=True)
    return OpenTraces([OpenTrace(trace, READY_MADE, name) for trace, name in named])
