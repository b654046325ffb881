"""The energy score makes samples: it is least for draws that are distributed as what is real is."""

import torch

from worldmodel.train.energy import energy_score


def frames(count, seed, width=1.0, shift=0.0):
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 1, 1, 1, 1, generator=draw)  # what the places of a frame have in common
    return width * (common + torch.randn(count, 1, 2, 4, 4, generator=draw)) + shift


def test_draws_like_the_real_ones_score_best_and_spread_as_far():
    def judged(**kind):
        score, spread = energy_score(frames(4000, 1, **kind), frames(4000, 2, **kind), frames(4000, 3), patch=2)
        return score.mean().item(), spread.mean().item()

    right, spread = judged()
    others = [judged(width=0.5), judged(width=1.5), judged(shift=0.5)]
    assert all(right < score for score, _ in others)
    assert 0.9 < spread < 1.1 and others[0][1] < 0.8 and others[1][1] > 1.2


def test_places_that_do_not_fit_together_score_worse():
    def shuffled(latents):
        return torch.cat([part.roll(place, 0) for place, part in enumerate(latents.split(2, -1))], -1)

    real = frames(4000, 3)
    right, _ = energy_score(frames(4000, 1), frames(4000, 2), real, patch=2)
    torn, _ = energy_score(shuffled(frames(4000, 1)), shuffled(frames(4000, 2)), real, patch=2)
    assert right.mean() < torn.mean()


def test_what_is_learned_is_the_spread_and_not_the_mean():
    width = torch.nn.Parameter(torch.tensor(0.1))
    optimiser = torch.optim.Adam([width], lr=0.05)
    for step in range(80):
        first, second, real = (frames(64, 3 * step + part) for part in range(3))
        score, _ = energy_score(width * first, width * second, real, patch=2)
        optimiser.zero_grad()
        score.mean().backward()
        optimiser.step()
    assert 0.85 < width.item() < 1.15


def test_with_less_weight_on_the_distance_of_draws_doubt_shrinks_and_alternatives_stay():
    def best_width(real, draw):
        widths = torch.linspace(0, 1.5, 31)
        scores = [energy_score(w * draw(1), w * draw(2), real, patch=2, apart=0.5)[0].mean() for w in widths]
        return widths[int(torch.stack(scores).argmin())]

    def either(seed):
        side = torch.randint(0, 2, (4000, 1, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
        return (2.0 * side - 1).expand(-1, 1, 2, 4, 4)

    assert best_width(frames(4000, 3), lambda seed: frames(4000, seed)) < 0.6
    assert 0.9 < best_width(either(3), either) < 1.1


def test_the_distance_of_draws_may_weigh_more_at_some_places_than_at_others():
    real, first, second = (frames(4000, seed) for seed in (3, 1, 2))
    places = torch.ones(2, 2)
    whole, _ = energy_score(first, second, real, patch=2, apart=places)
    assert torch.equal(whole, energy_score(first, second, real, patch=2)[0])
    places[0, 1] = 0.5  # a draw that goes astray there alone is dearer by what it no longer gains
    odd = second.clone()
    odd[..., :2, 2:] += 5
    gain = [energy_score(first, draw, real, patch=2, apart=places)[0].mean() for draw in (second, odd)]
    gain_before = [energy_score(first, draw, real, patch=2)[0].mean() for draw in (second, odd)]
    assert gain[1] - gain[0] > gain_before[1] - gain_before[0] + 0.08
    odd = second.clone()
    odd[..., 2:, :2] += 5  # and elsewhere it costs what it did, but for its part in larger pieces
    elsewhere = energy_score(first, odd, real, patch=2, apart=places)[0].mean() - gain[0]
    assert elsewhere < gain[1] - gain[0]


def test_a_shade_that_is_wrong_costs_more_than_as_much_noise():
    real, first, second = (0.5 * frames(4000, seed) for seed in (3, 1, 2))
    grain = 0.3 * frames(4000, 4).sign()
    tinted, _ = energy_score(first + 0.3, second + 0.3, real, patch=2)
    grained, _ = energy_score(first + grain, second + grain.roll(1, 0), real, patch=2)
    assert tinted.mean() > grained.mean() + 0.02
