"""Prompts and scenes translate into each other, and the grammar knows what it does not know."""

import random

import pytest

from svg2.training import grammar
from svg2.training.grammar import GrammarError, Scene


@pytest.mark.parametrize("seed", range(200))
def test_a_described_scene_parses_back(seed):
    rng = random.Random(seed)
    scene = grammar.random_scene(rng)
    prompt = grammar.describe(scene, rng)
    assert grammar.parse(prompt) == scene
    assert grammar.in_grammar(prompt)


@pytest.mark.parametrize("prompt", grammar.EXAMPLES)
def test_examples_are_in_the_grammar(prompt):
    assert grammar.in_grammar(prompt)


def test_synonyms_fold_and_order_is_free():
    asked = Scene("purple", "cube", "left", "gray floor")
    assert grammar.parse("Over a grey floor: a violet box, sliding to the left!") == asked


@pytest.mark.parametrize("prompt", ["a dog in the park", "a ball", "a red and a blue ball", ""])
def test_no_single_object_is_an_error_and_outside(prompt):
    with pytest.raises(GrammarError, match="one object"):
        grammar.parse(prompt)
    assert not grammar.in_grammar(prompt)


def test_unknown_words_are_named_once_and_put_a_prompt_outside():
    prompt = "a red ball rolling to the right over a frozen frozen lake"
    assert grammar.unknown_words(prompt) == ("frozen", "lake")
    assert not grammar.in_grammar(prompt)


def test_an_unknown_part_of_a_scene_names_the_known_ones():
    with pytest.raises(GrammarError, match="red, orange"):
        Scene("beige", "ball", "right", "gray floor")


def test_a_tenth_or_so_of_the_scenes_is_held_out():
    scenes = [grammar.random_scene(random.Random(i)) for i in range(2000)]
    assert 0.05 < sum(map(grammar.held_out, scenes)) / len(scenes) < 0.15
