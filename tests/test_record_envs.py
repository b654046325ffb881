"""What an adapter promises: the environment's own game, seen clearly, with keys that do what they say."""

from __future__ import annotations

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
spaces = pytest.importorskip("gymnasium.spaces")

from worldmodel.errors import DatasetError  # noqa: E402
from worldmodel.train.envs import captions  # noqa: E402
from worldmodel.train.envs.car_racing import CarRacing  # noqa: E402
from worldmodel.train.envs.gymnasium_env import GymnasiumEnv, buttons, keys_of  # noqa: E402


def keys(*held: str) -> np.ndarray:
    return np.isin(CarRacing.actions, held)


def test_the_car_moves_exactly_as_in_the_environment() -> None:
    car, real = CarRacing(size=32), gymnasium.make("CarRacing-v3").unwrapped
    car.reset(5)
    real.reset(seed=int(np.random.default_rng([5, 0]).integers(2**31)))
    car.place(0, 1, speed=0.0)
    for tick in range(40):
        car.step(keys("gas", "left" if tick % 20 < 5 else "gas"))
        controls = np.array([car.steer, 0.16, 0.022])
        real.step(controls)
        real.step(controls)
        x, y, yaw, *_ = car.pose()
        assert (x, y, yaw) == (*real.car.hull.position, real.car.hull.angle)
    assert abs(yaw - real.track[0][1]) > 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_seeds_are_equal_episodes(seed: int) -> None:
    def frames() -> np.ndarray:
        car = CarRacing(size=32)
        car.reset(9)  # what was played before must not matter
        first = car.reset(seed)
        drive = car.policy(np.random.default_rng(4))
        return np.stack([first, *(car.step(drive())[0] for _ in range(60))])

    assert np.array_equal(frames(), frames())


def test_another_palette_is_the_same_drive_in_other_colours() -> None:
    """Through a change of colours, whose moment each palette draws for itself."""

    def drive(palette: int) -> tuple[np.ndarray, set[str]]:
        car = CarRacing(size=32, palette=palette)
        car.reset(3)
        held, facts, roads = car.policy(np.random.default_rng(4)), [], set()
        for _ in range(160):
            car.step(held())
            facts.append(car.read_facts())
            roads.add(car.scene()["road_name"])
        return np.stack(facts), roads

    (facts, roads), (same_facts, other_roads) = drive(0), drive(1)
    assert np.array_equal(facts, same_facts) and len(roads) > 1 and not roads & other_roads


def test_training_and_test_drive_other_tracks() -> None:
    train, test = CarRacing(size=32, split="train"), CarRacing(size=32, split="test")
    train.reset(0), test.reset(0)
    assert train.track.shape != test.track.shape or not np.allclose(train.track, test.track)
    assert {test.scene()["road_name"], test.scene()["grass_name"]} & set(captions.held_out_names())
    assert not {train.scene()["road_name"], train.scene()["grass_name"]} & set(captions.held_out_names())


def test_a_car_left_alone_comes_to_rest_and_stays() -> None:
    car = CarRacing(size=32)
    car.reset(0)
    car.place(0, 1, speed=30.0)
    speeds = []
    for _ in range(250):
        car.step(keys())
        speeds.append(car.read_facts()[car.facts.index("speed")])
    assert speeds[10] > 20 and max(speeds[-50:]) < 0.1


@pytest.mark.parametrize("key, sign", [("left", 1), ("right", -1)])
def test_steering_keys_turn_the_car_their_way(key: str, sign: int) -> None:
    car = CarRacing(size=32)
    car.reset(0)
    car.place(0, 1, speed=20.0)
    before = car.pose()[2]
    for _ in range(10):
        car.step(keys(key, "gas"))
    assert sign * (car.pose()[2] - before) > 0.2


def test_the_driver_does_everything_and_stays_gentle() -> None:
    car = CarRacing(size=16)
    facts, held = [], []
    for episode in range(12):
        car.reset(episode)
        drive = car.policy(np.random.default_rng(episode))
        for _ in range(400):
            held.append(drive())
            car.step(held[-1])
            facts.append(car.read_facts())
    known = dict(zip(car.facts, np.array(facts).T, strict=True))
    assert (np.array(held).mean(0) > 0.03).all() and (~np.array(held).any(1)).mean() > 0.1
    assert 0.02 < (known["on_road"] < 0.5).mean() < 0.4
    assert (np.abs(known["slip"]) > 0.3).mean() < 0.05
    left, right = (known["yaw_rate"] > 0.1).mean(), (known["yaw_rate"] < -0.1).mean()
    assert 0.6 < left / right < 1.6


def test_the_driver_loses_the_road_and_finds_it_again() -> None:
    """What no recording shows, no world can do."""
    found = 0
    for episode in range(12):
        car = CarRacing(size=16)
        car.reset(episode)
        drive = car.policy(np.random.default_rng(episode))
        lost = False
        for _ in range(400):
            car.step(drive())
            away = np.hypot(*(car.track[:, :2] - car.pose()[:2]).T).min()  # units
            found += bool(lost and away < 6)
            lost = away > 20 or (lost and away >= 6)
    assert found >= 3


@pytest.mark.parametrize("size", [64, 128])
def test_the_frame_is_antialiased_and_road_lies_ahead(size: int) -> None:
    car = CarRacing(size=size)
    car.reset(0)
    car.place(40, 1, speed=10.0)
    car.paint("white", (250, 250, 250), "black", (10, 10, 10))
    frame, _ = car.step(keys())
    levels = np.unique(frame[: size // 2])
    assert len(levels) > 8, "edges between road and grass should have steps between them"
    assert frame[size * 5 // 8, size // 2].min() >= 240, "white road, in one of its three shades"


def test_every_caption_names_both_colours_and_splits_differ() -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        said = {captions.caption(rng, "navy blue", "sand", split).lower() for _ in range(300)}
        assert len(said) > 100 and all("navy blue" in text and "sand" in text for text in said)
    assert not set(captions.train_templates()) & set(captions.held_out_templates())
    assert len(captions.train_templates()) >= 60 and len(captions.held_out_names()) >= 60
    assert not set(captions.train_names()) & set(captions.held_out_names())


@pytest.mark.parametrize("name", ["turquoise", "dark red", "white", "black"])
def test_a_name_is_nearest_to_its_own_colour(name: str) -> None:
    assert captions.nearest_name(captions.all_names()[name]) == name


def test_cartpole_plays_with_buttons() -> None:
    env = GymnasiumEnv("CartPole-v1", size=48)
    assert env.actions == ("action_0", "action_1")
    frame = env.reset(0)
    assert frame.shape == (48, 48, 3)
    drive, over, ticks = env.policy(np.random.default_rng(0)), False, 0
    while not over:
        _, over = env.step(drive())
        ticks += 1
    assert 5 < ticks < 500
    env.close()


class Spaces(gymnasium.Env):
    def __init__(self, space: spaces.Space) -> None:
        self.action_space = space


@pytest.mark.parametrize(
    "space, names, held, action",
    [
        (spaces.Discrete(3), 3, [0, 0, 1], 2),
        (spaces.MultiBinary(2), 2, [1, 0], [1, 0]),
        (spaces.MultiDiscrete([3, 2]), 3, [0, 1, 1], [2, 1]),
        (spaces.Box(-1, 1, (2,)), 4, [0, 1, 0, 0], [1, 0]),
        (spaces.Box(np.array([-1.0, 0.0], "f"), np.array([1.0, 1.0], "f")), 3, [1, 0, 1], [-1, 1]),
        (spaces.Box(-1, 1, (1,)), 2, [1, 1], [0]),
    ],
)
def test_buttons_for_every_action_space(space: spaces.Space, names: int, held: list[int], action: object) -> None:
    found, to_action = buttons(Spaces(space))
    assert len(found) == len(set(found)) == names
    made = to_action(np.array(held, bool))
    assert space.contains(made) and np.array_equal(made, action)


JOYSTICK = ["NOOP", "FIRE", "UP", "RIGHT", "UPRIGHT", "RIGHTFIRE", "UPRIGHTFIRE"]


@pytest.mark.parametrize(
    "held, action",
    [([], "NOOP"), (["up"], "UP"), (["up", "right"], "UPRIGHT"), (["fire", "up", "right"], "UPRIGHTFIRE"),
     (["fire", "up"], "FIRE")],
)  # fmt: skip
def test_directions_of_a_joystick_are_pressed_together(held: list[str], action: str) -> None:
    env = Spaces(spaces.Discrete(len(JOYSTICK)))
    env.get_action_meanings = lambda: JOYSTICK
    names, to_action = buttons(env)
    assert names == ("fire", "up", "right")
    assert JOYSTICK[to_action(np.isin(names, held))] == action


def test_buttons_have_the_keys_of_their_names_and_none_twice() -> None:
    keys = keys_of(("action_0", "up", "fire", "action_3"))
    assert keys["up"] == ["up"] and keys["fire"] == ["space"]
    assert keys["action_0"] == ["left"] and keys["action_3"] == ["right"]


def test_driving_earns_what_the_environment_pays() -> None:
    car = CarRacing(size=16)
    car.reset(0)
    assert car.outcome() == (0, False)
    earned = []
    for key in ["brake"] * 60 + ["gas"] * 60:
        car.step(keys(key))
        earned.append(car.outcome().reward)
    assert earned[55] == pytest.approx(-0.2) and sum(earned[60:]) > 10, "standing costs, new road pays"


def test_an_end_is_told_apart_from_a_time_limit() -> None:
    env = GymnasiumEnv("CartPole-v1", size=16)
    env.reset(0)
    over = False
    while not over:
        _, over = env.step(np.array([True, False]))
    assert env.outcome() == (1.0, True)
    env.reset(0)
    assert env.outcome() == (0, False)
    env.close()


def test_atari_plays_by_its_ids() -> None:
    pytest.importorskip("ale_py")
    env = GymnasiumEnv("ALE/Freeway-v5", size=48)
    assert (env.actions, env.tick_hz) == (("up", "down"), 15)
    env.reset(0)
    earned = 0.0
    for _ in range(120):
        env.step(np.array([True, False]))
        earned += env.outcome().reward
    assert earned >= 1, "a hen that keeps walking gets across"
    env.close()


def test_equal_seeds_are_equal_lands_of_crafter() -> None:
    pytest.importorskip("crafter")
    from worldmodel.train.envs.crafter_env import Crafter

    def frames() -> np.ndarray:
        land = Crafter(size=36)
        first = land.reset(7)
        drive = land.policy(np.random.default_rng(1))
        return np.stack([first, *(land.step(drive())[0] for _ in range(40))])

    made = frames()
    assert np.array_equal(made, frames()) and made.std() > 10


def test_an_unknown_environment_is_an_error_of_ours() -> None:
    with pytest.raises(DatasetError, match="NoSuchGame"):
        GymnasiumEnv("NoSuchGame-v0")


def test_the_road_is_in_view_where_the_picture_shows_it() -> None:
    """Also when none has been seen for a while: the driver goes far enough for that."""
    seen, shown = [], []
    for episode in range(12):
        car = CarRacing(size=48, recolour=False)
        frame = car.reset(episode)
        drive = car.policy(np.random.default_rng(episode))
        for _ in range(300):
            seen.append(car.read_facts()[car.facts.index("in_view")])
            shown.append((np.abs(frame.astype(int) - car.scene()["road"]).max(-1) < 12).mean())
            frame = car.step(drive())[0]
    in_view, share = np.array(seen) > 0, np.array(shown)
    assert 0.01 < (~in_view).mean() < 0.2
    assert (share[~in_view] < 0.01).mean() > 0.95 and (share[in_view] > 0.01).mean() > 0.95


def test_a_driver_that_does_not_look_leaves_the_road_and_says_so() -> None:
    """Else keys would tell where the road goes, and a world would put it wherever it is steered."""
    lost: dict[bool, list[float]] = {False: [], True: []}
    for episode in range(12):
        car = CarRacing(size=16, recolour=False)
        car.reset(episode)
        drive, since = car.policy(np.random.default_rng(episode)), 0
        for _ in range(500):
            before = car.read_facts()
            car.step(drive())
            facts = dict(zip(car.facts, car.read_facts(), strict=True))
            blind, since = bool(facts["open_loop"]), since + 1
            if blind != bool(before[-1]):
                since = 0
            if since > 30 and facts["speed"] > 5:
                lost[blind].append(facts["on_road"] < 0.5)
    assert min(len(ticks) for ticks in lost.values()) > 200
    assert np.mean(lost[True]) > 0.6 > 2 * np.mean(lost[False])


def test_a_worn_road_is_the_same_drive_with_less_road_here_and_there() -> None:
    share, differs = [], []
    for seed in range(4):
        whole, worn = CarRacing(size=48, recolour=False), CarRacing(size=48, recolour=False, worn=True)
        frames = [(whole.reset(seed), worn.reset(seed))]
        drive = whole.policy(np.random.default_rng(seed))
        for _ in range(150):
            held = drive()
            frames.append((whole.step(held)[0], worn.step(held)[0]))
            assert np.array_equal(whole.read_facts()[:-1], worn.read_facts()[:-1])  # the last is the driver's, of one
        road = np.array(whole.scene()["road"])
        assert np.array_equal(road, worn.scene()["road"])
        both = np.array(frames).astype(int)  # [ticks, whole and worn, height, width, 3]
        share.append((np.abs(both - road).max(-1) < 12).mean((2, 3)))
        differs.append((both[:, 0] != both[:, 1]).any(-1).mean((1, 2)))
    seen, away = np.concatenate(share), np.concatenate(differs)
    assert (away > 0.02).mean() > 0.3, "much of the road is worn"
    assert 0.05 < (seen[:, 1] < 0.7 * seen[:, 0]).mean() < 0.6, "in places most of it is gone, elsewhere it is there"
