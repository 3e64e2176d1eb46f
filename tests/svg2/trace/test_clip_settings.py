"""What a clip was made with, written into the clip and read back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from svg2.config import SVG2Config
from svg2.errors import MediaError, RequestError
from svg2.models.request import Request
from svg2.trace.clip_settings import is_mp4, read_settings, tags_of
from svg2.trace.video import encode_mp4

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)

PROMPTS = {
    "plain": "a red ball",
    "signs of the format": "a = b; # [c] \\ d",
    "ends in a backslash": "a ball\\",
    "two lines": "a ball\n[STREAM]\ncomment=none",
    "quotes": 'a "red" ball, it\'s {round}',
    "other scripts": "ein Würfel 球 🎞️",
    "long": "ball " * 390,
}


def clip(tags) -> bytes:
    return encode_mp4(FRAMES, 8, tags=tags)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_request_and_settings_come_back_as_they_were(prompt: str) -> None:
    asked = {**vars(Request(prompt, seed=7, width=64, guidance_scale=2.5)), "fps": 8}
    config = SVG2Config(top_p=0.37, num_q_clusters=5).to_dict()
    data = clip(tags_of(asked, config))
    assert is_mp4(data)
    request, settings, started = read_settings(data)
    assert settings == config
    assert started == []
    assert Request(**request) == Request(prompt, seed=7, width=64, guidance_scale=2.5)


def test_a_dense_clip_has_no_settings_and_no_files_of_this_machine() -> None:
    asked = vars(Request("a fox")) | {"image": "/home/somebody/private.png"}
    data = clip(tags_of(asked))
    request, settings, started = read_settings(data)
    assert settings == {}
    assert started == ["image"]
    assert "image" not in request
    assert b"private" not in data


GOOD = {"svg2_lab": 1, "request": {"prompt": "a fox"}, "config": {}}
BAD = {
    "no comment": "",
    "no JSON": "a fox",
    "nested": "[" * 50_000,
    "another program's": json.dumps({"request": {"prompt": "a fox"}}),
    "a later version": json.dumps(GOOD | {"svg2_lab": 2}),
    "no prompt": json.dumps(GOOD | {"request": {"seed": 1}}),
    "a prompt that is no text": json.dumps(GOOD | {"request": {"prompt": 3}}),
    "no request": json.dumps({"svg2_lab": 1}),
    "a field of files": json.dumps(GOOD | {"request": {"prompt": "a", "image": "/etc/passwd"}}),
    "a list": json.dumps(GOOD | {"config": [1]}),
    "a value that is a list": json.dumps(GOOD | {"config": {"top_p": [0.9]}}),
    "a name that is none": json.dumps(GOOD | {"config": {"top p=0.3": 1}}),
    "too much": json.dumps(GOOD | {"more": "x" * 110_000}),
}


@pytest.mark.parametrize("comment", BAD.values(), ids=BAD.keys())
def test_a_clip_that_tells_nothing_is_one_sentence(comment: str) -> None:
    with pytest.raises(MediaError, match="clip") as refused:
        read_settings(clip({"title": "a fox", "comment": comment}))
    assert str(refused.value).count(".") == 1


@pytest.mark.parametrize("data", [b"", b"not a clip", b"\0\0\0\x18ftypisom" + b"\0" * 40])
def test_what_is_no_video_is_one_sentence(data: bytes) -> None:
    with pytest.raises(MediaError):
        read_settings(data)


def test_no_prompt_holds_what_a_tag_cannot() -> None:
    with pytest.raises(RequestError):
        Request("a \0 ball")
