"""What the prompt encoder is trained on: colours, and texts made from them by recombination.

A text is drawn, never listed: names of colours (the survey's, CSS's, and compositions of both), nouns, templates,
the openings and endings around them, spelling and typing slips. Names, templates and scene texts that
`worldmodel.train.envs` holds out for its tests are left out here too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from worldmodel.prompt.forbidden import Forbidden
from worldmodel.train.envs import captions, vizdoom

if TYPE_CHECKING:
    from collections.abc import Collection

Lab = NDArray[np.float64]

RACER = "racer"
# Doom rooms that no world is trained on yet, so that texts about them already have a place of their own.
FURTHER_SCENES: dict[str, tuple[str, ...]] = {
    "corridor": (
        "a dark corridor", "a long dark hallway with guards on both sides", "run down the corridor to the armour",
        "a narrow passage full of gunmen", "a dim tunnel with enemies in the alcoves", "fight your way down a hallway",
        "a straight corridor, soldiers left and right", "a gloomy hall that leads to a green vest",
        "a deadly corridor", "walk through a shadowy passageway", "a tight tunnel between metal walls",
    ),
    "maze": (
        "a maze of rooms", "find the way home", "a labyrinth of connected chambers", "explore many small rooms",
        "lost in a maze with differently textured walls", "search the rooms for the vest", "a winding labyrinth",
        "rooms and hallways without enemies", "wander through an empty building", "doorways leading to more rooms",
    ),
    "line": (
        "defend the line", "monsters lined up at the far wall", "a row of enemies across the hall",
        "hold the line against demons from the other end", "a wide hall, foes on the opposite side",
        "enemies in a line in front of you", "shoot a row of attackers ahead", "fireballs and demons from one side",
    ),
    "take_cover": (
        "dodge the fireballs", "take cover from the fireballs", "a room where monsters throw fire at you",
        "step left and right to avoid the shots", "avoid missiles in a rectangular room", "flaming balls fly at you",
        "imps throw fireballs from the far wall", "evade the burning projectiles", "sidestep incoming fire",
    ),
    "deathmatch": (
        "a deathmatch arena with many weapons", "an open arena with weapons, armour and monsters", "a big battle hall",
        "weapons and ammunition lie all over the arena", "a tall hall with demons and rockets", "a free for all fight",
        "grab the rocket launcher and fight everything", "a large arena with stairs, items and every monster",
    ),
}  # fmt: skip
SCENES = (RACER, *vizdoom.SCENE_CAPTIONS, *FURTHER_SCENES)

TRACKS = (
    *captions.road_nouns(),
    "roadway", "raceway", "speedway", "motorway", "avenue", "trail", "blacktop", "concrete", "freeway", "racecourse",
    "lane", "surface", "driveway", "strip", "carriageway", "boulevard", "alley", "racing line", "racing track",
)  # fmt: skip
FIELDS = (
    *captions.grass_nouns(),
    "meadow", "field", "prairie", "hills", "lawns", "pastures", "verges", "scenery", "greenery", "background", "soil",
    "farmland", "moor", "wilderness", "area", "borders", "vegetation", "steppe", "savanna", "environment",
    "open country",
)  # fmt: skip

_TEMPLATES = (
    "{fields} that look {grass} with a {track} that looks {road}",
    "a {track} coloured {road} and {fields} coloured {grass}",
    "{road}-coloured {track}, {grass}-coloured {fields}",
    "a {road} coloured {track} beside {grass} coloured {fields}",
    "{grass} coloured {fields} near a {road} coloured {track}",
    "the {track} should be {road} and the {fields} should be {grass}",
    "the {fields} should be {grass}, the {track} should be {road}",
    "i would like the {fields} to be {grass} and the {track} to be {road}",
    "turn the {track} {road} and the {fields} {grass}",
    "turn the {fields} {grass}, turn the {track} {road}",
    "change the {track} to {road} and the {fields} to {grass}",
    "change the {fields} to {grass}, and the {track} to {road}",
    "{road} {track} leading through the {grass} {fields}",
    "the {grass} {fields} lie to the left and right, the {track} is {road}",
    "where the {fields} are {grass} and the {track} is {road}",
    "where the {track} is {road} and the {fields} are {grass}",
    "a {track} in the colour {road} and {fields} in the colour {grass}",
    "{fields} = {grass}, {track} = {road}",
    "{track} = {road}, {fields} = {grass}",
    "{track} colour {road}, {fields} colour {grass}",
    "{fields} colour {grass}, {track} colour {road}",
    "on the {road} {track}, {grass} {fields} everywhere",
    "surrounded by {grass} {fields} you drive on a {road} {track}",
    "a {track}, {road}, and {fields}, {grass}",
    "{fields}, {grass}, and a {track}, {road}",
    "you see {grass} {fields} and in them a {road} {track}",
    "you see a {road} {track} and next to it {grass} {fields}",
    "{grass} everywhere except for the {road} {track}",
    "a {road} {track} that cuts {grass} {fields} in two",
    "a {road} {track} lined by {grass} {fields}",
    "{grass} {fields} divided by the {road} {track}",
    "a {road} ribbon of {track} in {grass} {fields}",
    "the car drives on {road}, the {fields} are {grass}",
    "driving on {road} with {grass} {fields} around",
    "{road} under the wheels, {grass} all around",
    "{road} {track} + {grass} {fields}",
    "{road} {track} / {grass} {fields}",
    "{road} {track} {grass} {fields}",
    "{grass} {fields} {road} {track}",
    "beyond the {road} {track} lie {grass} {fields}",
    "the {road} {track} bends through {grass} {fields}",
    "both sides of the {road} {track} are {grass}",
    "to the sides of the {track} everything is {grass}, the {track} itself is {road}",
    "no {road} {fields} here: they are {grass}, the {track} is {road}",
)
_ROAD_ONLY = (
    "a {road} {track}", "{road} {track}", "the {track} is {road}", "drive on a {road} {track}",
    "make the {track} {road}", "a car on {road} {track}", "{track}: {road}", "race along the {road} {track}",
    "a {track} of {road}",
    "{fields} with a {road} {track}", "a {road} {track} through {fields}", "{fields} beside a {road} {track}",
    "paint the {track} {road}", "i want a {road} {track}", "{track} in {road}", "change the {track} to {road}",
    "the {track} should be {road}", "a {road} {track} between {fields}", "a {track} that is {road}",
)  # fmt: skip
_GRASS_ONLY = (
    "{grass} {fields}", "the {fields} are {grass}", "a {track} through {grass} {fields}", "make the {fields} {grass}",
    "drive through {grass} {fields}", "{fields}: {grass}", "a world of {grass} {fields}", "{fields} of {grass}",
    "{grass} {fields} with a {track}", "a car in {grass} {fields}", "a {track} between {grass} {fields}",
    "{grass} {fields} around a {track}", "i want {grass} {fields}", "{fields} in {grass}", "paint the {fields} {grass}",
    "change the {fields} to {grass}", "the {fields} should be {grass}", "{fields} that are {grass}",
)  # fmt: skip
_NO_COLOUR = (
    "", "a {track} through {fields}", "drive", "a car on a {track}", "a racing game", "car race",
    "{track} and {fields}", "a {track} in the {fields}", "race",
    "drive along the {track}", "{fields} beside a {track}", "top-down racing",
    "just drive", "a fast car", "bends and straights", "a world with a {track}", "a quick lap", "a driving game",
)  # fmt: skip
_OPENINGS = (
    "picture of ", "imagine ", "please: ", "show me ", "a game with ", "a racing game with ", "view from above: ",
    "now ", "next: ", "a video game, ", "top view of ", "the scene: ", "let there be ", "take me to ", "draw ",
    "a car racing game: ", "prompt: ", "i see ", "we want ", "go to ",
)  # fmt: skip
_ENDINGS = (
    " please", " on a sunny day", ", seen from above", " with a red car", " in a racing game", "!", ".", " now",
    ", top view", ", pixel art", " for a race", " with a small car", ", many bends", " and nothing else",
    ", car racing", " today", "...",
)  # fmt: skip
_MODIFIERS = (
    "very dark", "very light", "very pale", "dark", "light", "bright", "pale", "deep", "dull", "dusty", "faded",
    "muted", "neon", "pastel", "dirty", "soft", "vivid", "medium", "rich", "warm", "cool", "flat", "faint", "electric",
    "hot", "reddish", "greenish", "bluish", "yellowish", "brownish", "greyish", "purplish", "pinkish", "orangish",
)  # fmt: skip
_SAME = {
    "dark": ("deep dark", "darker"), "light": ("lighter", "lightish"), "bright": ("brilliant", "vibrant"),
    "pale": ("washed-out", "very pale"), "grey": ("gray",), "greyish": ("grayish",), "dull": ("drab",),
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """Two texts that say the same, and what they say. A colour of None is not named."""

    texts: tuple[str, str]
    road: Lab | None  # CIE Lab [3]
    grass: Lab | None
    scene: str  # one of SCENES


def known_colours() -> dict[str, Lab]:
    """Every colour name that may be trained on, in Lab: the whole survey's and CSS's, less what is held out.

    What merely sounds like a held-out name stays if it is a training name: "dusky purple", but not "liliac".
    """
    forbidden, own = Forbidden(captions.held_out_names()), captions.train_names()
    return {name: lab for name, lab in all_colours().items() if name in own or name not in forbidden}


def all_colours() -> dict[str, Lab]:
    """Every colour name of the survey and of CSS, in Lab."""
    from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

    found: dict[str, Lab] = {}
    for key, value in [*XKCD_COLORS.items(), *CSS4_COLORS.items()]:
        name = (key.removeprefix("xkcd:") if key.startswith("xkcd:") else split_css(key)).replace("/", " ")
        found.setdefault(name, captions.lab(255 * np.array(to_rgb(value))))
    return found


def plainly(name: str) -> str:
    """A colour's name as the survey spells it, to compare names by."""
    return name.replace("-", " ").replace("gray", "grey")


def split_css(name: str) -> str:
    """ "darkslategray" -> "dark slate gray"."""
    first = "dark|light|medium|deep|pale|hot|royal|steel|slate|sky|forest|lawn|spring|sea|midnight|powder|cadet|dodger"
    last = "slate|sea|sky|spring|steel|olive|forest|violet|orange|golden|green|blue|red|gray|grey|pink|brown"
    apart = re.sub(f"({last})", r" \1 ", re.sub(f"^({first})", r"\1 ", name))
    return " ".join(apart.split()).replace("golden rod", "goldenrod")


class Grammar:
    """Draws examples. Everything random comes from the generator it is handed."""

    def __init__(self, colours: dict[str, Lab], forbidden: Collection[str]):
        """colours: what may be named. forbidden: names that must not come about by composition either."""
        self.colours = colours
        self.names = list(colours)
        self.forbidden = set(forbidden)
        self.shifts = modifier_shifts(colours)
        self.common = [name for name in captions.all_names() if name in colours]
        held_out = set(captions.held_out_templates())
        self.templates = [t for t in (*captions.train_templates(), *_TEMPLATES) if t not in held_out]

    def draw(self, rng: np.random.Generator) -> Example:
        """One example: mostly road and grass, now and then one of them, a bare name, nothing, or a Doom room."""
        kind = rng.random()
        if kind < 0.12:
            return self._doom(rng)
        if kind < 0.16:
            return Example((self._say(rng, _NO_COLOUR, "", ""), self._say(rng, _NO_COLOUR, "", "")), None, None, RACER)
        (road, road_lab), (grass, grass_lab) = self.colour(rng), self.colour(rng)
        if kind < 0.25:
            texts = self._say(rng, _ROAD_ONLY, road, ""), self._say(rng, _ROAD_ONLY, road, "")
            return Example(texts, road_lab, None, RACER)
        if kind < 0.34:
            texts = self._say(rng, _GRASS_ONLY, "", grass), self._say(rng, _GRASS_ONLY, "", grass)
            return Example(texts, None, grass_lab, RACER)
        if kind < 0.38:  # a colour alone: no word says what has it, so both do
            texts = soil(rng, self.respell(rng, road)), soil(rng, self.respell(rng, road))
            return Example(texts, road_lab, road_lab, RACER)
        texts = self._say(rng, self.templates, road, grass), self._say(rng, self.templates, road, grass)
        return Example(texts, road_lab, grass_lab, RACER)

    def colour(self, rng: np.random.Generator) -> tuple[str, Lab]:
        """A colour's name and its Lab."""
        kind = rng.random()
        if kind < 0.45:
            name = self.common[rng.integers(len(self.common))]
            return name, self.colours[name]
        name = self.names[rng.integers(len(self.names))]
        if kind < 0.85:
            return name, self.colours[name]
        modifier = list(self.shifts)[rng.integers(len(self.shifts))]
        composed = f"{modifier} {name}"
        if composed in self.colours or plainly(composed) in self.forbidden or len(name.split()) > 2:
            return name, self.colours[name]
        return composed, shifted(self.colours[name], self.shifts[modifier])

    def _doom(self, rng: np.random.Generator) -> Example:
        scenes = {**vizdoom.SCENE_CAPTIONS, **FURTHER_SCENES}
        scene = list(scenes)[rng.integers(len(scenes))]
        first, second = (scenes[scene][i] for i in rng.integers(len(scenes[scene]), size=2))
        return Example((soil(rng, _dress(rng, first)), soil(rng, _dress(rng, second))), None, None, scene)

    def _say(self, rng: np.random.Generator, templates: Collection[str], road: str, grass: str) -> str:
        text = list(templates)[rng.integers(len(templates))]
        text = text.format(
            road=self.respell(rng, road),
            grass=self.respell(rng, grass),
            track=TRACKS[rng.integers(len(TRACKS))],
            fields=FIELDS[rng.integers(len(FIELDS))],
        )
        return soil(rng, _dress(rng, text))

    def respell(self, rng: np.random.Generator, name: str) -> str:
        """Now and then another word for the same, words run together, or a hyphen."""
        words = [
            _SAME[w][rng.integers(len(_SAME[w]))] if w in _SAME and rng.random() < 0.08 else w for w in name.split(" ")
        ]
        gap = rng.random()
        joined = ("" if gap < 0.03 else "-" if gap < 0.07 else " ").join(words)
        return name if plainly(" ".join(words)) in self.forbidden else joined


def _dress(rng: np.random.Generator, text: str) -> str:
    if rng.random() < 0.2:
        text = _OPENINGS[rng.integers(len(_OPENINGS))] + text
    if rng.random() < 0.15:
        text = text + _ENDINGS[rng.integers(len(_ENDINGS))]
    return text


def soil(rng: np.random.Generator, text: str) -> str:
    """A text as people type it: articles gone, commas gone, a letter wrong, any case."""
    if rng.random() < 0.25:
        text = re.sub(r"\b(a|the) ", "", text)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    if rng.random() < 0.1:
        text = re.sub(r"[,;:.]", "", text)
    if rng.random() < 0.1 and len(text) > 8:
        text = slip(rng, text)
    return text.upper() if rng.random() < 0.03 else text


def slip(rng: np.random.Generator, text: str) -> str:
    """One letter lost, doubled, swapped with its neighbour, or hit beside."""
    at = int(rng.integers(1, len(text) - 1))
    before, here, after = text[:at], text[at], text[at + 1 :]
    if here == " ":
        return text
    beside = "abcdefghijklmnopqrstuvwxyz"[rng.integers(26)]
    return (before + after, before + here * 2 + after, before + after[0] + here + after[1:], before + beside + after)[
        rng.integers(4)
    ]


def modifier_shifts(colours: dict[str, Lab]) -> dict[str, NDArray[np.float64]]:
    """What "dark", "dusty", … do to a colour, learned from the names that have both: affine maps [4, 3] in Lab."""
    shifts = {}
    for modifier in _MODIFIERS:
        bases = [name for name in colours if f"{modifier} {name}" in colours]
        if len(bases) < 4:
            continue
        plain, modified = (np.array([colours[start + name] for name in bases]) for start in ("", f"{modifier} "))
        x = np.concatenate([np.ones((len(bases), 1)), plain / 50], axis=1)
        ridge = np.diag([0.3, 2.0, 2.0, 2.0])
        shifts[modifier] = np.linalg.solve(x.T @ x + ridge, x.T @ (modified - plain))
    return shifts


def shifted(lab: Lab, shift: NDArray[np.float64]) -> Lab:
    """Apply one of `modifier_shifts` to a Lab colour [3]."""
    moved = lab + np.concatenate([[1.0], lab / 50]) @ shift
    return np.clip(moved, [0, -100, -110], [100, 100, 100])
