"""Rewards and ends: recorded where the environment tells them, learned by heads, told by the world and its env."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("gymnasium")
pytest.importorskip("h5py")

from export.onnx import export_graphs
from export.pack import Card, Start, load_world, pack
from runtime.env import WorldEnv, WorldVectorEnv
from runtime.session import Session
from runtime.world import World
from worldmodel.errors import DatasetError
from worldmodel.spec import CodecSpec, GeneratorSpec, WorldSpec
from worldmodel.tick import World as TorchWorld
from worldmodel.train.dataset import Dataset, DatasetInfo, ShardWriter
from worldmodel.train.envs import BEGUN, Outcome
from worldmodel.train.heads import Frames, train_heads, with_heads
from worldmodel.train.team import Team

SPEC = WorldSpec(
    name="lane", height=32, width=32, tick_hz=5, actions=("go",), keys={"go": ["right"]}, environment="lane",
    codec=CodecSpec(channels=4, encoder_width=16, encoder_blocks=1, decoder_widths=(16, 16), decoder_blocks=(1, 1)),
    generator=GeneratorSpec(dim=64, depth=1, heads=2),
)  # fmt: skip
EPISODES, END = 12, 28


class Lane:
    """A square walks right while 'go' is held; a step earns 1, the right wall ends it."""

    env_id, actions = "Lane-v0", ("go",)

    def reset(self, seed: int) -> np.ndarray:
        self.x, self.now = 2, BEGUN
        return self.look()

    def look(self) -> np.ndarray:
        picture = np.full((32, 32, 3), 40, np.uint8)
        picture[10:22, self.x - 2 : self.x + 4] = 250
        return picture

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        self.x += 2 * bool(action[0])
        self.now = Outcome(float(action[0]), self.x >= END)
        return self.look(), self.now.terminated

    def scene(self) -> dict:
        return SCENE

    def policy(self, rng: np.random.Generator):
        return lambda: rng.random(1) < 0.6


SCENE = {"captions": ["a lane"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, lane = tmp_path_factory.mktemp("lane"), Lane()
    info = DatasetInfo("Lane-v0", "lane", {}, 5, 32, 32, ["go"], SPEC.keys, [], [], "train", 0, 1000)
    info.write(folder)
    nothing = np.empty(0, np.float32)
    with ShardWriter(folder / "shard-00000.h5", info) as shard:
        for episode in range(EPISODES):
            drive = lane.policy(np.random.default_rng(episode))
            shard.add(lane.reset(0), np.zeros(1), episode, SCENE, nothing, BEGUN)
            while not lane.now.terminated:
                action = drive()
                frame, _ = lane.step(action)
                shard.add(frame, action, episode, SCENE, nothing, lane.now)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a world that knows nothing, which is no matter here."""
    folder = tmp_path_factory.mktemp("runs") / "lane"
    folder.mkdir()
    torch.manual_seed(0)
    world = TorchWorld(SPEC)
    (folder / "spec.json").write_text(SPEC.to_json())
    save_file(world.codec.state_dict(), folder / "codec.safetensors")
    save_file(world.generator.state_dict(), folder / "world.safetensors")
    return folder


@pytest.fixture(scope="module")
def told(data, run, tmp_path_factory):
    """That world's file, with heads trained for a moment."""
    train_heads(SPEC, data, run, minutes=0.03, batch=32)
    texts = dict.fromkeys(("title", "licence", "credits", "trained_on", "default_prompt"), "a lane")
    card = Card(texts, False, ["a lane"], [Start("left", 1, 0), Start("walked", 2, 6)])
    world, path = load_world(run), tmp_path_factory.mktemp("worlds") / "lane.world"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.pack.make_adapter_for", lambda *_: Lane())
        pack(world, card, export_graphs(world), path, "fp32")
    return path


def test_a_recording_keeps_rewards_and_ends(data):
    reward, ends = Dataset(data).outcomes()
    assert ends.sum() == EPISODES and reward.sum() == EPISODES * (END - 2) / 2
    assert ends[[episode.stop - 1 for episode in Dataset(data).episodes]].all()


def test_a_recording_without_them_loads_but_teaches_no_heads(tmp_path, run):
    info = DatasetInfo("Lane-v0", "lane", {}, 5, 32, 32, ["go"], SPEC.keys, [], [], "train", 0, 1000)
    info.write(tmp_path)
    with ShardWriter(tmp_path / "shard-00000.h5", info) as shard:
        shard.add(Lane().reset(0), np.zeros(1), 0, SCENE, np.empty(0, np.float32))
    assert len(Dataset(tmp_path).load().frames) == 1
    with pytest.raises(DatasetError, match="without rewards"):
        train_heads(SPEC, tmp_path, run, minutes=0.01)


def test_heads_learn_what_a_step_earns_and_where_it_ends(data, run):
    torch.manual_seed(1)
    frames = Frames.of(with_heads(SPEC), data, run, Team.join())
    draw, optimiser = torch.Generator().manual_seed(0), torch.optim.AdamW(frames.heads.parameters(), 2e-3)
    for _ in range(150):
        optimiser.zero_grad()
        sum(frames.losses(64, draw).values()).backward()
        optimiser.step()
    frames.heads.threshold.copy_(frames.best_threshold())
    figures = frames.figures()
    assert figures["reward_r"] > 0.8 and figures["ends_found"] == figures["ends_true"] == 1


def test_figures_of_play_are_left_out_where_no_episode_is_long_enough(data, run):
    frames = Frames.of(with_heads(SPEC), data, run, Team.join())
    assert set(frames.played()) == {"reward_r_played"}
    slow = Frames.of(with_heads(replace(SPEC, tick_hz=200)), data, run, Team.join())
    assert slow.played() == {} and "reward_r_second" in slow.figures()


def test_heads_that_never_saw_an_end_never_tell_one(data, run):
    frames = Frames.of(with_heads(SPEC), data, run, Team.join())
    endless = Frames(frames.world, frames.latents, frames.reward, torch.zeros_like(frames.ends))
    assert "end_loss" not in endless.losses(8, torch.Generator()) and endless.best_threshold() > 1e6


def test_a_world_with_heads_plays_the_frames_of_the_one_without(told, run):
    plain = TorchWorld(SPEC)
    with_them = load_world(run)
    assert with_them.spec == with_heads(SPEC) and plain.heads is None
    assert replace(with_them.spec, heads=None) == SPEC, "a world that is trained already stays what it is"
    assert WorldSpec.from_json(with_them.spec.to_json()) == with_them.spec


def test_the_file_tells_what_torch_tells(told):
    world = World.open(told)
    session, reference = (Session(world, backend=name, threads=1) for name in ("onnxruntime", "torch"))
    assert session.reward == 0 and not session.terminated
    for tick in range(6):
        held = {"go"} if tick % 2 else set()
        session.tick(held), reference.tick(held)
        assert session.reward == pytest.approx(reference.reward, abs=1e-3) and session.reward != 0
        assert session.terminated == reference.terminated


def test_an_env_gives_what_the_session_tells_and_ends_with_it(told):
    world = World.open(told)
    env, session = WorldEnv(world, backend="onnxruntime", threads=1), Session(world, backend="onnxruntime", seed=4)
    env.reset(seed=4), session.tick()
    _, reward, terminated, _, _ = env.step(np.array([1]))
    session.tick({"go"})
    assert (reward, terminated) == (session.reward, session.terminated)
    many = WorldVectorEnv(world, 2, backend="onnxruntime", threads=1)
    many.reset(seed=4)
    _, rewards, _, _, _ = many.step(np.array([[1], [0]]))
    assert rewards[0] == pytest.approx(reward, abs=1e-4) and rewards[0] != rewards[1]


def test_a_session_of_a_world_without_heads_tells_nothing():
    session = Session(World.open("mock"))
    session.tick()
    assert session.reward is None and not session.terminated


def test_episodes_begin_at_the_starts_that_are_asked_for(told):
    many = WorldVectorEnv(World.open(told), 2, starts=["walked"], backend="onnxruntime", threads=1)
    env = WorldEnv(World.open(told), backend="onnxruntime", threads=1)
    frames, _ = many.reset(seed=0)
    alone, _ = env.reset(seed=0, options={"start": "walked"})
    other, _ = env.reset(seed=0, options={"start": "left"})
    assert np.abs(frames[0].astype(int) - alone).max() <= 1 < np.abs(frames[0].astype(int) - other).max()
