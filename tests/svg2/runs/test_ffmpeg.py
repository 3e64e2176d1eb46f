"""An ffmpeg that can't encode is found before the first step, and said with what to install."""

import imageio_ffmpeg
import pytest

from svg2 import cli
from svg2.errors import MediaError, RequestError
from svg2.models.request import Request
from svg2.runs.call import read_video
from svg2.runs.compare import compare
from svg2.runs.run import Run
from svg2.runs.sweep import SweepPlan, sweep
from svg2.trace.video import check_encoder

REAL = imageio_ffmpeg.get_ffmpeg_exe()
SCRIPTS = {
    "without libx264": (
        'case "$*" in *libx264*) echo "Unknown encoder \'libx264\'" >&2; exit 8;; esac\n'
        f'exec {REAL} "$@"',
        "can't encode H.264",
    ),
    "with nothing to say": ("exit 3", "ended with code 3"),
    "of another system": ("echo bad ELF >&2; exit 126", "bad ELF"),
    "that is killed": ("kill -9 $$", "ended with code -9"),
}


def install(tmp_path, monkeypatch, kind):
    """Make the only ffmpeg one of a kind, and return what is said of it."""
    path = tmp_path / "ffmpeg"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    if kind in SCRIPTS:
        script, said = SCRIPTS[kind]
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return said
    if kind == "not to be run":
        path.write_text("text")
        return "pip install"
    if kind == "nowhere":
        return "No such file"
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    monkeypatch.setattr("imageio_ffmpeg._utils._get_ffmpeg_exe", lambda: None)
    return "There is no ffmpeg: run `pip install"


KINDS = [*SCRIPTS, "not to be run", "nowhere", "none"]


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded, or ran")

    for module in ("compare", "sweep"):
        monkeypatch.setattr(f"svg2.runs.{module}.load_for", refuse)
        monkeypatch.setattr(f"svg2.runs.{module}.generate_dense", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_is_made_for_a_clip_that_cannot_be_written(
    model, tmp_path, monkeypatch, nothing_runs, capsys, kind
):
    out = tmp_path / "out"
    said = install(tmp_path, monkeypatch, kind)
    run = Run.of(Request("a red ball", model=model, device="cpu"))
    for make in (
        lambda: compare(run),
        lambda: compare(run, pipe=object()),
        lambda: sweep(SweepPlan.of(run, ["svg2"], [0.5]), tmp_path),
    ):
        with pytest.raises(MediaError) as caught:
            make()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    for asked in (
        ["compare", "--prompt", "a red ball"],
        ["compare", "--prompts", str(tmp_path / "prompts.txt")],
        ["sweep", "--prompt", "a red ball", "--top-p", "0.5", "--methods", "svg2"],
    ):
        assert cli.main([*asked, "--model", model, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not out.exists()


def test_what_was_mended_is_seen_at_once(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "nowhere")
    with pytest.raises(MediaError):
        check_encoder()
    (tmp_path / "ffmpeg").symlink_to(REAL)
    check_encoder()


def test_a_video_is_not_blamed_for_a_missing_ffmpeg(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"anything")
    install(tmp_path, monkeypatch, "none")
    with pytest.raises(RequestError, match="There is no ffmpeg: run `pip install"):
        read_video(str(tmp_path / "a.mp4"), 1, 32, 32)
