"""The tick that plays equals the clip that trains, and a world is a pure function."""

from dataclasses import replace

import pytest
import torch

from worldmodel.schedule.table import ScheduleTable, frame_wise, rolling
from worldmodel.spec import CodecSpec, DragSpec, GeneratorSpec, WorldSpec
from worldmodel.tick import (
    State,
    World,
    count_noises,
    next_latent,
    recache,
    reprime,
    start,
    state_shapes,
    tick,
)
from worldmodel.transformer.clip import Clip, denoise_clip
from worldmodel.transformer.generator import FRESH, drifted, first_noise

TINY = WorldSpec(
    name="tiny", height=24, width=32, tick_hz=25, actions=("left", "right", "gas"), keys={}, environment="none",
    prompt_tokens=2, prompt_dim=4, window=3,
    codec=CodecSpec(
        channels=4, down=4, encoder_width=8, encoder_blocks=1, decoder_widths=(8, 8), decoder_blocks=(1, 1)
    ),
    generator=GeneratorSpec(dim=32, depth=3, heads=2, action_history=3),
)  # fmt: skip


KINDS = {
    "plain": ({}, None),
    "moves": ({"reach": (1, 2), "slow": 2, "prompt_skip": True}, None),
    "convolutions": ({"conv_head": 4}, None),
    "dragged": ({}, DragSpec(4.0)),
}


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    torch.manual_seed(0)
    sizes, tracks = KINDS[request.param]
    world = World(replace(TINY, generator=replace(TINY.generator, **sizes), tracks=tracks)).eval()
    for parameter in world.parameters():  # layers that start at zero would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    if world.generator.conv_head:  # pictures that grow fivefold in a tick leave few digits to compare
        for layer in (world.generator.keep, world.generator.carry, world.generator.conv_head.lacking):
            torch.nn.init.normal_(layer.weight, std=0.02)
    if world.generator.moved:  # chosen too sharply, the last bit of a float grows from tick to tick
        torch.nn.init.normal_(world.generator.moved.whence.weight, std=0.05)
    return world


def started(world: World, schedule: ScheduleTable, players: int = 1) -> State:
    generator = torch.Generator().manual_seed(1)
    spec = world.spec
    latents = torch.randn(players, spec.window + 2, *spec.latent_shape, generator=generator)
    actions = torch.randn(players, spec.window + 2, 3, 3, generator=generator)
    return start(world, latents, actions, schedule)


def inputs(world: World, schedule: ScheduleTable, ticks: int, players: int = 1) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(2)
    spec = world.spec
    return [
        (
            torch.randint(0, 2, (players, 3), generator=generator).float(),
            torch.randn(players, 2, 4, generator=generator),
            torch.randn(players, schedule.noises, *spec.latent_shape, generator=generator),
        )
        for _ in range(ticks)
    ]


@torch.no_grad()
@pytest.mark.parametrize("news", [False, True])
def test_playing_equals_the_parallel_pass_that_training_uses(world, news):
    """Frames made one by one with the cache are those that the clip denoises side by side from the same history."""
    schedule, window, ticks = frame_wise(1.0, 0.4), TINY.window, 9
    state = started(world, schedule)
    prompt = torch.randn(1, 2, 4)
    # Fill the window by play, so that every cached key was made from a full window as well.
    latents, told = [state["latents"][:, 0]], [state["sink_actions"]]
    history, made, second_input, slow = state["actions"], [], [], []
    if news:
        state = recache(world, state, torch.randn(1, 2, 4))
    state = recache(world, state, prompt)
    first = state["latents"][:, 1:]
    led = torch.randn(1, ticks, 3, *TINY.latent_shape[1:]) if world.spec.tracks else None
    for number, (action, _, noise) in enumerate(inputs(world, schedule, ticks)):
        at = None if led is None else led[:, number]
        latent, state = next_latent(world, state, action, prompt, noise, schedule, at)
        history = torch.cat([history, action.unsqueeze(1)], 1)
        made.append(latent)
        second_input.append(noise)
        slow.append(state["slow"] if "slow" in state else noise.new_empty(1, 0))
    clean = torch.cat([latents[0].unsqueeze(1), first, torch.stack(made, 1)], 1)
    frames = clean.shape[1]
    told = torch.stack([told[0], *[history[:, i : i + 3] for i in range(frames - 1)]], 1)
    prompts = prompt.unsqueeze(1).expand(-1, frames, -1, -1)
    fresh = torch.full((1, frames), float(news))
    of_clip = None if led is None else torch.nn.functional.pad(led, (*[0] * 6, frames - ticks, 0))
    clip = Clip(clean, torch.zeros(1, frames), told, prompts, prompts, fresh, fresh, led=of_clip)
    each = torch.arange(frames).expand(1, -1)

    def denoised(noisy, sigma):
        return denoise_clip(world.generator, clip, noisy, torch.full((1, frames), sigma), each, window)

    start_noise = torch.randn_like(clean)
    again = torch.randn_like(clean)
    start_noise[:, -ticks:] = torch.stack([n[:, 0] for n in second_input], 1)
    again[:, -ticks:] = torch.stack([n[:, 1] for n in second_input], 1)
    begun = first_noise(start_noise).clone()
    begun[:, -ticks:, : slow[0].shape[1]] = torch.stack(slow, 1)[..., None, None]
    clean_guess = denoised(begun, 1.0)
    result = denoised(0.6 * clean_guess + 0.4 * again, 0.4)
    torch.testing.assert_close(result[:, -ticks:], clean[:, -ticks:], rtol=1e-4, atol=1e-4)


def test_slow_numbers_stay_standard_normal_and_change_slowly():
    generator = torch.Generator().manual_seed(0)
    slow = [torch.randn(4000, 1, generator=generator)]
    for _ in range(23):
        slow.append(drifted(slow[-1], torch.randn(4000, 1, generator=generator)))
    assert 0.95 < slow[-1].std() < 1.05
    lasting = torch.corrcoef(torch.cat([slow[0], slow[1], slow[-1]], 1).T)[0]
    assert lasting[1] > 0.96 and 0.45 < lasting[2] < 0.55


@torch.no_grad()
@pytest.mark.parametrize("tile", [1, 3])
def test_draws_that_are_denoised_together_are_those_denoised_alone(world, tile):
    batch, frames = 2, 9
    clean, noisy, other = torch.randn(3, batch, frames, *TINY.latent_shape)
    prompts, zeros = torch.randn(batch, frames, 2, 4), torch.zeros(batch, frames)
    clip = Clip(clean, zeros, torch.randn(batch, frames, 3, 3), prompts, prompts, zeros, zeros)
    sigma, frame = torch.rand(batch, frames), torch.arange(frames)
    tile_start = (frame - frame % tile).expand(batch, -1) if tile > 1 else None

    def denoised(noisy):
        return denoise_clip(world.generator, clip, noisy, sigma.repeat(1, noisy.shape[1] // frames), tile_start, 3)

    alone = torch.cat([denoised(noisy), denoised(other)], 1)
    torch.testing.assert_close(denoised(torch.cat([noisy, other], 1)), alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prompt_is_news_for_a_while_and_then_the_newest_frame_is_the_sink(world):
    schedule = frame_wise(1.0)
    state = recache(world, started(world, schedule), torch.full((1, 2, 4), 1.0))
    assert state["fresh"].item() == 0, "the first prompt says what is seen already"
    state = recache(world, state, torch.full((1, 2, 4), 2.0))
    sink = state["latents"][:, 0]
    for action, _, noise in inputs(world, schedule, FRESH - 1):
        _, state = next_latent(world, state, action, state["told"], noise, schedule)
        assert torch.equal(state["latents"][:, 0], sink)
    newest = {name: value.clone() for name, value in state.items()}
    told_again = recache(world, state, state["told"])
    assert torch.equal(told_again["fresh"], state["fresh"]), "the same words are no news"
    action, _, noise = inputs(world, schedule, 1)[0]
    _, state = next_latent(world, state, action, state["told"], noise, schedule)
    assert state["fresh"].item() == 0 and state["position"][0, 0] == newest["frame"]
    assert torch.equal(state["latents"][:, 0], newest["latents"][:, -1])
    assert torch.equal(state["sink_actions"], newest["actions"][:, -TINY.generator.action_history :])
    assert torch.equal(state["kv.0"][:, :, :, 0], state["kv.0"][:, :, :, -1])


@torch.no_grad()
def test_a_rolling_window_of_one_is_frame_wise_denoising_in_one_step(world):
    state = recache(world, started(world, rolling(1)), torch.ones(1, 2, 4))
    for action, prompt, noise in inputs(world, rolling(1), 3):
        a, after_a = next_latent(world, state, action, prompt, noise, rolling(1))
        b, after_b = next_latent(world, state, action, prompt, noise, frame_wise(1.0))
        assert torch.equal(a, b)
        state = after_a
    assert all(torch.equal(after_a[k], after_b[k]) for k in after_a)


@torch.no_grad()
@pytest.mark.parametrize(
    "schedule", [frame_wise(1.0), frame_wise(1.0, 0.5), rolling(3), ScheduleTable(((0.5, 1.0), (0.3, 0.7)))]
)
def test_players_in_a_batch_do_not_see_each_other(world, schedule):
    state = recache(world, started(world, schedule, players=2), torch.ones(2, 2, 4))
    assert {
        name: (shape[1:], state[name].dtype) for name, (shape, _) in state_shapes(world.spec, schedule).items()
    } == {name: (tuple(value.shape[1:]), value.dtype) for name, value in state.items()}
    alone = {name: value[1:] for name, value in state.items()}
    for action, prompt, noise in inputs(world, schedule, 5, players=2):
        kept = {name: value.clone() for name, value in state.items()}
        frame, after = tick(world, state, action, prompt, noise, schedule)
        assert frame.dtype == torch.uint8 and frame.shape == (2, 24, 32, 3)
        assert all(torch.equal(state[name], kept[name]) for name in state), "the caller's state was changed"
        frame_alone, alone = tick(world, alone, action[1:], prompt[1:], noise[1:], schedule)
        assert (frame[1:].int() - frame_alone.int()).abs().max() <= 1
        state = after


@torch.no_grad()
@pytest.mark.parametrize("schedule", [rolling(3), rolling(2), ScheduleTable(((0.5, 1.0), (0.3, 0.7)))])
def test_after_a_rollback_the_state_is_that_of_a_game_that_knew_the_action(world, schedule):
    """Two games hold different keys, so other frames are in flight; the frames shown so far are made equal."""
    guessed = recache(world, started(world, schedule), torch.ones(1, 2, 4))
    for action, prompt, noise in inputs(world, schedule, 4):
        _, guessed = tick(world, guessed, action, prompt, noise, schedule)
    knew = {**guessed, "flight": torch.randn_like(guessed["flight"])}
    kept = {name: value.clone() for name, value in guessed.items()}
    noise = torch.randn(1, count_noises(schedule.reprime), *TINY.latent_shape)
    pressed, prompt = torch.tensor([[0.0, 1.0, 1.0]]), torch.ones(1, 2, 4)
    frame, after = reprime(world, guessed, pressed, prompt, noise, schedule)
    same_frame, same = reprime(world, knew, pressed, prompt, noise, schedule)
    assert torch.equal(frame, same_frame) and all(torch.equal(after[name], same[name]) for name in after)
    assert all(torch.equal(guessed[name], kept[name]) for name in kept), "the caller's state was changed"
    assert after["flight"].shape == guessed["flight"].shape and after["flight"].std() > 0.05
    late, _ = tick(world, guessed, pressed, prompt, noise, schedule)
    assert not torch.equal(late, frame)


def test_a_rollback_leaves_every_frame_at_the_level_of_its_place():
    for schedule in (rolling(4), ScheduleTable(((0.5, 1.0), (0.3, 0.7)))):
        plan, levels = schedule.reprime, list[float]()
        for number, row in enumerate(plan.rows):
            levels += [1.0] * (len(row) - len(levels))
            assert levels == [level.sigma for level in row]
            following = [plan.following(number, lane) for lane in range(len(row))]
            levels = [level.sigma if level else 0.0 for level in following]
        assert levels == [0.0, *schedule.sigmas[0][:-1]]
        assert count_noises(schedule.steady) == schedule.noises


@pytest.mark.parametrize(
    "sigmas, kept", [
        ([1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.11, 0.06], [1.0, 0.5, 0.17, 0.06]), ([1.0, 0.5, 0.25], [1.0, 0.25]),
        ([1.0, 0.5], [1.0]),
    ],
)  # fmt: skip
def test_fewer_passes_are_spread_over_all_levels(sigmas, kept):
    assert frame_wise(*sigmas).fewer == frame_wise(*kept)


def test_frames_in_flight_wait_at_the_same_levels_with_fewer_passes():
    table = ScheduleTable(((0.4, 1.0), (0.3, 0.8), (0.2, 0.6)))
    assert table.fewer.sigmas == ((0.4, 1.0), (0.2, 0.6))
    assert table.fewer.steady.after == table.steady.after
    assert rolling(3).fewer is None  # one pass


def test_a_world_spec_survives_being_written_down():
    assert WorldSpec.from_json(TINY.to_json()) == TINY


@torch.no_grad()
def test_what_a_recording_tells_of_its_future_reaches_the_frames_to_be_made_and_no_history(world):
    """At play nobody can tell it, so nothing that is kept for later frames may depend on it."""
    batch, frames, at = 1, 9, 5
    clean, noisy = torch.randn(2, batch, frames, *TINY.latent_shape)
    prompts, zeros = torch.randn(batch, frames, 2, 4), torch.zeros(batch, frames)
    clip = Clip(clean, zeros, torch.randn(batch, frames, 3, 3), prompts, prompts, zeros, zeros)
    astray = torch.nn.functional.one_hot(torch.tensor([at]), frames).float()
    sigma = torch.full_like(zeros, 0.7)
    never, untold, told = (
        denoise_clip(world.generator, replace(clip, astray=flag), noisy, sigma, None, 3)
        for flag in (None, zeros, astray)
    )
    assert torch.equal(never, untold)
    differs = (told - untold).abs().amax((0, 2, 3, 4)) > 1e-3
    assert differs.nonzero().flatten().tolist() == [at]
