"""The GPU suites at toy sizes. They run once, and several tests read their records."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture(scope="session")
def toy_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The file that the GPU suite wrote at toy sizes."""
    from svg2.bench.gpu import run_gpu_suite

    return _written_by(run_gpu_suite, tmp_path_factory, rounds=3)


@pytest.fixture(scope="session")
def toy_e2e(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The file that the end-to-end suite wrote at toy sizes."""
    from svg2.bench.e2e import run_e2e_suite

    return _written_by(run_e2e_suite, tmp_path_factory, rounds=2)


def _written_by(suite, tmp_path_factory: pytest.TempPathFactory, rounds: int) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("toy") / "record.json"
    record = suite(path, lambda text: None, toy=True, rounds=rounds)
    assert json.loads(path.read_text()) == record
    return record
