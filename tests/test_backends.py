"""Every backend plays the same game: the contract of world files, on real graphs."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_world import CELLS, HEIGHT, TABLE

from runtime.backends import BACKENDS, default_threads, load_backend, usable_backends
from runtime.backends.bfloat16 import Bfloat16Array, bits_of
from runtime.backends.graphs import ALIGNMENT, aligned_zeros
from runtime.backends.openvino import groups
from runtime.cli.bench import Game
from runtime.errors import BackendError, PromptError
from runtime.matmul_peak import chain_graph, peak_flops
from runtime.noise import tick_noise
from runtime.session import Session
from runtime.world import DEFAULT_WORLD, World

GRAPH_BACKENDS = [("onnxruntime", "fp32"), ("openvino", "fp32")]


@pytest.fixture(scope="module", params=GRAPH_BACKENDS, ids=lambda pair: " ".join(pair))
def session(request, tiny_file) -> Session:
    name, precision = request.param
    pytest.importorskip(name)
    return Session(World.open(tiny_file), backend=name, precision=precision, threads=1, seed=11)


def expected(ticks: list[set[str]], seed: int, tint: float, bars: float = 0.0) -> list[np.ndarray]:
    """The tiny world in numpy, worked out by hand."""
    value = np.full(CELLS, bars, np.float32)
    frames = []
    for tick, names in enumerate(ticks):
        push = sum(
            (TABLE[i] for i, name in enumerate(("left", "right", "gas")) if name in names), np.zeros(CELLS, np.float32)
        )
        value = value + push + tick_noise(seed, tick, (1, 1, 1, 1, CELLS)).reshape(CELLS) * np.float32(0.01)
        row = np.abs(np.fmod(value + np.float32(tint), np.float32(256))).astype(np.uint8)
        frames.append(np.broadcast_to(row[None, :, None], (HEIGHT, CELLS, 3)))
    return frames


def test_a_backend_computes_what_the_graph_says(session):
    session.restart()
    ticks = [{"gas"}, {"gas", "left"}, set(), {"right"}] * 25
    for names, frame in zip(ticks, expected(ticks, 11, tint=10), strict=True):
        assert np.abs(session.tick(names).astype(int) - frame).max() <= 1


def test_a_start_brings_its_own_state_and_prompt(session):
    session.restart(start="far")
    assert session.prompt == "bright"
    assert np.abs(session.tick().astype(int) - expected([set()], 11, tint=90, bars=50)[0]).max() <= 1
    session.restart(start="zero")
    assert session.prompt == "dark"


def test_a_prompt_of_several_words_goes_through_the_tokenizer(session):
    session.restart()
    session.set_prompt("Very very BRIGHT")
    assert np.abs(session.tick().astype(int) - expected([set()], 11, tint=150)[0]).max() <= 1


def test_an_empty_prompt_is_refused(session):
    with pytest.raises(PromptError, match="empty"):
        session.set_prompt("  ")


def test_loading_goes_on_as_before(session):
    session.restart()
    for _ in range(5):
        session.tick({"gas"})
    saved = session.snapshot()
    future = [session.tick({"left"}) for _ in range(10)]
    session.restore(saved)
    assert all(np.array_equal(session.tick({"left"}), frame) for frame in future)


def test_a_tick_leaves_its_arguments_as_they_were(session):
    """Also when arrays of older states are given to be overwritten, and when garbage is collected in between."""
    backend, manifest = session.backend, session.world.manifest
    state = {name: aligned_zeros(spec.shape, spec.dtype) for name, spec in manifest.state.items()}
    state["bars"][...] = 3
    before = {name: array.copy() for name, array in state.items()}
    arguments = (
        np.ones((1, 3), np.float32),
        np.zeros((1, 1, CELLS), np.float32),
        np.ones((1, 1, 1, 1, CELLS), np.float32),
    )
    first, after = backend.tick(state, *arguments, {})
    gc.collect()
    again, _ = backend.tick(
        state, *arguments, {"bars": np.empty((1, CELLS), np.float32), "frame": np.empty(1, np.int64)}
    )
    assert np.array_equal(first, again)
    assert all(np.array_equal(state[name], before[name]) for name in state)
    assert after["tint"] is state["tint"]  # what does not change is shared, not copied


def test_arrays_that_must_not_be_written_are_read(session):
    """Hosts pass such arrays, and snapshots are made of them."""
    session.restart()
    expected = session.tick({"gas"})
    session.restart()
    state = {name: array.copy() for name, array in session.peek().items()}
    arguments = session.world.action({"gas"}), session.backend.embed("dark"), tick_noise(11, 0, (1, 1, 1, 1, CELLS))
    for array in [*state.values(), *arguments]:
        array.flags.writeable = False
    frame, _ = session.backend.tick(state, *arguments, {})
    assert np.array_equal(frame[0], expected)


@pytest.mark.parametrize("name, precision", [*GRAPH_BACKENDS, ("openvino", "auto")])
@pytest.mark.parametrize("players, threads", [(2, 4), (3, 1), (5, 2)], ids=["few", "in turn", "uneven"])
def test_several_players_tick_as_they_would_alone(tiny_file, name, precision, players, threads):
    """Byte for byte with openvino, whose groups are of a fixed size."""
    world = World.open(tiny_file)
    rng = np.random.default_rng(0)
    noise = tick_noise(0, 0, (players, 1, 1, 1, CELLS))
    action = (rng.random((players, 3)) < 0.5).astype(np.float32)
    prompt = np.arange(players * CELLS, dtype=np.float32).reshape(players, 1, CELLS)
    many = load_backend(world, name, players=players, threads=threads, precision=precision)
    one = load_backend(world, name, threads=threads, precision=precision)
    shapes = world.manifest.state.items()
    begun = {key: aligned_zeros((players, *spec.shape[1:]), spec.dtype) for key, spec in shapes}
    state, frames = many.recache(begun, prompt), []
    for _ in range(2):
        frame, state = many.tick(state, action, prompt, noise, {})
        frames.append(frame)
    for player in range(players):
        own, pushed, told, drawn = (
            {key: array[player : player + 1].copy() for key, array in begun.items()},
            *(array[player : player + 1].copy() for array in (action, prompt, noise)),
        )
        own = one.recache(own, told)
        for frame in frames:
            alone, own = one.tick(own, pushed, told, drawn, {})
            if name == "openvino":
                assert np.array_equal(frame[player], alone[0])
            assert np.abs(frame[player].astype(int) - alone[0]).max() <= 1
        for key, array in own.items():
            assert np.allclose(state[key][player], array[0], atol=1e-4)


@pytest.mark.parametrize(
    "players, threads, sizes",
    [(1, 4, [1]), (2, 4, [1, 1]), (5, 2, [3, 2]), (8, 2, [4, 4]), (9, 2, [3, 2, 2, 2]), (9, 1, [3, 3, 3])],
)
def test_a_batch_keeps_every_thread_busy_in_groups_of_at_most_four(players, threads, sizes):
    assert groups(players, threads) == sizes


@pytest.mark.parametrize(
    "flops, players, cpu, threads",
    [
        (1.7e9, 1, "avx2 avx512f avx512_bf16", 1),
        (1.7e9, 1, "avx2 avx512f", 1),
        (1.7e9, 1, "avx2", 3),
        (4.0e9, 1, "avx2 avx512f", 2),
        (1e12, 1, "avx512_bf16", 4),
        (1.7e9, 8, "avx512_bf16", 4),
        (None, 1, "avx512_bf16", 4),
    ],
    ids=["bf16", "wide", "old", "larger", "huge", "batch", "unknown"],
)
def test_one_player_takes_as_many_threads_as_a_tick_needs(monkeypatch, tmp_path, flops, players, cpu, threads):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {cpu}\n")
    monkeypatch.setattr("runtime.machine.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("runtime.backends.cores", lambda: 6)
    world = World.open(DEFAULT_WORLD)
    manifest = replace(world.manifest, flops_per_tick=flops, tick_hz=25)
    assert default_threads(replace(world, manifest=manifest), players) == threads


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_players_of_the_shipped_world_see_the_bytes_of_playing_alone(precision):
    """On as many threads as compute one of them; alone on more threads, sums may come in another order."""
    world, players = World.open(DEFAULT_WORLD), 5  # in groups of three and two
    many = load_backend(world, "openvino", players=players, threads=2, precision=precision)
    one = load_backend(world, "openvino", threads=1, precision=precision)
    batch, alone = Game(world, many, seed=5), Game(world, one, seed=5)
    action = np.eye(players, len(world.manifest.actions), dtype=np.float32)
    noise = tick_noise(5, 0, (players, *world.manifest.noise))
    frames, _ = many.tick(batch.state, action, batch.prompt, noise, {})
    for at in range(players):
        frame, _ = one.tick(alone.state, action[at : at + 1].copy(), alone.prompt, noise[at : at + 1].copy(), {})
        assert np.array_equal(frame[0], frames[at])
    assert not np.array_equal(frames[0], frames[1])


def test_bfloat16_numbers_are_rounded_as_torch_rounds_them():
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(10_000) * 10.0 ** rng.integers(-30, 30, 10_000)
    wide = np.concatenate([wide, [0, 1.00390625, np.inf]]).astype(np.float32)
    there = torch.from_numpy(wide).bfloat16()
    assert np.array_equal(bits_of(wide), there.view(torch.uint16).numpy())
    back = np.asarray(Bfloat16Array(bits_of(wide)))
    assert back.dtype == np.float32 and np.array_equal(back, there.float().numpy())
    assert np.array_equal(bits_of(back), bits_of(wide)), "and once they are, nothing is lost any more"


def test_cached_keys_and_values_are_kept_in_the_precision_of_the_products():
    world = World.open(DEFAULT_WORLD)
    session = Session(world, backend="openvino", threads=1)
    session.tick({"gas"})
    narrow = session.backend.precision == "bf16"
    for name, array in session.peek().items():
        spec = world.manifest.state[name]
        assert array.nbytes == (spec.nbytes // 2 if narrow and name.startswith("kv.") else spec.nbytes), name
    kept = session.snapshot()
    future = [session.tick({"gas", "left"}) for _ in range(3)]
    session.restore(kept)
    assert all(np.array_equal(session.tick({"gas", "left"}), frame) for frame in future)


def test_the_best_backend_is_taken_and_named(tiny_file):
    world = World.open(tiny_file)
    backend = load_backend(world, threads=1)
    assert backend.name == usable_backends(world)[0]
    assert backend.precision in ("fp32", "bf16")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"name": "gpu9000"}, "there are: onnxruntime-cuda, openvino, onnxruntime, .*mock"),
        ({"name": "mock"}, "use one of"),
        ({"name": "onnxruntime", "precision": "bf16"}, "it has: fp32"),
    ],
)
def test_a_backend_that_cannot_do_it_says_what_can(tiny_file, options, said):
    with pytest.raises(BackendError, match=said):
        load_backend(World.open(tiny_file), **options)


def test_a_backend_that_is_not_installed_says_how_to_get_it(tiny_file, monkeypatch):
    monkeypatch.setitem(BACKENDS, "onnxruntime", ("runtime.backends.onnxruntime", "no_such_package"))
    with pytest.raises(BackendError, match="pip install no_such_package"):
        load_backend(World.open(tiny_file), "onnxruntime")


def test_arrays_start_where_vector_units_like_it():
    for shape in [(1,), (3, 5), (1, 7, 64)]:
        array = aligned_zeros(shape, np.dtype(np.float32))
        assert array.ctypes.data % ALIGNMENT == 0 and array.shape == shape and not array.any()


def test_the_yardstick_graph_is_a_chain_of_products_that_every_backend_takes(session, monkeypatch):
    monkeypatch.setattr("runtime.matmul_peak.SIDES", (32,))
    import onnx

    onnx.checker.check_model(onnx.ModelProto.FromString(chain_graph(32)))
    assert peak_flops(session.backend.maker) > 1e6
