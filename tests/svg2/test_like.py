"""`compare --like`: a clip is made again from what it tells."""

import numpy as np
import pytest

from svg2 import cli
from svg2.arguments import parse_arguments
from svg2.config import SVG2Config
from svg2.models.request import Request
from svg2.trace.clip_settings import tags_of
from svg2.trace.video import encode_mp4
from tests.svg2.test_cli import folder, nothing_heavy

__all__ = ["folder", "nothing_heavy"]


@pytest.fixture
def clip_of(folder, tmp_path):
    """A function that writes a clip as `compare` does, of a request and settings."""

    def write(config=None, **asked):
        request = Request("a red ball", model=folder, seed=5, num_inference_steps=3, **asked)
        tags = tags_of(vars(request), config and config.to_dict())
        path = tmp_path / "svg2.mp4"
        path.write_bytes(encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), 8, tags=tags))
        return str(path)

    return write


@pytest.mark.parametrize("budget", [{"top_p": 0.4}, {"density": 0.2}])
def test_a_clip_is_made_again_as_it_tells_but_for_what_is_given(clip_of, folder, budget):
    config = SVG2Config(num_q_clusters=4, num_k_clusters=8, warmup_fraction=0.5, **budget)
    like = clip_of(config, guidance_scale=3.0)
    told = cli._arguments_like(like)
    again = cli._run_of(parse_arguments(["compare", "--like", like, "--out", "o"], told))
    assert again.config == config
    assert (again.request.prompt, again.request.seed) == ("a red ball", 5)
    assert (again.request.model, again.request.guidance_scale) == (folder, 3.0)
    given = ["--seed", "6", "--steps", "4", "--set", "num_q_clusters=3", "--prompt", "a cube"]
    other = cli._run_of(parse_arguments(["compare", "--like", like, "--out", "o", *given], told))
    assert other.config == config.replace(num_q_clusters=3)
    assert (other.request.prompt, other.request.seed) == ("a cube", 6)
    assert other.request.num_inference_steps == 4


def test_a_dense_clip_takes_the_models_own_method(clip_of, folder):
    like = clip_of()
    run = cli._run_of(
        parse_arguments(["compare", "--like", like, "--out", "o"], cli._arguments_like(like))
    )
    assert (
        run.config
        == cli._run_of(
            parse_arguments(["compare", "--prompt", "a", "--model", folder, "--out", "o"])
        ).config
    )


def test_the_command_reads_the_clip_and_then_checks_it(clip_of, tmp_path, capsys, nothing_heavy):
    like = ["--like", clip_of(SVG2Config())]
    assert cli.main(["compare", *like, "--width", "33", "--out", str(tmp_path / "o")]) == 2
    assert "width must be a multiple" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere.mp4", ".", __file__, "a\0b"])
def test_a_clip_that_cannot_be_read_is_one_line(name, tmp_path, capsys, nothing_heavy):
    assert cli.main(["compare", "--like", name, "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
