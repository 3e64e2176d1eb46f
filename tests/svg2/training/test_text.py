"""The text encoder learns what each word of a prompt is said of."""

import random

import pytest

from svg2.models import prompts
from svg2.models.prompts import Body, Scene
from svg2.training.pipeline import build_tokenizer
from svg2.training.text import Reader, load_text_encoder, read, say, train_text

PAIR = Scene(
    (Body("red", "ball", "roll", "right"), Body("blue", "cube", "spin", material="shiny")),
    "sandy beach",
    "sunset",
)


def test_each_word_of_an_object_is_to_tell_all_of_that_object():
    words = "a red ball rolling right and a shiny blue cube spinning on a sandy beach at sunset"
    owners = [0] * 5 + [-1] + [1] * 5 + [-1] * 6
    reading = read(build_tokenizer(), [(PAIR, list(zip(words.split(), owners, strict=True)))])
    red, blue = prompts.COLOURS.index("red"), prompts.COLOURS.index("blue")
    ball, cube = prompts.SHAPES.index("ball"), prompts.SHAPES.index("cube")
    colours, shapes, *_, grounds, skies, _ = reading.targets[0].unbind(-1)
    assert colours.tolist() == [red] * 5 + [-100] + [blue] * 5 + [-100] * 7
    assert shapes.tolist() == [ball] * 5 + [-100] + [cube] * 5 + [-100] * 7
    assert set(grounds.tolist()) == {prompts.GROUNDS.index("sandy beach")}
    assert set(skies.tolist()) == {prompts.SKIES.index("sunset")}
    assert reading.attention_mask.sum() == len(owners) + 1


def test_what_is_said_loosely_keeps_what_parses():
    for seed in range(200):
        rng = random.Random(seed)
        scene = prompts.random_scene(rng)
        said = say(scene, rng)
        assert prompts.parse(" ".join(word for word, _ in said)) == scene, seed
        for i, body in enumerate(scene.bodies):
            own = " ".join(word for word, owner in said if owner == i)
            assert prompts.parse(own).bodies == (body,), (seed, own)


@pytest.mark.slow
def test_reading_is_learnt_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("svg2.training.text._BATCH", 24)
    record = train_text(tmp_path / "text.pt", steps=175)
    untaught = Reader().accuracy(100)
    assert record["steps"] == 175
    assert record["accuracy"] > 0.7 > 0.5 > untaught
    kept, again = (load_text_encoder(tmp_path / "text.pt").state_dict() for _ in range(2))
    fresh = Reader().text_encoder.state_dict()
    assert all(kept[name].equal(again[name]) for name in kept)
    assert not any(kept[name].equal(fresh[name]) for name in kept)
