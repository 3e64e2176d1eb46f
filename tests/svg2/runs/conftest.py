"""The tiny pipeline as a model folder, for runs on one thread."""

import pytest
import torch

from tests.svg2.pipelines import make_model_folder


@pytest.fixture(scope="module")
def model(tiny_pipeline_path, tmp_path_factory):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield str(make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny"))
    torch.set_num_threads(num_threads)
