"""Fixtures for all tests: a real Wan pipeline with random weights, and a real browser."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401  the hook names it in a string

# Shapes in the annotations are checked in every test; this comes before anything imports these.
# The kernels' api modules are left out: they refuse wrong shapes in words of their own.
SHAPED_MODULES = (
    *(f"kernels.{op}.reference" for op in ("kmeans", "permutation", "cluster_attention")),
    *(f"svg2.method.{name}" for name in ("call", "clustering", "plan", "selection")),
    *(f"svg2.hooks.{name}" for name in ("session", "families")),
)
install_import_hook(SHAPED_MODULES, typechecker="tests.shapes.check_once")

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

WORDS = (
    "a",
    "red",
    "blue",
    "ball",
    "cube",
    "rolling",
    "to",
    "the",
    "right",
    "left",
    "over",
    "floor",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no worker is left with one at the end."""
    seconds = Counter()
    for item in items:
        slow = item.get_closest_marker("slow")
        usual = 5 if slow else 1.5 if item.get_closest_marker("browser") else 0.1
        seconds[item.path] += slow.args[0] if slow and slow.args else usual
    items.sort(key=lambda item: (-seconds[item.path], item.path))


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """One browser for all tests: Playwright's sync API runs once a process."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = "no Chromium here: install it (`apt-get install chromium`) to run browser tests"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_pipeline_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved `WanPipeline` in the layout of the built-in model; weights are random.

    The VAE compresses 8x8x2: 5 frames of 64x64 are 3 x 8 x 8 = 192 tokens. 2 heads, 3 layers.
    """
    import torch
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(vocabulary),
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=1,
                num_heads=2,
                pad_token_id=vocabulary["<pad>"],
                eos_token_id=vocabulary["</s>"],
            )
        )
        transformer = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=2,
            attention_head_dim=64,
            in_channels=8,
            out_channels=8,
            text_dim=32,
            freq_dim=32,
            ffn_dim=128,
            num_layers=3,
            rope_max_seq_len=64,
        )
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=8,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[True],
            patch_size=4,
            in_channels=48,
            out_channels=48,
            scale_factor_temporal=2,
            scale_factor_spatial=8,
            latents_mean=[0.0] * 8,
            latents_std=[1.0] * 8,
        )
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer.eval(),
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def tiny_pipeline(tiny_pipeline_path: Path):
    """A freshly loaded pipeline, so that no test sees what another did to it.

    It runs on one thread: on tensors this small more threads only wait for one another.
    """
    import torch
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(tiny_pipeline_path)
    pipe.set_progress_bar_config(disable=True)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pipe
    torch.set_num_threads(num_threads)


@pytest.fixture
def generate_tiny() -> Callable:
    """Runs a pipeline on its smallest video; float frames [batch, F, H, W, 3] in 0..1."""
    import torch

    def generate(pipe, *, seed: int = 0, **changes):
        arguments = {
            "prompt": "a red ball rolling to the right",
            "negative_prompt": "",
            "height": 64,
            "width": 64,
            "num_frames": 5,
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "max_sequence_length": 16,
            "generator": torch.Generator().manual_seed(seed),
        }
        return pipe(**{**arguments, **changes}).frames

    return generate
