"""Pipelines loaded once: each test has a copy, so that none sees what another did to it."""

import copy

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On tensors this small more threads only wait for one another.

    For the fixtures of a module too: on some chips the number of threads moves the last bit.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def loaded_tiny_pipeline(tiny_pipeline_path):
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(tiny_pipeline_path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_pipeline(loaded_tiny_pipeline):
    return copy.deepcopy(loaded_tiny_pipeline)


@pytest.fixture
def generate_tiny(generate_tiny):
    """The same without decoding, which takes most of the time: latents [batch, C, T, Y, X]."""

    def generate(pipe, **changes):
        return generate_tiny(pipe, output_type="latent", **changes).float().numpy()

    return generate
