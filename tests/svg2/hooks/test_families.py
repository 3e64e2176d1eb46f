"""Every family on a small random checkpoint of its own layout, through our own loader.

One family per attention shape goes through the whole comparison; the others share its processor,
and are checked for what differs: which modules they have, and what their pipelines hand to them.
"""

import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.transformers import (
    transformer_hunyuan_video,
    transformer_hunyuan_video15,
    transformer_skyreels_v2,
)
from PIL import Image

import svg2
from svg2 import hooks
from svg2.hooks import families
from svg2.hooks.families import check_replaceable, family_of, transformers_of
from svg2.models.finding import model_spec
from svg2.models.inputs import read_image
from svg2.models.loading import as_kind, load_pipeline
from svg2.models.pipelines import call_arguments
from svg2.models.request import Request
from svg2.runs.call import read_video
from svg2.runs.compare import Comparison, compare
from svg2.runs.dense_sparse import generate_dense, generate_sparse
from svg2.runs.run import Run
from svg2.trace.file import load_trace, trace_bytes
from svg2.trace.metrics import psnr_db
from svg2.trace.video import encode_mp4
from tests.svg2.tiny_families import PROMPT, TINY, TinyFamily, save

SHAPES = ("wan2.1-t2v", "hunyuanvideo")
"""A family per attention shape."""


def shapes_first(*more: str) -> list:
    """All families; those that are no new shape, nor among `more`, run in the nightly suite."""
    names = (*SHAPES, *more, *(name for name in TINY if name not in (*SHAPES, *more)))
    ours = len(SHAPES) + len(more)
    nightly = [pytest.param(name, marks=pytest.mark.nightly) for name in names[ours:]]
    return [*names[:ours], *nightly]


class Case:
    """A family's checkpoint, loaded, with a request for it."""

    def __init__(self, family: TinyFamily, folder) -> None:
        self.family = family
        self.model = str(save(family, folder / "model"))
        self.given = given_file(family.given, folder)
        self.spec = model_spec(self.model)
        self.pipe = load_pipeline(self.spec, "fp32", "cpu")

    def run(self, **changes) -> Run:
        fields = {**self.given, **self.family.request, **changes}
        return Run.of(Request(PROMPT, model=self.model, dtype="fp32", device="cpu", **fields))

    def generate(self, num_steps: int) -> torch.Tensor:
        """Latents of the pipeline, called as its users call it."""
        run, kind = self.run(), self.run().kind
        request, given = run.request, None
        if request.image:
            given = read_image(request.image, request.width, request.height)
        if request.video:
            given = read_video(request.video, request.num_frames, request.width, request.height)
        arguments = call_arguments(kind, request, self.spec.max_sequence_length, given)
        if kind.strength is not None:
            arguments["strength"] = 1.0
        arguments["num_inference_steps"] = num_steps
        generator = torch.Generator().manual_seed(0)
        return self.pipe_of_kind(**arguments, generator=generator, output_type="latent").frames

    @property
    def pipe_of_kind(self):
        return as_kind(self.pipe, self.run().kind)


def given_file(what, folder) -> dict[str, str]:
    noise = np.random.default_rng(0).integers(0, 255, (9, 40, 60, 3), np.uint8)
    if what == "image":
        Image.fromarray(noise[0]).save(folder / "start.png")
        return {"image": str(folder / "start.png")}
    if what == "video":
        (folder / "start.mp4").write_bytes(encode_mp4(noise, 8))
        return {"video": str(folder / "start.mp4")}
    return {}


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    return Case(TINY[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def comparison(case) -> Comparison:
    return compare(case.run(), case.pipe)


@pytest.mark.parametrize("case", TINY, indirect=True)
def test_one_step_of_the_whole_budget_is_the_stock_step_and_is_undone_to_the_bit(case):
    family = case.family
    models = transformers_of(case.pipe_of_kind)
    before = [dict(model.attn_processors) for model in models]
    stock = case.generate(num_steps=1)
    assert stock.std() > 0
    config = case.spec.config.replace(top_p=1.0, warmup_fraction=0.0)
    with svg2.enable(case.pipe_of_kind, config) as handle:
        for model, processors in zip(models, before, strict=True):
            now = model.attn_processors
            replaced = {name for name in now if now[name] is not processors[name]}
            assert len(replaced) == family.layers
            assert not any("attn2" in name or "context_embedder" in name for name in replaced)
        torch.testing.assert_close(case.generate(num_steps=1), stock, rtol=0, atol=1e-4)
    stats = handle.stats
    assert stats.density == 1
    assert (stats.sparse_calls, stats.dense_calls) == (family.layers * family.branches, 0)
    assert set(stats.call[:, 1]) == set(range(family.layers))
    assert set(stats.call[:, 2]) == set(range(family.branches))
    assert stats.n_tokens == family.tokens
    assert (stats.n_text > 0) == case.spec.kind.joint_text
    assert [dict(model.attn_processors) for model in models] == before
    assert torch.equal(case.generate(num_steps=1), stock)


@pytest.mark.parametrize("case", shapes_first(), indirect=True)
def test_less_than_the_whole_budget_is_sparse_and_says_so(case, comparison):
    result, stats = comparison.result, comparison.sparse.stats
    assert comparison.sparse.frames.shape == comparison.dense.frames.shape
    assert 0 < result["density"] < 1
    assert not np.array_equal(comparison.sparse.frames, comparison.dense.frames)
    assert result["tokens"] == stats.n_tokens == case.family.tokens
    assert set(stats.call[:, 1]) == set(range(case.family.layers))
    assert set(stats.call[:, 2]) == set(range(case.family.branches))
    trace = load_trace(trace_bytes(comparison.trace))
    assert trace.n_text == result["text_tokens"] == stats.n_text
    is_joint = case.spec.kind.joint_text
    assert (stats.n_text > 0) == (result["dense_stock_seconds"] is not None) == is_joint
    assert comparison.dense.frames.std() > 0
    assert trace.records


@pytest.mark.parametrize("case", shapes_first(), indirect=True)
def test_the_whole_budget_equals_the_stock_pipeline(case, comparison):
    whole = generate_sparse(case.pipe, case.run().with_settings(top_p=1.0, warmup_fraction=0.0))
    assert whole.stats.density == 1
    assert whole.stats.dense_calls == 0
    error = psnr_db(whole.frames, comparison.dense.frames)
    assert error is None or error >= 60
    stock = comparison.result["dense_stock_psnr_db"]
    assert stock is None or stock >= 60


@pytest.mark.parametrize("case", shapes_first(), indirect=True)
def test_generations_do_not_leak_into_each_other_at_any_size(case, comparison):
    twice = case.run(height=case.spec.height * 2)
    other = generate_sparse(case.pipe, twice)
    assert other.stats.n_tokens == 2 * case.family.tokens
    assert other.frames.shape[1] == 2 * comparison.dense.frames.shape[1]
    again = generate_sparse(case.pipe, case.run())
    np.testing.assert_array_equal(again.frames, comparison.sparse.frames)
    dense = generate_dense(case.pipe, case.run())
    np.testing.assert_array_equal(dense.frames, comparison.dense.frames)


@pytest.mark.parametrize("case", shapes_first("wan2.2-t2v"), indirect=True)
def test_each_branch_and_expert_keeps_centroids_of_its_own(case):
    held: dict[int, set] = {}

    def observer(call):
        keys = handle._session.cache._entries
        held.setdefault(call.step, set()).update((k.transformer, k.layer, k.branch) for k in keys)

    config = case.spec.config.replace(warmup_fraction=0.0)
    with svg2.enable(case.pipe_of_kind, config, observer=observer) as handle:
        case.generate(num_steps=4)
    layers, branches = range(case.family.layers), range(case.family.branches)
    assert {key[1:] for key in held[0]} == {(x, b) for x in layers for b in branches}
    assert {key[0] for keys in held.values() for key in keys} == set(
        range(len(transformers_of(case.pipe_of_kind)))
    )
    assert len(handle._session.cache) == 0


@pytest.fixture
def afresh(monkeypatch):
    """Our own package of families as if nothing had imported it yet."""
    names = ("svg2.hooks.families", "svg2.hooks.families.wan", "svg2.hooks.families.hunyuan_video")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    # beartype remembers unions by name, and would take the new classes for the old
    finders = [f for f in sys.meta_path if "jaxtyping" not in type(f).__module__]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.setattr(hooks, "families", families)  # puts it back in the end


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (transformer_hunyuan_video, "HunyuanVideoTransformer3DModel"),
        (transformer_hunyuan_video, "HunyuanVideoAttnProcessor2_0"),
        (transformer_hunyuan_video15, "HunyuanVideo15Transformer3DModel"),
        (transformer_hunyuan_video15, "HunyuanVideo15AttnProcessor2_0"),
        (transformer_skyreels_v2, "SkyReelsV2Attention"),
        (transformer_skyreels_v2, "SkyReelsV2AttnProcessor"),
    ],
)
def test_a_class_that_diffusers_renames_breaks_no_other_model(
    tiny_pipeline, afresh, monkeypatch, module, name
):
    monkeypatch.setattr(module, f"{name}Renamed", getattr(module, name), raising=False)
    monkeypatch.delattr(module, name)
    attn = tiny_pipeline.transformer.blocks[0].attn1
    stock = attn.processor
    with svg2.enable(tiny_pipeline):
        assert type(attn.processor).__name__ == "WanSVG2Processor"
    assert attn.processor is stock
    assert "svg2.hooks.families.wan" in sys.modules
    assert "svg2.hooks.families.hunyuan_video" not in sys.modules, "no such model came"


def test_a_subclass_of_a_transformer_is_of_its_family():
    class Tuned(diffusers.WanVACETransformer3DModel):
        pass

    assert family_of(object.__new__(Tuned)).module == "wan"
    assert family_of(object.__new__(diffusers.HunyuanVideo15Transformer3DModel)).module == (
        "hunyuan_video"
    )
    # the same names of attention inside, and another model
    assert family_of(object.__new__(diffusers.ChronoEditTransformer3DModel)) is None


def test_only_the_stock_processor_of_diffusers_itself_is_replaced(tiny_pipeline):
    transformer = tiny_pipeline.transformer
    family, stock = family_of(transformer), transformer.blocks[0].attn1.processor
    check_replaceable(stock, family)
    for other in (
        type("WanAttnProcessor", (), {"__module__": "sageattention.diffusers"})(),
        type("Tuned", (type(stock),), {"__module__": "diffusers.models"})(),
        transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0(),
        None,
    ):
        with pytest.raises(TypeError, match=type(other).__name__) as caught:
            check_replaceable(other, family)
        assert str(caught.value).startswith("SVG2 does not support this pipeline: ")
