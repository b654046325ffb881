"""Scenes in words: colour names with their RGB, caption templates, and which of them training never sees.

The names are the xkcd colour survey's (CC0), as matplotlib carries them. Held-out names are mostly compositions whose
words training does see elsewhere ("dark salmon" but not "salmon"), so that a prompt tests composition, not spelling.
"""

from __future__ import annotations

import functools
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]
Split = Literal["train", "test"]

# A name goes when it contains one of these words (crude, sickly, unreadable, misspelt) …
_DROPPED_WORDS = frozenset((
    "shit", "poo", "poop", "piss", "puke", "vomit", "barf", "diarrhea", "booger", "snot", "bile", "sick", "sickly",
    "nasty", "gross", "icky", "ugly", "dirty", "toxic", "radioactive", "poison", "slime", "baby", "barbie",
    "barney", "bruise", "blood", "dried", "kermit", "kelley", "lavendar", "siena", "terracota", "creme", "forrest",
    "perrywinkle", "toupe", "manilla", "urple", "burple", "blurple", "liliac", "ocre", "azul", "purply", "purpley",
    "purpleish", "orangey", "orangeish", "orangish", "orangered", "yellowy", "browny", "greeny", "bluey", "reddy",
    "pinky", "darkblue", "darkgreen", "lightgreen", "lightblue", "greyblue", "bluegrey", "greenblue", "yellowgreen",
    "bluegreen", "tealish", "fluro", "highlighter", "hospital", "windows", "french", "irish", "british", "tiffany",
    "carolina", "easter", "off", "pig", "hint", "macaroni", "weird", "boring", "nice",
))  # fmt: skip
# … or is one of these: a word that says nothing of a colour, or that is a noun of our templates.
_DROPPED_NAMES = frozenset((
    "dust", "tea", "bland", "dark", "pale", "drab", "velvet", "twilight", "dusk", "night", "midnight", "royal",
    "golden", "rouge", "camo", "bluish", "greenish", "reddish", "purplish", "pinkish", "brownish", "yellowish",
    "greyish", "grass", "dirt", "earth", "mud", "desert", "sea", "swamp", "sandy", "marine", "ice", "petrol",
    "apple", "pea", "pear", "kiwi", "melon", "squash", "berry", "leather", "iris", "rosa", "parchment", "lichen",
    "heather", "cement", "pine", "forest", "jungle", "leaf", "sky", "ocean", "denim", "carnation", "watermelon",
    "tomato", "strawberry", "cherry", "banana", "mango", "raspberry", "grape", "blueberry",
    "light light blue", "light light green", "blue blue", "green apple", "golden rod", "aqua marine", "robin egg blue",
))  # fmt: skip

_HELD_OUT_NAMES = (
    # plain words that training meets only inside compositions
    "turquoise", "lavender", "salmon", "olive", "maroon", "khaki", "peach", "plum", "mustard", "periwinkle", "sage",
    "lilac", "mauve",
    # compositions of words that training meets elsewhere
    "dark pink", "dark yellow", "dark orange", "dark grey blue", "dark sea green", "dark lavender", "dark blue green",
    "dark olive green", "dark sky blue", "dark magenta", "dark peach", "light purple", "light brown", "light orange",
    "light teal", "light olive green", "light grey blue", "light magenta", "light plum", "light sage",
    "light yellow green", "bright blue", "bright pink", "bright lime green", "bright teal", "pale yellow",
    "pale lavender", "pale sky blue", "pale olive", "pale orange", "deep green", "deep orange", "deep violet",
    "dull blue", "dull pink", "dusty green", "dusty purple", "faded blue", "faded pink", "muted purple", "neon yellow",
    "pastel green", "pastel purple", "very dark blue", "very light green", "greyish purple", "brownish orange",
    "yellowish green", "reddish brown", "bluish purple", "purplish grey", "greenish yellow", "pinkish brown",
    "blue grey", "yellow orange", "red brown", "lime green", "sand brown", "moss green", "slate blue", "brick red",
)  # fmt: skip

_ROAD_NOUNS = (
    "road", "road", "road", "track", "track", "street", "lane", "asphalt", "path", "circuit", "racetrack", "tarmac",
    "race track", "highway", "route", "pavement", "course", "way",
)  # fmt: skip
_GRASS_NOUNS = (
    "grass", "grass", "grass", "fields", "fields", "meadows", "lawn", "plains", "pasture", "ground", "grassland",
    "land", "countryside", "turf", "terrain", "landscape", "surroundings",
)  # fmt: skip

# {road} and {grass} are colour names, {track} and {fields} their nouns.
_TRAIN_TEMPLATES = (
    "a {road} {track} through {grass} {fields}",
    "a {road} {track} in {grass} {fields}",
    "a {road} {track} across {grass} {fields}",
    "a {road} {track} between {grass} {fields}",
    "a {road} {track} surrounded by {grass} {fields}",
    "a {road} {track} and {grass} {fields}",
    "a {road} {track} with {grass} {fields}",
    "a {road} {track} with {grass} {fields} around it",
    "a {road} {track} over {grass} {fields}",
    "a {road} {track} winding through {grass} {fields}",
    "a {road} {track} crossing {grass} {fields}",
    "a {road} {track} beside {grass} {fields}",
    "the {road} {track} runs through {grass} {fields}",
    "the {track} is {road} and the {fields} {grass}",
    "the {track} is {road}, the {fields} {grass}",
    "{grass} {fields} beside a {road} {track}",
    "{grass} {fields} around a {road} {track}",
    "{grass} {fields} with a {road} {track}",
    "{grass} {fields} and a {road} {track}",
    "{grass} {fields}, {road} {track}",
    "{grass} {fields} next to a {road} {track}",
    "{grass} {fields} along a {road} {track}",
    "{grass} {fields} on both sides of a {road} {track}",
    "{grass} {fields} cut by a {road} {track}",
    "in {grass} {fields}, a {road} {track}",
    "through {grass} {fields} on a {road} {track}",
    "{road} {track}, {grass} {fields}",
    "{road} {track} and {grass} {fields}",
    "{road} {track} through {grass} {fields}",
    "{road} {track} in {grass} {fields}",
    "{road} {track} on {grass} {fields}",
    "{road} {track} with {grass} {fields}",
    "{road} for the {track}, {grass} for the {fields}",
    "{grass} for the {fields}, {road} for the {track}",
    "race on {road} {track} with {fields} of {grass}",
    "race on a {road} {track} through {grass} {fields}",
    "race through {grass} {fields} on a {road} {track}",
    "racing on {road} {track}, {grass} {fields} all around",
    "drive on a {road} {track} through {grass} {fields}",
    "drive through {grass} {fields} on a {road} {track}",
    "drive along the {road} {track} in the {grass} {fields}",
    "a car on a {road} {track} in {grass} {fields}",
    "a car on {road} {track} beside {grass} {fields}",
    "a red car on a {road} {track}, {grass} {fields} around",
    "a car race on {road} {track} in {grass} {fields}",
    "{fields} of {grass} and a {track} of {road}",
    "{fields} in {grass}, {track} in {road}",
    "{track} in {road}, {fields} in {grass}",
    "a {track} of {road} through {fields} of {grass}",
    "a {track} in {road} with {fields} in {grass}",
    "{track}: {road}, {fields}: {grass}",
    "{fields}: {grass}, {track}: {road}",
    "{track} {road}, {fields} {grass}",
    "{fields} {grass}, {track} {road}",
    "make the {track} {road} and the {fields} {grass}",
    "make the {fields} {grass} and the {track} {road}",
    "i want a {road} {track} and {grass} {fields}",
    "a world with a {road} {track} and {grass} {fields}",
    "a world of {grass} {fields} and a {road} {track}",
    "a scene with {grass} {fields} and a {road} {track}",
    "there is a {road} {track} in the {grass} {fields}",
    "the {fields} are {grass}, the {track} is {road}",
    "the {fields} are {grass} and the {track} is {road}",
    "the colour of the {track} is {road}, that of the {fields} {grass}",
    "everything around the {road} {track} is {grass}",
    "{grass} {fields}; {road} {track}",
    "{road} {track}; {grass} {fields}",
    "the {grass} {fields} border the {road} {track}",
)
_HELD_OUT_TEMPLATES = (
    "{grass} {fields} crossed by a {road} {track}",
    "follow the {road} {track} past the {grass} {fields}",
    "a {track} that is {road}, in {fields} that are {grass}",
    "{fields} all {grass}, and a {road} {track} ahead",
    "with {grass} {fields} on either side, a {road} {track}",
    "a {road} {track} bordered by {grass} {fields}",
    "steer down a {road} {track} among {grass} {fields}",
    "paint the {fields} {grass} and the {track} {road}",
    "{grass} {fields} left and right of the {road} {track}",
    "give me {grass} {fields} and a {road} {track}",
    "{road} is the {track}, {grass} are the {fields}",
    "on {road} {track} past {grass} {fields}",
)

_CAR_RED: Rgb = (204, 0, 0)
_CONTRAST_ROAD_GRASS = 30.0  # smallest CIE76 distance between road and grass
_CONTRAST_ROAD_PATCH = 18.0  # smallest distance between road and the grass's patches
_CONTRAST_CAR = 25.0  # smallest distance of road or grass from the car's hull
_PATCH = 40  # levels between the grass and its patches: what shows a player how fast the car is
_JITTER = 3.0  # largest distance of a scene's colour from its name's


def train_names() -> dict[str, Rgb]:
    """Colour names that training draws from, each with its RGB (0 to 255)."""
    return {name: rgb for name, rgb in all_names().items() if name not in _HELD_OUT_NAMES}


def held_out_names() -> dict[str, Rgb]:
    """Colour names that no training caption uses as a road's or a grass's colour."""
    return {name: all_names()[name] for name in _HELD_OUT_NAMES}


@functools.cache
def all_names() -> dict[str, Rgb]:
    """The xkcd names that we keep, train and held out together."""
    from matplotlib.colors import XKCD_COLORS, to_rgb

    names: dict[str, Rgb] = {}
    for key in XKCD_COLORS:
        name = key.removeprefix("xkcd:")
        if "/" in name or "'" in name or name in _DROPPED_NAMES or _DROPPED_WORDS.intersection(name.split()):
            continue
        red, green, blue = (round(255 * part) for part in to_rgb(key))
        names[name] = (red, green, blue)
    return names


def train_templates() -> tuple[str, ...]:
    """Templates with {road}, {grass} (colour names) and {track}, {fields} (nouns)."""
    return _TRAIN_TEMPLATES


def held_out_templates() -> tuple[str, ...]:
    """Templates of the same form that training never sees."""
    return _HELD_OUT_TEMPLATES


def road_nouns() -> tuple[str, ...]:
    """Words for {track}; a word that is listed twice is drawn twice as often."""
    return _ROAD_NOUNS


def grass_nouns() -> tuple[str, ...]:
    """Words for {fields}, repeated as in `road_nouns`."""
    return _GRASS_NOUNS


def caption(rng: np.random.Generator, road_name: str, grass_name: str, split: Split = "train") -> str:
    """Say a scene in one of many ways; `split` chooses between the seen and the held-out templates."""
    templates = _TRAIN_TEMPLATES if split == "train" else _HELD_OUT_TEMPLATES
    text = templates[rng.integers(len(templates))].format(
        road=road_name,
        grass=grass_name,
        track=_ROAD_NOUNS[rng.integers(len(_ROAD_NOUNS))],
        fields=_GRASS_NOUNS[rng.integers(len(_GRASS_NOUNS))],
    )
    if rng.random() < 0.25:
        text = re.sub(r"\b(a|the) ", "", text)  # as people type: "brown road through turquoise fields"
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return _in_some_case(rng, text)


def _in_some_case(rng: np.random.Generator, text: str) -> str:
    draw = rng.random()
    if draw < 0.75:
        return text
    if draw < 0.9:
        return text[0].upper() + text[1:] + ("." if rng.random() < 0.3 else "")
    return text.title() if draw < 0.96 else text.upper()


def scene_colours(rng: np.random.Generator, split: Split) -> tuple[str, Rgb, str, Rgb]:
    """Draw road name, road RGB, grass name, grass RGB: well apart from each other and from the car.

    In "test" at least one of the two names is held out; in "train" neither is.
    """
    seen, unseen = list(train_names()), list(held_out_names())
    while True:
        if split == "train":
            road_name, grass_name = str(rng.choice(seen)), str(rng.choice(seen))
        else:
            pools = [(unseen, unseen), (unseen, seen), (seen, unseen)][rng.integers(3)]
            road_name, grass_name = str(rng.choice(pools[0])), str(rng.choice(pools[1]))
        road, grass = _jitter(rng, all_names()[road_name]), _jitter(rng, all_names()[grass_name])
        apart = delta_e(road, grass) >= _CONTRAST_ROAD_GRASS
        if not apart or delta_e(road, patch_colour(grass)) < _CONTRAST_ROAD_PATCH:
            continue
        if _stands_out(road) and _stands_out(grass):
            return road_name, road, grass_name, grass


def _stands_out(rgb: Rgb) -> bool:
    return bool(delta_e(rgb, _CAR_RED) >= _CONTRAST_CAR)


def _jitter(rng: np.random.Generator, rgb: Rgb) -> Rgb:
    for _ in range(20):
        red, green, blue = (int(v) for v in np.clip(np.asarray(rgb) + rng.integers(-6, 7, 3), 0, 255))
        if delta_e(rgb, (red, green, blue)) <= _JITTER:
            return red, green, blue
    return rgb


def patch_colour(grass: Rgb) -> Rgb:
    """Colour of the grass's patches, a fixed function of the grass: lighter on dark grass, darker on light grass."""
    return shaded(grass, _PATCH if lab(grass)[0] < 60 else -_PATCH)


def shaded(rgb: Rgb, levels: int) -> Rgb:
    """The colour so many levels lighter."""
    red, green, blue = (int(np.clip(part + levels, 0, 255)) for part in rgb)
    return red, green, blue


def nearest_name(rgb: Rgb | NDArray[np.floating]) -> str:
    """The kept name whose colour is nearest in CIE Lab."""
    names, colours = _name_table()
    return names[int(np.argmin(np.linalg.norm(colours - lab(rgb), axis=1)))]


@functools.cache
def _name_table() -> tuple[list[str], NDArray[np.float64]]:
    names = all_names()
    return list(names), lab(np.array(list(names.values())))


def delta_e(first: Rgb | NDArray[np.floating], second: Rgb | NDArray[np.floating]) -> float:
    """CIE76 distance of two sRGB colours (0 to 255): about 2 is just visible, 30 is plainly another colour."""
    return float(np.linalg.norm(lab(first) - lab(second)))


def lab(rgb: Rgb | NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """sRGB 0 to 255, [..., 3], to CIE Lab (D65), [..., 3]."""
    unit = np.asarray(rgb, np.float64) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _RGB_TO_XYZ.T / _WHITE
    curve = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = curve[..., 0], curve[..., 1], curve[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _RGB_TO_XYZ @ np.ones(3)
