"""The tiny pipeline as a model folder, for runs on one thread."""

import pytest
import torch

from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from svg2.models.request import Request
from svg2.runs.run import Run
from tests.svg2.pipelines import make_model_folder

PROMPT = "a red ball rolling to the right"


@pytest.fixture(scope="module")
def model(tiny_pipeline_path, tmp_path_factory):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield str(make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny"))
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def pipe(model):
    return load_pipeline(model_spec(model), "fp32", "cpu")


@pytest.fixture(scope="module")
def run(model):
    return Run.of(Request(PROMPT, model=model, dtype="fp32", device="cpu"))
