"""A file of prompts: results of the same run are kept, others are made again."""

import dataclasses
import json

import pytest
import torch

from svg2.errors import Cancelled, RequestError
from svg2.models.request import Request
from svg2.runs.batch import PromptFolders, compare_all, read_prompts
from svg2.runs.distributed import Processes, processes
from svg2.runs.progress import Watch
from svg2.runs.run import Run

PROMPTS = ["a red ball", "a blue cube", "the floor"]
ALONE = Processes(0, 1, 0)


def run(model, folder, share=ALONE, dtype="auto", **watch):
    request = Request(PROMPTS[0], model=model, device="cpu", num_inference_steps=2, dtype=dtype)
    return compare_all(PromptFolders(folder, PROMPTS, Run.of(request)), share, Watch(**watch))


@pytest.mark.slow
def test_a_second_run_continues_where_the_first_stopped(model, tmp_path):
    with pytest.raises(Cancelled):
        run(model, tmp_path, should_cancel=(tmp_path / "0000" / "result.json").exists)
    assert (tmp_path / "0000" / "result.json").is_file()
    assert not (tmp_path / "results.json").exists()
    assert run(model, tmp_path)["made"] == [1, 2]
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [result["prompt"] for result in results] == PROMPTS
    assert run(model, tmp_path) == {"prompts": 3, "made": [], "left": 0, "rank": 0}
    (tmp_path / "0001" / "result.json").write_text("{")
    assert run(model, tmp_path)["made"] == [1]
    with pytest.raises(Cancelled):
        run(model, tmp_path, dtype="fp32", should_cancel=lambda: True)
    assert not (tmp_path / "results.json").exists(), "another precision is another result"


def test_processes_take_turns(model, tmp_path):
    second = run(model, tmp_path, Processes(1, 2, 1))
    assert (second["made"], second["left"]) == ([1], 2)
    assert not (tmp_path / "results.json").exists()
    first = run(model, tmp_path, Processes(0, 2, 0))
    assert (first["made"], first["left"]) == ([0, 2], 0)
    assert (tmp_path / "results.json").is_file()


def test_prompts_are_the_lines_of_a_text(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# what to make\n\n a ball \nthe floor\n")
    assert read_prompts(str(path)) == ["a ball", "the floor"]
    for text in (b"", b"# none\n", b"\xff\xfe\n", b"x" * 5000):
        path.write_bytes(text)
        with pytest.raises(RequestError):
            read_prompts(str(path))
    with pytest.raises(RequestError):
        read_prompts(str(tmp_path / "nowhere.txt"))


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")
SEPARATORS = {
    **{f"U+{ord(c):04X}": c for c in "\u2028\u2029\x0b\x0c\x1c\x1d\x1e\x85\ufeff"},
    "tab": "\t",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
def test_a_prompt_is_one_line_whatever_it_holds(tmp_path, encoding, separator):
    path = tmp_path / "prompts.txt"
    text = (
        f"a ball{separator}on a floor\r\n{separator}# no prompt\r{separator}\nthe floor{separator}"
    )
    path.write_bytes(text.encode(encoding))
    assert read_prompts(str(path)) == ["a ball on a floor", "the floor"]


def test_the_mark_at_the_start_hides_no_comment_and_joins_no_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    part = "# from Notepad\r\na ball\r\n".encode("utf-8-sig")
    path.write_bytes(part + part)
    assert read_prompts(str(path)) == ["a ball", "a ball"]
    path.write_bytes("a ball".encode("utf-16-le"))  # no mark
    with pytest.raises(RequestError, match="valid text"):
        read_prompts(str(path))
    path.write_bytes("Élan".encode("latin-1"))
    with pytest.raises(RequestError, match="save them as UTF-8"):
        read_prompts(str(path))


def test_processes_are_read_from_the_launchers_environment(monkeypatch):
    assert processes() == ALONE
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert processes() == Processes(3, 8, 1)
    assert not processes().is_first
    assert processes().device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes().device("auto") == "cuda:1"
    assert dataclasses.replace(ALONE).device("auto") == "auto"
