"""The prompt grammar of the built-in model.

    BODY [and BODY] over|on a GROUND [SKY] [CAMERA]

    BODY    a [shiny|matte] COLOUR SHAPE MOTION
    MOTION  rolling|sliding|moving WAY, bouncing, spinning, orbiting, standing still
    WAY     to the left, to the right, towards the viewer, away from the viewer
    SKY     under a clear sky, at sunset, under a cloudy sky
    CAMERA  as the camera pans to the left|right, as the camera zooms in

`parse` reads a prompt, in almost any word order, as a `Scene`; `describe` writes a prompt for one.
A trained model may know less than the whole grammar. Its `Knowledge` comes from the words of its
tokenizer.
"""

import functools
import hashlib
import json
import random
import re
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white")
SHAPES = ("ball", "cube", "cylinder", "cone", "pyramid", "ring")
MATERIALS = ("matte", "shiny")
GROUNDS = ("checkered floor", "wooden floor", "grassy field", "gray floor", "sandy beach")
SKIES = ("clear", "sunset", "cloudy")
MOTIONS = ("roll", "slide", "bounce", "spin", "orbit", "still")
DIRECTIONS = ("left", "right", "towards", "away")
CAMERAS = ("still", "pan left", "pan right", "zoom in")
MAX_BODIES = 2

ROLLING_SHAPES = ("ball", "cylinder", "ring")
DIRECTED = ("roll", "slide")
_VERBS = {
    "roll": ("rolling",),
    "slide": ("sliding",),
    "bounce": ("bouncing",),
    "spin": ("spinning", "spinning in place"),
    "orbit": ("orbiting", "moving in a circle"),
    "still": ("standing still", "resting"),
}
# The first of several phrases is the usual one.
_WAYS = {
    "left": ("to the left", "left", "leftwards"),
    "right": ("to the right", "right", "rightwards"),
    "towards": ("towards the viewer", "towards the camera"),
    "away": ("away from the viewer", "away"),
}
_SKY_PHRASES = {
    "clear": "under a clear sky",
    "sunset": "at sunset",
    "cloudy": "under a cloudy sky",
}
_CAMERA_PHRASES = {
    "pan left": ("as the camera pans to the left", "with the camera panning left"),
    "pan right": ("as the camera pans to the right", "with the camera panning right"),
    "zoom in": ("as the camera zooms in", "with the camera zooming in"),
}
_MIRROR = {"left": "right", "right": "left", "pan left": "pan right", "pan right": "pan left"}
_SYNONYMS = {
    "grey": "gray",
    "sphere": "ball",
    "box": "cube",
    "block": "cube",
    "torus": "ring",
    "donut": "ring",
    "violet": "purple",
    "magenta": "pink",
    "turquoise": "cyan",
    "glossy": "shiny",
    "dull": "matte",
    "checkerboard": "checkered",
    "wood": "wooden",
    "grass": "grassy",
    "sand": "sandy",
    "plain": "gray",
    "overcast": "cloudy",
    "jumping": "bouncing",
    "rotating": "spinning",
    "turning": "spinning",
    "circling": "orbiting",
    "rolls": "rolling",
    "slides": "sliding",
    "moves": "moving",
    "bounces": "bouncing",
    "spins": "spinning",
    "orbits": "orbiting",
    "toward": "towards",
    "rightwards": "right",
    "leftwards": "left",
    "panning": "pans",
    "zooming": "zooms",
}
# Synonyms that fit only into certain phrases; all others may replace their word anywhere.
_PHRASED = ("rightwards", "leftwards", "panning", "zooming")
_SPOKEN = tuple(word for word in _SYNONYMS if word not in _PHRASED)
SMALL_WORDS = frozenset("a an the to over across in of is on stands with while".split())
_GROUND_KEYS = {ground.split()[0]: ground for ground in GROUNDS}

# The first ones need the fewest words: models with a small vocabulary know those.
EXAMPLES = (
    "a red ball rolling to the right over a checkered floor",
    "a shiny blue cube sliding to the left over a wooden floor",
    "a yellow cube spinning on a grassy field",
    "a purple ball bouncing on a gray floor",
    "a green cylinder sliding to the right over a wooden floor",
    "a matte white cube standing still on a checkered floor",
    "a red ball rolling to the right and a shiny blue cube spinning over a checkered floor",
    "a pink ring rolling to the left over a sandy beach at sunset",
    "a shiny green pyramid spinning and an orange ball orbiting on a gray floor",
    "a cyan cone sliding towards the viewer over a grassy field under a cloudy sky",
    "a yellow cylinder standing still on a wooden floor as the camera pans to the right",
    "a shiny purple ball rolling away from the viewer over a gray floor as the camera zooms in",
)


class GrammarError(ValueError):
    """Prompt or scene outside the grammar."""


@dataclass(frozen=True)
class Body:
    """One object of a scene. Rendering draws its place, size and speed at random.

    `direction` is empty unless the motion is `roll` or `slide`.

    Raises:
        GrammarError: an unknown value, or an object that can't move like that.
    """

    colour: str
    shape: str
    motion: str = "still"
    direction: str = ""
    material: str = "matte"

    def __post_init__(self) -> None:
        _check("colour", self.colour, COLOURS)
        _check("shape", self.shape, SHAPES)
        _check("motion", self.motion, MOTIONS)
        _check("material", self.material, MATERIALS)
        _check("direction", self.direction, DIRECTIONS if self.motion in DIRECTED else ("",))
        if self.motion == "roll" and self.shape not in ROLLING_SHAPES:
            raise GrammarError(f"a {self.shape} can't roll; {', '.join(ROLLING_SHAPES)} can")


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for. Rendering draws placement, speed and light at random.

    Raises:
        GrammarError: an unknown value, no object, or more than two.
    """

    bodies: tuple[Body, ...]
    ground: str = "gray floor"
    sky: str = "clear"
    camera: str = "still"

    def __post_init__(self) -> None:
        if not 1 <= len(self.bodies) <= MAX_BODIES:
            raise GrammarError(f"a scene has 1 to {MAX_BODIES} objects, not {len(self.bodies)}")
        _check("ground", self.ground, GROUNDS)
        _check("sky", self.sky, SKIES)
        _check("camera", self.camera, CAMERAS)

    def mirrored(self) -> "Scene":
        """The scene that a clip's mirror image shows."""
        bodies = tuple(
            Body(**(asdict(b) | {"direction": _MIRROR.get(b.direction, b.direction)}))
            for b in self.bodies
        )
        return Scene(bodies, self.ground, self.sky, _MIRROR.get(self.camera, self.camera))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        fields: dict[str, Any] = json.loads(text)
        bodies = tuple(Body(**body) for body in fields.pop("bodies"))
        return cls(bodies=bodies, **fields)


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise GrammarError(f"unknown {what} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Knowledge:
    """What a trained model understands: the words of its tokenizer."""

    words: frozenset[str]

    @property
    def colours(self) -> tuple[str, ...]:
        return self._of(COLOURS)

    @property
    def shapes(self) -> tuple[str, ...]:
        return self._of(SHAPES)

    @property
    def grounds(self) -> tuple[str, ...]:
        return self._of(GROUNDS)

    @property
    def max_bodies(self) -> int:
        return MAX_BODIES if "and" in self.words else 1

    @property
    def examples(self) -> tuple[str, ...]:
        return tuple(prompt for prompt in EXAMPLES if self.covers(prompt))

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """Words of `prompt` that the model was not trained on, in order, each once."""
        spoken: list[str] = re.findall(r"[a-z]+", prompt.lower())
        return tuple(dict.fromkeys(w for w in spoken if w not in self.words))

    def covers(self, prompt: str) -> bool:
        """Whether the model was trained on prompts like this one."""
        if self.unknown_words(prompt):
            return False
        try:
            return len(parse(prompt).bodies) <= self.max_bodies
        except GrammarError:
            return False

    def random_prompt(self, seed: int) -> str:
        """A prompt that the model knows; a seed always gives the same one."""
        rng = random.Random(seed)
        while True:
            prompt = describe(random_scene(rng), rng, loosely=False)
            if self.covers(prompt):
                return prompt

    def _of(self, phrases: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(p for p in phrases if set(p.split()) <= self.words)


def tokens_of(folder: Path) -> list[str]:
    """The tokens of a pipeline's tokenizer, in the order of their ids.

    Raises:
        OSError, ValueError, KeyError, TypeError: a missing or unreadable tokenizer.
    """
    content = json.loads((folder / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    ids: dict[str, int] = content["model"]["vocab"]
    return sorted(ids, key=lambda token: ids[token])


@functools.cache
def knowledge_of(folder: Path) -> Knowledge:
    """What the model in `folder` knows; the whole grammar if its tokenizer can't be read."""
    try:
        words = tokens_of(folder)
    except (OSError, ValueError, KeyError, TypeError):
        words = list(vocabulary())
    return Knowledge(frozenset(w for w in words if w.isalpha()))


def vocabulary() -> tuple[str, ...]:
    """Every word of the grammar with its synonyms, and common small words, sorted."""
    parts = [*COLOURS, *SHAPES, *MATERIALS, *GROUNDS, *SMALL_WORDS, *_SYNONYMS, "and", "moving"]
    for said in (_VERBS, _WAYS, _CAMERA_PHRASES):
        parts += [phrase for phrases in said.values() for phrase in phrases]
    parts += _SKY_PHRASES.values()
    return tuple(sorted({w for part in parts for w in part.split()}))


def parse(prompt: str) -> Scene:
    """Read `prompt` as a scene.

    Defaults for what is missing: matte, standing still, on a gray floor, under a clear sky, with a
    still camera. Unknown words are ignored.

    Raises:
        GrammarError: no object, more than two, or an object without one colour and one shape.
    """
    spoken: list[str] = re.findall(r"[a-z]+", prompt.lower())
    words = [_SYNONYMS.get(word, word) for word in spoken]
    words, camera = _take_camera(words)
    ground = next((g for w, g in _GROUND_KEYS.items() if w in words), "gray floor")
    sky = next((s for s in SKIES if s in words), "clear")
    parts = _split_bodies(words)
    if not 1 <= len(parts) <= MAX_BODIES:
        raise GrammarError(
            "the built-in model knows one object or two, each with one colour "
            f"({', '.join(COLOURS)}) and one shape ({', '.join(SHAPES)})"
        )
    return Scene(tuple(_parse_body(part) for part in parts), ground, sky, camera)


def _take_camera(words: list[str]) -> tuple[list[str], str]:
    """Split off the camera's move: the other words, and one of `CAMERAS`."""
    if "pans" in words:
        at = words.index("pans")
        near = range(at + 1, min(at + 5, len(words)))
        turn = next((i for i in near if words[i] in ("left", "right")), None)
        if turn is not None:
            return words[:at] + words[turn + 1 :], f"pan {words[turn]}"
    return words, "zoom in" if "zooms" in words else "still"


def _split_bodies(words: list[str]) -> list[list[str]]:
    """One list of words per object, split at the last "and" or else colour between two shapes."""
    shapes = [i for i, w in enumerate(words) if w in SHAPES]
    starts = [0]
    for previous, at in pairwise(shapes):
        between = range(previous + 1, at)
        ands = [i for i in between if words[i] in ("and", "while", "with")]
        colours = [i for i in between if words[i] in COLOURS]
        starts.append((ands or colours or [at])[-1])
    ends = [*starts[1:], len(words)]
    return [words[a:b] for a, b in zip(starts, ends, strict=True)] if shapes else []


def _parse_body(words: list[str]) -> Body:
    colours, shapes = ({w for w in words if w in known} for known in (COLOURS, SHAPES))
    if len(colours) != 1 or len(shapes) != 1:
        raise GrammarError(
            f"one object has one colour ({', '.join(COLOURS)}) and one shape ({', '.join(SHAPES)})"
        )
    (colour,), (shape,) = colours, shapes
    direction = next((d for d in DIRECTIONS if d in words), "")
    motion = "still"
    if "orbiting" in words or "circle" in words:
        motion = "orbit"
    elif "bouncing" in words:
        motion = "bounce"
    elif direction:
        rolls = shape == "ball" and "sliding" not in words
        rolls |= shape in ROLLING_SHAPES and "rolling" in words
        motion = "roll" if rolls else "slide"
    elif "spinning" in words:
        motion = "spin"
    material = "shiny" if "shiny" in words else "matte"
    return Body(colour, shape, motion, direction if motion in DIRECTED else "", material)


def describe(scene: Scene, rng: random.Random, loosely: bool = True) -> str:
    """Write a prompt for `scene` with wording drawn from `rng`.

    With `loosely` the wording also uses unusual phrases and synonyms, and leaves out defaults.
    """
    return " ".join(word for word, _ in tell(scene, rng, loosely))


def tell(scene: Scene, rng: random.Random, loosely: bool = True) -> list[tuple[str, int]]:
    """The words of `describe`, each with the index of the object that it describes, or -1."""
    words = [(word, -1) for word in _describe_place(scene, rng, loosely)]
    for i, body in reversed(list(enumerate(scene.bodies))):
        phrase = [(word, i) for word in _describe_body(body, rng, loosely).split()]
        words = [*([("and", -1)] if i else []), *phrase, *words]
    if loosely and rng.random() < 0.3:
        spoken = [w for w in _SPOKEN if rng.random() < 0.5]
        words = [(_respell(word, spoken), owner) for word, owner in words]
    for i, ((word, owner), (next_word, _)) in enumerate(pairwise(words)):
        if word == "a" and next_word[0] in "aeiou":
            words[i] = ("an", owner)
    return words


def _respell(word: str, spoken: list[str]) -> str:
    return next((s for s in spoken if _SYNONYMS[s] == word), word)


def _describe_place(scene: Scene, rng: random.Random, loosely: bool) -> list[str]:
    """The words for ground, sky and camera; defaults of `parse` may be left out."""
    parts: list[str] = []
    if scene.ground != "gray floor" or not loosely or rng.random() < 0.8:
        place = "over" if any(b.motion in DIRECTED for b in scene.bodies) else "on"
        parts.append(f"{place} a {scene.ground}")
    if scene.sky != "clear" or rng.random() < 0.2:
        parts.append(_SKY_PHRASES[scene.sky])
    if scene.camera != "still":
        parts.append(_usually(_CAMERA_PHRASES[scene.camera], rng, loosely))
    return " ".join(parts).split()


def _describe_body(body: Body, rng: random.Random, loosely: bool) -> str:
    verb = rng.choice(_VERBS[body.motion])
    if body.motion in DIRECTED:
        if rng.random() < 0.25 and (body.motion == "roll") == (body.shape == "ball"):
            verb = "moving"  # `parse` takes it as rolling for a ball, else as sliding
        verb = f"{verb} {_usually(_WAYS[body.direction], rng, loosely)}"
    elif body.motion == "still" and loosely and rng.random() < 0.25:
        verb = ""
    says_matte = body.material == "matte" and rng.random() < 0.3
    material = f"{body.material} " if body.material == "shiny" or says_matte else ""
    return f"a {material}{body.colour} {body.shape} {verb}"


def _usually(phrases: tuple[str, ...], rng: random.Random, loosely: bool) -> str:
    """The first phrase; with `loosely`, at times any of them."""
    return phrases[0] if not loosely or rng.random() < 0.7 else rng.choice(phrases)


def held_out(scene: Scene) -> bool:
    """Whether one of the objects is a combination that is kept out of training.

    A combination is colour, shape, motion and ground. Direction is not part of it, because
    training also uses mirrored clips.
    """
    return any(_held_out_body(body, scene.ground) for body in scene.bodies)


def _held_out_body(body: Body, ground: str) -> bool:
    key = COLOURS.index(body.colour) + 2 * SHAPES.index(body.shape)
    return (key + 3 * MOTIONS.index(body.motion) + GROUNDS.index(ground)) % 10 == 7


def rule() -> str:
    """Fingerprint of the rule of `held_out`, which depends on the lists of the grammar."""
    lists = repr((COLOURS, SHAPES, MOTIONS, GROUNDS))
    return hashlib.sha256(lists.encode()).hexdigest()[:16]


def random_scene(rng: random.Random) -> Scene:
    """A random scene; 35 % have two objects, which differ in colour."""
    count = 2 if rng.random() < 0.35 else 1
    bodies = tuple(_random_body(c, rng) for c in rng.sample(COLOURS, count))
    sky = rng.choices(SKIES, (0.6, 0.2, 0.2))[0]
    camera = rng.choices(CAMERAS, (0.7, 0.1, 0.1, 0.1))[0]
    return Scene(bodies, rng.choice(GROUNDS), sky, camera)


def _random_body(colour: str, rng: random.Random) -> Body:
    shape = rng.choice(SHAPES)
    motion = rng.choices(MOTIONS, (0.25, 0.25, 0.15, 0.13, 0.12, 0.1))[0]
    if motion == "roll" and shape not in ROLLING_SHAPES:
        motion = "slide"
    direction = rng.choices(DIRECTIONS, (3, 3, 2, 2))[0] if motion in DIRECTED else ""
    return Body(colour, shape, motion, direction, rng.choice(MATERIALS))


def training_scene(seed: str) -> tuple[Scene, random.Random]:
    """A random scene without held-out combinations, and the generator that then places it."""
    rng = random.Random(seed)
    scene = random_scene(rng)
    while held_out(scene):
        scene = random_scene(rng)
    return scene, rng
