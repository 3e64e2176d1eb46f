"""A clone without Git LFS has pointers in place of files: each is named, with what to do."""

import logging
import shutil

import pytest

from svg2 import cli
from svg2.errors import ModelUnavailable, RequestError, TraceError
from svg2.git_lfs import is_pointer
from svg2.models.finding import model_spec
from svg2.models.inputs import check_image, check_video, read_image
from svg2.models.loading import availability, load_pipeline
from svg2.runs.batch import read_prompts
from svg2.runs.call import read_video
from svg2.trace.file import load_trace
from tests.svg2.pipelines import make_model_folder
from viz.__main__ import main as viz_main
from viz.page.open_traces import read_traces

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)


@pytest.fixture
def pointer(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(POINTER)
    return path


def test_only_a_whole_small_pointer_is_one():
    assert is_pointer(POINTER)
    assert is_pointer(POINTER.replace(b"oid", b"ext-0-foo sha256:0\noid"))
    assert not is_pointer(POINTER + bytes(1024))
    assert not is_pointer(b"a prompt about version https://git-lfs.github.com/spec/")


@pytest.mark.parametrize(
    "name",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_weights_that_are_pointers_are_named(tiny_pipeline_path, tmp_path, name):
    folder = make_model_folder(tiny_pipeline_path, tmp_path / "tiny")
    assert (folder / name).is_file()
    (folder / name).write_bytes(POINTER)
    spec = model_spec(str(folder))
    for say in (lambda: load_pipeline(spec), lambda: _raise(availability(spec))):
        with pytest.raises(ModelUnavailable, match=rf"Tiny is not whole: {name}.*git lfs pull"):
            say()


def _raise(sentence):
    raise ModelUnavailable(sentence)


@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json", "lab.json"])
def test_configurations_that_are_pointers_are_named(tiny_pipeline_path, tmp_path, name):
    folder = make_model_folder(tiny_pipeline_path, tmp_path / "tiny")
    (folder / name).write_bytes(POINTER)
    with pytest.raises(RequestError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        model_spec(str(folder))


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (load_trace, TraceError),
        (lambda path: load_trace(path.read_bytes()), TraceError),
        (lambda path: check_image(str(path)), RequestError),
        (lambda path: read_image(str(path), 32, 32), RequestError),
        (lambda path: check_video(str(path)), RequestError),
        (lambda path: read_video(str(path), 1, 32, 32), RequestError),
        (lambda path: read_prompts(str(path)), RequestError),
    ],
)
def test_files_that_are_pointers_are_refused_in_one_sentence(pointer, read, error):
    with pytest.raises(error, match=r"is a Git LFS pointer, .*git lfs pull") as caught:
        read(pointer)
    assert "\n" not in str(caught.value)


def test_the_commands_and_the_page_say_it(pointer, tmp_path, capsys, caplog):
    assert viz_main(["export", str(pointer), "--out", str(tmp_path / "out.zip")]) == 2
    assert "git lfs pull" in capsys.readouterr().err
    assert cli.main(["compare", "--prompts", str(pointer), "--out", str(tmp_path / "out")]) == 2
    assert "git lfs pull" in capsys.readouterr().err
    shutil.copy(pointer, tmp_path / "ready.npz")
    with caplog.at_level(logging.WARNING):
        assert read_traces(tmp_path) == []
    assert "ready.npz" in caplog.text
    assert "git lfs pull" in caplog.text
    assert "Traceback" not in caplog.text
