"""ViZDoom's single-room scenes, drawn with Freedoom's free art, as an environment that the recorder can drive.

    env = VizDoom()
    frame = env.reset(seed=7)                  # uint8 [120, 160, 3]; the seed also chooses the scene
    act = env.policy(np.random.default_rng(7))
    frame, done = env.step(act())

The same seed and actions make the same frames, whatever was played before. ViZDoom: Wydmuch et al., arXiv:1809.03470.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import MissingExtraError, SpecError
from worldmodel.train.envs import BEGUN, MOTION_CELL, Motion, Outcome
from worldmodel.train.envs.vizdoom_captions import HELD_OUT_CAPTIONS, SCENE_CAPTIONS
from worldmodel.train.envs.vizdoom_driver import Driver, View
from worldmodel.train.envs.vizdoom_motion import Sight, moved

if TYPE_CHECKING:
    from vizdoom import DoomGame, GameState

__all__ = ["HELD_OUT_CAPTIONS", "SCENES", "SCENE_CAPTIONS", "VizDoom"]

Frame = NDArray[np.uint8]

TICS_PER_TICK = 2  # the engine runs at 35 Hz
FIELD_OF_VIEW = 90.0  # degrees
STAND_STILL = [False] * 4
PLAYER = "DoomPlayer"  # the engine's name of the player, and so of the weapon in the picture
OWN = 7  # of the engine's variables that are facts; the rest are the eye's
# The weapon's swing survives the end of an episode; it dies away by at least one pixel of 16 with each picture drawn.
SETTLING_FRAMES = 16
DRAWN = 4  # pixels of the engine along one of ours
LAST_LEG = 1.0  # the health at which an episode ends: the engine is told never to go below


@dataclass(frozen=True)
class Scene:
    """One room: what moves in it, what lies in it, and what we add to ViZDoom's scenario of that name."""

    monsters: tuple[str, ...] = ()  # class names of what can be shot
    pickups: tuple[str, ...] = ()  # class names of what can be walked to
    actors: str = ""  # DECORATE source of our own actors


# ViZDoom's scenario removes a monster in the tic that it is shot, so nobody would ever see one fall.
FALLING_MONSTERS = """
actor ArenaMarine : MarineChainsawVzd replaces MarineChainsawVzd
{
  States
  {
  Death:
    PLAY H 0 A_SpawnItemEx("FallenMarine")
    PLAY H 5
    stop
  }
}
actor FallenMarine
{
  States
  {
  Spawn:
    PLAY HIJKLM 4
    PLAY N 40
    stop
  }
}
actor ArenaDemon : Demon replaces Demon
{
  States
  {
  Death:
    SARG I 0 A_SpawnItemEx("FallenDemon")
    SARG I 5
    stop
  }
}
actor FallenDemon
{
  States
  {
  Spawn:
    SARG IJKLM 5
    SARG N 40
    stop
  }
}
"""

# ViZDoom's scenario ends with the first kill of a monster that never moves. Ours strolls, falls, and after a while in
# which it wanders about unseen another one stands where it got to. The spot takes the script's "end the map" with it.
STROLLING_TARGET = """
actor TargetSpot replaces Cacodemon
{
  +NOINTERACTION
  States
  {
  Spawn:
    TNT1 A 1
    TNT1 A 0 A_SpawnItemEx("Target")
    stop
  }
}
actor Target : Cacodemon
{
  Health 1
  Speed 4
  States
  {
  Spawn:
    HEAD A 4 A_Wander
    loop
  See:
    HEAD A 4 A_Wander
    loop
  Death:
    HEAD GHIJ 5
    HEAD K 5 A_NoBlocking
    HEAD L 20
    TNT1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA 1 A_Wander
    TNT1 A 0 A_SpawnItemEx("Target")
    stop
  }
}
"""

SCENES: dict[str, Scene] = {
    "defend_the_center": Scene(monsters=("ArenaMarine", "ArenaDemon"), actors=FALLING_MONSTERS),
    "health_gathering": Scene(pickups=("Medikit",)),
    "basic": Scene(monsters=("Target",), actors=STROLLING_TARGET),
}


class VizDoom:
    """Rooms of ViZDoom, one chosen per episode, all with the same four buttons.

    Without a weapon (health_gathering) `attack` does nothing; everywhere else all four buttons work. Pictures are drawn
    at 640x480 and averaged down by 4, because the engine point-samples its textures. There is no mirror pair: the hand
    on the weapon, the monsters' weapons and the walls are not symmetric, and data with both turns costs nothing here.
    """

    env_id = "ViZDoom"
    tick_hz = 35.0 / TICS_PER_TICK
    height = 120
    width = 160
    actions = ("turn_left", "turn_right", "forward", "attack")
    keys: ClassVar = {
        "turn_left": ["left", "a"],
        "turn_right": ["right", "d"],
        "forward": ["up", "w"],
        "attack": ["space"],
    }
    mirror: ClassVar[list[tuple[str, str]]] = []
    facts = ("health", "ammo", "x", "y", "angle", "pitch", "kills", "visible_monsters", "scene_index")

    def __init__(
        self, scenes: Iterable[str] = tuple(SCENES), split: Literal["train", "test"] = "train", tracks: bool = False
    ) -> None:
        """scenes: names from SCENES. split: which episodes a seed names, and whether captions are held-out ones.

        tracks: tell `motion`, too, for which the engine draws everything twice.
        """
        self.scenes = tuple(scenes)
        for name in self.scenes:
            if name not in SCENES:
                raise SpecError(f"scenes: there is no Doom scene {name!r}; there are {', '.join(SCENES)}")
        if not self.scenes:
            raise SpecError(f"scenes: got none, need at least one of {', '.join(SCENES)}")
        cv2.setNumThreads(1)  # the pictures are small, and recordings run one process per core
        self._split, self._tracks = split, tracks
        self._folder = Path(tempfile.mkdtemp(prefix="worldloop-doom-"))
        self._games: dict[str, DoomGame] = {}  # started when first needed: each is a process of its own
        self._close = weakref.finalize(self, close_games, self._games, self._folder)

    def reset(self, seed: int) -> Frame:
        """Begin the episode that this seed names. Returns its first frame."""
        rng = np.random.default_rng([seed, self._split == "test"])
        self._name = self.scenes[rng.integers(len(self.scenes))]
        captions = SCENE_CAPTIONS if self._split == "train" else HELD_OUT_CAPTIONS
        self._scene = {"captions": list(captions[self._name]), "scene": self._name}
        if self._name not in self._games:
            self._games[self._name] = start_game(self._name, self._folder, self._tracks)
        self._game = self._games[self._name]
        self._game.set_seed(int(rng.integers(2**31)))
        self._game.new_episode()
        self._game.send_game_command("buddha")  # hurt, but never killed: the last frame of an episode is a frame too
        self._game.make_action(turn_by(rng), int(rng.integers(1, 100)))  # look anywhere first
        for _ in range(SETTLING_FRAMES):
            self._game.make_action(STAND_STILL)
        self._observe()
        self._outcome = BEGUN
        self._walls = wall_lines(self._state)
        self._before: Sight | None = None
        self._sight: Sight | None = self._look()
        return shrink(self._screen)

    def step(self, action: NDArray[np.bool_]) -> tuple[Frame, bool]:
        """Hold these buttons, bool [4] as in `actions`, for one tick. Returns the frame and whether it is the last."""
        reward = self._game.make_action([bool(pressed) for pressed in action], TICS_PER_TICK)
        self._observe()
        self._before, self._sight = self._sight, self._look()
        self._outcome = Outcome(float(reward), self._health <= LAST_LEG)
        return shrink(self._screen), self._outcome.terminated

    def outcome(self) -> Outcome:
        """The scenario's own reward."""
        return self._outcome

    def scene(self) -> dict[str, Any]:
        """What this episode shows, in all the words that its split may use."""
        return self._scene

    def read_facts(self) -> NDArray[np.float32]:
        """float32 [9], in the order of `facts`: map units, degrees anticlockwise, and counts."""
        visible = self.view().visible_monsters(FIELD_OF_VIEW)
        return np.array([*self._variables[:OWN], len(visible), list(SCENES).index(self._name)], np.float32)

    def motion(self) -> Motion | None:
        """How far what the middle of each cell shows came since the frame before, from the map and the objects."""
        if self._sight is None:
            return None
        rows, columns = (
            (np.arange(side // MOTION_CELL) + 0.5) * MOTION_CELL - side / 2 for side in (self.height, self.width)
        )
        points = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
        if self._before is None:
            return np.full_like(points, np.nan, np.float16)
        return np.asarray(moved(self._before, self._sight, points * DRAWN) / DRAWN, np.float16)

    def view(self) -> View:
        """What a driver that sees the map knows now."""
        scene = SCENES[self._name]
        x, y, angle = self._variables[2:5]
        return View(
            x=float(x),
            y=float(y),
            angle=float(angle),
            walls=self._walls,
            monsters=self._places(scene.monsters),
            pickups=self._places(scene.pickups),
        )

    def policy(self, rng: np.random.Generator) -> Callable[[], NDArray[np.bool_]]:
        """A driver for the episode that has just begun."""
        return Driver(self.view, rng, self.actions)

    def close(self) -> None:
        """End the engine's processes and remove its files."""
        self._close()

    def _observe(self) -> None:
        state = self._game.get_state()
        assert state is not None, "the engine ended an episode that only we should end"
        assert state.screen_buffer is not None and state.game_variables is not None, "both are always asked for"
        self._state = state
        self._screen: Frame = state.screen_buffer  # [480, 640, 3]
        self._variables = state.game_variables  # in the order that start_game asks for
        self._health = float(self._variables[0])

    def _look(self) -> Sight | None:
        if not self._tracks:
            return None
        *eye, angle = self._variables[OWN:]
        return Sight.of(self._state, np.array(eye), float(angle), self._walls, PLAYER)

    def _places(self, names: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
        return tuple((o.position_x, o.position_y) for o in self._state.objects if o.name in names)


def start_game(name: str, folder: Path, labels: bool = False) -> DoomGame:
    """Start the engine on one scene; everything that it writes goes to the folder. labels: of every pixel, as well."""
    try:
        import vizdoom
    except ImportError as missing:
        raise MissingExtraError("the Doom scenes need ViZDoom: pip install 'worldloop[train]'") from missing
    from vizdoom import Button, GameVariable, ScreenFormat, ScreenResolution

    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.scenarios_path) / f"{name}.cfg"))
    game.set_window_visible(False)
    game.set_screen_resolution(ScreenResolution.RES_640X480)
    game.set_screen_format(ScreenFormat.RGB24)
    game.set_render_hud(False)
    game.set_render_crosshair(False)
    game.set_render_decals(False)  # bullet holes would be a memory of the whole episode
    game.set_render_particles(False)
    game.set_render_screen_flashes(False)
    game.set_available_buttons([Button.TURN_LEFT, Button.TURN_RIGHT, Button.MOVE_FORWARD, Button.ATTACK])
    # Of the eye, beside the player's own: it bobs where the player walks.
    eye = (GameVariable.CAMERA_POSITION_X, GameVariable.CAMERA_POSITION_Y, GameVariable.CAMERA_POSITION_Z)
    game.set_available_game_variables(
        [
            GameVariable.HEALTH,
            GameVariable.SELECTED_WEAPON_AMMO,
            GameVariable.POSITION_X,
            GameVariable.POSITION_Y,
            GameVariable.ANGLE,
            GameVariable.PITCH,
            GameVariable.KILLCOUNT,
            *eye,
            GameVariable.CAMERA_ANGLE,
        ]
    )
    game.set_objects_info_enabled(True)
    game.set_sectors_info_enabled(True)
    game.set_labels_buffer_enabled(labels)
    game.set_episode_timeout(0)
    game.set_doom_config_path(str(folder / f"{name}.ini"))
    arguments = "+sv_infiniteammo 1 +sv_cheats 1"
    if SCENES[name].actors:
        patch = folder / f"{name}.wad"
        patch.write_bytes(wad_file({"DECORATE": SCENES[name].actors.encode()}))
        arguments += f" -file {patch}"
    game.add_game_args(arguments)
    with contextlib.chdir(folder):  # the engine also makes a folder where it starts, and no option moves that
        game.init()
    return game


def shrink(drawn: Frame) -> Frame:
    """Average squares of 4x4 pixels: uint8 [4 height, 4 width, 3] -> [height, width, 3].

    Halving twice takes a quarter of the time of dividing by four, and differs from it by one level of 255 at most.
    """
    height, width, _ = drawn.shape
    half = cv2.resize(drawn, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(half, (width // 4, height // 4), interpolation=cv2.INTER_AREA), np.uint8)


def turn_by(rng: np.random.Generator) -> list[bool]:
    """The buttons that turn one way or the other."""
    left = bool(rng.integers(2))
    return [left, not left, False, False]


def close_games(games: dict[str, DoomGame], folder: Path) -> None:
    """End the engines, then remove the folder: they write to it when they end."""
    for game in games.values():
        game.close()
    shutil.rmtree(folder, ignore_errors=True)


def wall_lines(state: GameState) -> NDArray[np.float64]:
    """The walls of the map: float64 [walls, 4], each x1, y1, x2, y2 in map units."""
    lines = [line for sector in state.sectors for line in sector.lines if line.is_blocking]
    return np.array([(line.x1, line.y1, line.x2, line.y2) for line in lines])


def wad_file(lumps: dict[str, bytes]) -> bytes:
    """Doom's container of named lumps, as the engine loads it on top of another (doomwiki.org/wiki/WAD)."""
    header_bytes = 12
    body, directory = b"", b""
    for name, data in lumps.items():
        directory += struct.pack("<II8s", header_bytes + len(body), len(data), name.encode())
        body += data
    return struct.pack("<4sII", b"PWAD", len(lumps), header_bytes + len(body)) + body + directory
