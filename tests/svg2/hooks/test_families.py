"""Every family on a small random checkpoint of its own layout, through our own loader."""

import numpy as np
import pytest
import torch
from PIL import Image

import svg2
from svg2.hooks.families import transformers_of
from svg2.models.finding import model_spec
from svg2.models.loading import as_kind, load_pipeline
from svg2.models.request import Request
from svg2.runs.dense_sparse import Comparison, compare, generate_dense, generate_sparse
from svg2.trace.file import load_trace, trace_bytes
from svg2.trace.metrics import psnr_db
from svg2.trace.video import encode_mp4
from tests.svg2.tiny_families import PROMPT, TINY, TinyFamily, save


class Case:
    """A family's checkpoint, loaded, with a request for it."""

    def __init__(self, family: TinyFamily, folder) -> None:
        self.family = family
        self.model = str(save(family, folder / "model"))
        self.given = given_file(family.given, folder)
        self.pipe = load_pipeline(self.model, "fp32", "cpu")
        self.spec = model_spec(self.model)

    def request(self, **changes) -> Request:
        fields = {**self.given, **self.family.request, **changes}
        return Request(PROMPT, model=self.model, dtype="fp32", device="cpu", **fields)

    def config(self, **changes) -> svg2.SVG2Config:
        return self.spec.config.replace(**changes)


def given_file(what, folder) -> dict[str, str]:
    noise = np.random.default_rng(0).integers(0, 255, (9, 40, 60, 3), np.uint8)
    if what == "image":
        Image.fromarray(noise[0]).save(folder / "start.png")
        return {"image": str(folder / "start.png")}
    if what == "video":
        (folder / "start.mp4").write_bytes(encode_mp4(noise, 8))
        return {"video": str(folder / "start.mp4")}
    return {}


@pytest.fixture(scope="module", params=TINY)
def case(request, tmp_path_factory):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Case(TINY[request.param], tmp_path_factory.mktemp(request.param))
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def comparison(case) -> Comparison:
    return compare(case.request(), "svg2", pipe=case.pipe)


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
    assert result["speedup"] == result["dense_seconds"] / result["svg2_seconds"]
    assert comparison.dense.frames.std() > 0
    assert trace.records


def test_the_whole_budget_equals_the_stock_pipeline(case, comparison):
    config = case.config(top_p=1.0, warmup_fraction=0.0)
    whole = generate_sparse(case.pipe, case.request(), "svg2", config)
    assert whole.stats.density == 1
    assert whole.stats.dense_calls == 0
    error = psnr_db(whole.frames, comparison.dense.frames)
    assert error is None or error >= 60
    stock = comparison.result["dense_stock_psnr_db"]
    assert stock is None or stock >= 60


def test_restored_to_the_bit_and_nothing_but_self_attention_is_touched(case, comparison):
    pipe = as_kind(case.pipe, case.spec.kind_for(case.request()))
    models = transformers_of(pipe)
    before = [dict(model.attn_processors) for model in models]
    with svg2.enable(pipe, case.config()):
        for model, processors in zip(models, before, strict=True):
            now = model.attn_processors
            replaced = {name for name in now if now[name] is not processors[name]}
            assert len(replaced) == case.family.layers
            assert not any("attn2" in name or "context_embedder" in name for name in replaced)
    assert [dict(model.attn_processors) for model in models] == before
    again = generate_dense(case.pipe, case.request())
    np.testing.assert_array_equal(again.frames, comparison.dense.frames)


def test_generations_do_not_leak_into_each_other_at_any_size(case, comparison):
    config = case.config()
    other = generate_sparse(case.pipe, case.request(height=case.spec.height * 2), "svg2", config)
    assert other.stats.n_tokens == 2 * case.family.tokens
    assert other.frames.shape[1] == 2 * comparison.dense.frames.shape[1]
    again = generate_sparse(case.pipe, case.request(), "svg2", config)
    np.testing.assert_array_equal(again.frames, comparison.sparse.frames)


def test_each_branch_and_expert_keeps_centroids_of_its_own(case):
    held: dict[int, set] = {}

    def observer(call):
        keys = handle._session.cache._entries
        held.setdefault(call.step, set()).update((k.transformer, k.layer, k.branch) for k in keys)

    pipe = as_kind(case.pipe, case.spec.kind_for(case.request()))
    config = case.config(warmup_fraction=0.0)
    with svg2.enable(pipe, config, observer=observer) as handle:
        generate_plain(pipe, case)
    layers, branches = range(case.family.layers), range(case.family.branches)
    assert {key[1:] for key in held[0]} == {(x, b) for x in layers for b in branches}
    assert {key[0] for keys in held.values() for key in keys} == set(
        range(len(transformers_of(pipe)))
    )
    assert len(handle._session.cache) == 0


def generate_plain(pipe, case):
    """The pipeline called as its users call it."""
    from svg2.models.inputs import read_image, read_video
    from svg2.models.pipelines import call_arguments

    request = case.request().resolve(case.spec)
    kind = case.spec.kind_for(request)
    given = None
    if request.image:
        given = read_image(request.image, request.width, request.height)
    if request.video:
        given = read_video(request.video, request.num_frames, request.width, request.height)
    arguments = call_arguments(kind, request, case.spec.max_sequence_length, given)
    return pipe(**arguments, generator=torch.Generator().manual_seed(0), output_type="np").frames
