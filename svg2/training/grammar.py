"""The prompt grammar of the built-in model: what it was trained to understand, and nothing more.

    a [shiny|matte] COLOUR SHAPE MOTION over|on a GROUND

A prompt parses into a `Scene`; `describe` writes the prompt of a scene. The tokenizer knows
the words of this file and maps all others to one unknown token.
"""

import random
import re
from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
SHAPES = ("ball", "cube", "cylinder", "cone")
MATERIALS = ("matte", "shiny")
GROUNDS = ("checkered floor", "wooden floor", "grassy field", "gray floor")
MOTIONS = ("right", "left", "bounce", "spin", "still")

_MOTION_PHRASES = {
    "right": ("rolling to the right", "sliding to the right", "moving to the right"),
    "left": ("rolling to the left", "sliding to the left", "moving to the left"),
    "bounce": ("bouncing",),
    "spin": ("spinning",),
    "still": ("standing still", "resting"),
}
_SYNONYMS = {
    "grey": "gray",
    "sphere": "ball",
    "box": "cube",
    "block": "cube",
    "violet": "purple",
    "glossy": "shiny",
    "checkerboard": "checkered",
    "lawn": "field",
    "wood": "wooden",
    "jumping": "bouncing",
    "rotating": "spinning",
    "rightwards": "right",
    "leftwards": "left",
}
_FILLER = frozenset("a an the to over on across in of is stands still floor field".split())
_GROUND_KEYS = {"checkered": 0, "wooden": 1, "grassy": 2, "grass": 2, "gray": 3, "plain": 3}

EXAMPLES = (
    "a red ball rolling to the right over a checkered floor",
    "a shiny blue cube sliding to the left over a wooden floor",
    "a yellow cube spinning on a grassy field",
    "a purple ball bouncing on a gray floor",
    "a green cylinder sliding to the right over a wooden floor",
    "a matte white cube standing still on a checkered floor",
)


class GrammarError(ValueError):
    """The prompt does not describe a scene of the grammar."""


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for. Placement, speed and light are drawn at rendering time."""

    colour: str
    shape: str
    motion: str
    ground: str
    material: str = "matte"

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.colour, COLOURS, "colour"),
            (self.shape, SHAPES, "shape"),
            (self.motion, MOTIONS, "motion"),
            (self.ground, GROUNDS, "ground"),
            (self.material, MATERIALS, "material"),
        ):
            if value not in known:
                raise GrammarError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def words(prompt: str) -> list[str]:
    """Lower-case words of `prompt`, punctuation dropped, synonyms folded."""
    found: list[str] = re.findall(r"[a-z]+", prompt.lower())
    return [_SYNONYMS.get(word, word) for word in found]


def vocabulary() -> tuple[str, ...]:
    """Every word that a prompt of the grammar can hold, sorted."""
    parts = [*COLOURS, *SHAPES, *MATERIALS, *GROUNDS, *_FILLER]
    parts += [phrase for phrases in _MOTION_PHRASES.values() for phrase in phrases]
    return tuple(sorted({w for part in parts for w in part.split()}))


def parse(prompt: str) -> Scene:
    """Read `prompt` as a scene, in any word order; missing parts mean matte, still, gray floor.

    Raises:
        GrammarError: no known colour or no known shape, or two of either.
    """
    found = words(prompt)
    grounds = [g for w, g in _GROUND_KEYS.items() if w in found]
    # "gray" and "grassy" name grounds only; no object has these colours.
    colours = [w for w in found if w in COLOURS]
    shapes = [w for w in found if w in SHAPES]
    if len(set(colours)) != 1 or len(set(shapes)) != 1:
        raise GrammarError(
            "the built-in model knows one object with one colour "
            f"({', '.join(COLOURS)}) and one shape ({', '.join(SHAPES)})"
        )
    if "right" in found:
        motion = "right"
    elif "left" in found:
        motion = "left"
    elif "bouncing" in found:
        motion = "bounce"
    elif "spinning" in found:
        motion = "spin"
    else:
        motion = "still"
    return Scene(
        colour=colours[0],
        shape=shapes[0],
        motion=motion,
        ground=GROUNDS[grounds[0] if grounds else 3],
        material="shiny" if "shiny" in found else "matte",
    )


def unknown_words(prompt: str) -> tuple[str, ...]:
    """Words of `prompt` that the grammar does not hold, in order, each once."""
    known = set(vocabulary()) | set(_GROUND_KEYS)
    return tuple(dict.fromkeys(w for w in words(prompt) if w not in known))


def in_grammar(prompt: str) -> bool:
    """Whether the built-in model was trained on prompts like this one."""
    try:
        parse(prompt)
    except GrammarError:
        return False
    return not unknown_words(prompt)


def describe(scene: Scene, rng: random.Random) -> str:
    """A prompt for `scene`, with the wording drawn from `rng`."""
    phrase = rng.choice(_MOTION_PHRASES[scene.motion])
    if phrase.startswith("rolling") and scene.shape != "ball":
        phrase = phrase.replace("rolling", "sliding")
    material = f"{scene.material} " if scene.material == "shiny" or rng.random() < 0.3 else ""
    place = "over" if scene.motion in ("right", "left") else "on"
    return f"a {material}{scene.colour} {scene.shape} {phrase} {place} a {scene.ground}"


def held_out(scene: Scene) -> bool:
    """Combinations kept out of training, so that evaluation asks for something never seen."""
    key = COLOURS.index(scene.colour) + 2 * SHAPES.index(scene.shape)
    return (key + 3 * MOTIONS.index(scene.motion) + GROUNDS.index(scene.ground)) % 10 == 7


def random_scene(rng: random.Random) -> Scene:
    """A scene of the grammar; only a cube spins, since on a round shape it would not show."""
    shape = rng.choice(SHAPES)
    motion = rng.choice(("right", "left", "right", "left", "bounce", "spin", "still"))
    if shape != "cube" and motion == "spin":
        motion = "bounce"
    return Scene(rng.choice(COLOURS), shape, motion, rng.choice(GROUNDS), rng.choice(MATERIALS))


def random_prompt(seed: int) -> str:
    """A prompt of the grammar for `seed`."""
    rng = random.Random(seed)
    return describe(random_scene(rng), rng)
