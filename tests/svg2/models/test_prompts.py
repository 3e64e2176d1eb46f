"""Prompts and scenes translate into each other, and a model's tokenizer says what it knows."""

import random
from pathlib import Path

import pytest

from svg2.models import prompts as grammar
from svg2.models.finding import BUILTIN_FOLDER
from svg2.models.prompts import Body, GrammarError, Knowledge, Scene
from svg2.training.pipeline import build_tokenizer

EVERYTHING = Knowledge(frozenset(grammar.vocabulary()))


@pytest.mark.parametrize("seed", range(300))
def test_a_described_scene_parses_back(seed):
    rng = random.Random(seed)
    scene = grammar.random_scene(rng)
    prompt = grammar.describe(scene, rng)
    assert grammar.parse(prompt) == scene
    assert EVERYTHING.covers(prompt)


def test_random_scenes_show_every_part_of_the_grammar():
    scenes = [grammar.random_scene(random.Random(i)) for i in range(2000)]
    bodies = [body for scene in scenes for body in scene.bodies]
    assert {b.colour for b in bodies} == set(grammar.COLOURS)
    assert {b.shape for b in bodies} == set(grammar.SHAPES)
    assert {b.motion for b in bodies} == set(grammar.MOTIONS)
    assert {b.direction for b in bodies} == {"", *grammar.DIRECTIONS}
    assert {s.ground for s in scenes} == set(grammar.GROUNDS)
    assert {s.sky for s in scenes} == set(grammar.SKIES)
    assert {s.camera for s in scenes} == set(grammar.CAMERAS)
    assert {len(s.bodies) for s in scenes} == {1, 2}


@pytest.mark.parametrize("prompt", grammar.EXAMPLES)
def test_examples_are_in_the_grammar(prompt):
    assert EVERYTHING.covers(prompt)


def test_synonyms_fold_and_order_is_free():
    asked = Scene((Body("purple", "cube", "slide", "left"),), "gray floor")
    assert grammar.parse("Over a grey floor: a violet box, sliding to the left!") == asked
    both = grammar.parse("the camera pans left, a red ball rolling right, a blue donut on grass")
    assert both.bodies == (Body("red", "ball", "roll", "right"), Body("blue", "ring"))
    assert (both.ground, both.camera) == ("grassy field", "pan left")


def test_moving_means_rolling_for_a_ball_and_sliding_otherwise():
    assert grammar.parse("a red ball moving to the left").bodies[0].motion == "roll"
    assert grammar.parse("a red ring moving to the left").bodies[0].motion == "slide"
    assert grammar.parse("a red cube rolling to the left").bodies[0].motion == "slide"


@pytest.mark.parametrize(
    "prompt", ["a dog in the park", "a ball", "a red and blue ball", "", "red ball " * 3]
)
def test_a_prompt_without_a_scene_is_an_error_and_outside_the_grammar(prompt):
    with pytest.raises(GrammarError, match="one colour"):
        grammar.parse(prompt)
    assert not EVERYTHING.covers(prompt)


def test_unknown_words_are_named_once_and_put_a_prompt_outside():
    prompt = "a red ball rolling to the right over a frozen frozen lake"
    assert EVERYTHING.unknown_words(prompt) == ("frozen", "lake")
    assert not EVERYTHING.covers(prompt)


def test_an_unknown_part_of_a_scene_names_the_known_ones():
    with pytest.raises(GrammarError, match="red, orange"):
        Body("beige", "ball")
    with pytest.raises(GrammarError, match="can't roll"):
        Body("red", "cube", "roll", "left")
    with pytest.raises(GrammarError, match="direction"):
        Body("red", "cube", "spin", "left")


def test_a_scene_is_the_same_after_json_or_two_mirrors():
    for i in range(50):
        scene = grammar.random_scene(random.Random(i))
        assert Scene.from_json(scene.to_json()) == scene
        assert scene.mirrored().mirrored() == scene
        assert grammar.held_out(scene.mirrored()) == grammar.held_out(scene)


def test_a_tenth_or_so_of_the_scenes_is_held_out_and_none_is_trained_on():
    scenes = [grammar.random_scene(random.Random(i)) for i in range(2000)]
    assert 0.05 < sum(map(grammar.held_out, scenes)) / len(scenes) < 0.2
    trained = [grammar.training_scene(str(i))[0] for i in range(500)]
    assert not any(map(grammar.held_out, trained))


def test_a_model_knows_the_words_of_its_tokenizer(tmp_path: Path):
    words = [w for w in grammar.vocabulary() if w not in ("cyan", "and", "ring")]
    build_tokenizer(words).save_pretrained(tmp_path / "tokenizer")
    known = grammar.knowledge_of(tmp_path)
    assert known.words == frozenset(words)
    assert "cyan" not in known.colours
    assert "red" in known.colours
    assert "ring" not in known.shapes
    assert known.max_bodies == 1
    assert known.unknown_words("a cyan ring spinning") == ("cyan", "ring")
    assert known.covers("a red ball bouncing")
    assert not known.covers("a red ball and a blue cube")


def test_the_shipped_model_is_offered_only_what_it_knows():
    known = grammar.knowledge_of(BUILTIN_FOLDER)
    assert known.examples
    assert all(map(known.covers, known.examples))
    for seed in range(20):
        prompt = known.random_prompt(seed)
        assert known.covers(prompt)
        assert prompt == known.random_prompt(seed)
        # These weights were trained on the usual wording.
        assert any(f" a {ground}" in prompt for ground in grammar.GROUNDS)
        assert prompt.count("left") + prompt.count("right") == prompt.count("to the ")
