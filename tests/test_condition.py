"""What steers a world means what it says: cameras, tracks, action rows."""

import pytest
import torch

from worldmodel.condition.camera import (
    from_camera,
    path_keys,
    path_views,
    project,
    projections,
    ray_steps,
    ray_tokens,
    rays,
    step,
    to_camera,
)
from worldmodel.condition.tracks import TrackHead, drawn, identity, track_map
from worldmodel.condition.wan_actions import ActionSpec, told_rows
from worldmodel.errors import SpecError

LENS = torch.diag(torch.tensor([0.5, 0.9, 1.0]))


def test_a_camera_path_turns_first_and_moves_in_its_own_frame():
    views = path_views("l*30,w*1")
    assert torch.equal(views[0], torch.eye(4))
    pose = torch.linalg.inv(views[-1].double())
    assert torch.allclose(pose[:3, 3], torch.tensor([0.08, 0, 0], dtype=torch.float64), atol=1e-6)  # 90° right, then on


def test_keys_held_together_are_one_step():
    both = step(torch.eye(4, dtype=torch.float64), ["l", "w"])
    assert torch.allclose(torch.linalg.inv(both).float(), path_views("l,w")[2], atol=1e-6)


@pytest.mark.parametrize("path", ["x*3", "w*", "w**2", "w 3"])
def test_a_path_that_cannot_be_read_lists_the_keys(path):
    with pytest.raises(SpecError, match=r"KEY\*COUNT with KEY of w, s"):
        path_keys(path)


def test_what_a_camera_sees_depends_on_relative_poses_only():
    """Moving the whole world changes no score and no result of the camera branch."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 3, 2, 2, 8) for _ in range(3))
    views = path_views("w*1,l*1")[None]
    world = path_views("i*9,d*7")[-1]
    results = []
    for moved in (views, views @ world):
        cameras = projections(moved, LENS.expand(1, 3, 3, 3))
        q, k, v = project(query, cameras), to_camera(key, cameras), to_camera(value, cameras)
        scores = torch.einsum("bfthd,bgshd->bhftgs", q, k)
        told = torch.einsum("bhftgs,bgshd->bfthd", scores, v)
        results.append((scores, from_camera(told, cameras)))
    for first, second in zip(*results, strict=True):
        assert torch.allclose(first, second, atol=1e-3, rtol=1e-3)


def test_rays_start_at_the_camera_and_fan_out_through_the_picture():
    pose = torch.eye(4)
    pose[0, 3] = 0.4
    found = rays(pose[None, None], (0.5, 0.5), 3, 3)[0, 0]
    origin, direction = found[:3], found[3:]
    assert torch.equal(origin, torch.tensor([0.4, 0, 0])[:, None, None].expand(3, 3, 3))
    assert torch.allclose(direction[:, 1, 1], torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)  # the middle looks ahead
    assert direction[0, 1, 2] > 0 > direction[0, 1, 0] and direction[1, 2, 1] > 0
    assert torch.allclose(direction.norm(dim=0), torch.ones(3, 3))


def test_a_token_is_told_of_the_rays_of_its_own_pixels():
    """Numbers run channel, row and column in the cell, row and column in the patch."""
    maps = torch.arange(2 * 6 * 8 * 12.0).reshape(1, 2, 6, 8, 12)
    tokens = ray_tokens(maps, side=2, patch=(2, 2))
    assert tokens.shape == (1, 2, 6, 6 * 4 * 4)
    frame, token = 1, 4  # the second row's second token
    wanted = [
        maps[0, frame, channel, 4 * 1 + 2 * down + y, 4 * 1 + 2 * right + x]
        for channel in range(6) for y in range(2) for x in range(2) for down in range(2) for right in range(2)
    ]  # fmt: skip
    assert tokens[0, frame, token].tolist() == wanted


def test_rays_are_told_in_the_camera_of_the_frame_before():
    poses = ray_steps([["w"], ["l"]], 3, torch.tensor([True, False]))
    assert torch.equal(poses[0, 0], torch.eye(4, dtype=torch.float64))  # a game's first frame
    assert torch.allclose(poses[0, 1, :3, 3], torch.tensor([0, 0, 1.0], dtype=torch.float64))  # one step ahead
    assert torch.equal(poses[1, 0], step(torch.eye(4, dtype=torch.float64), ["l"]))


def test_a_latent_frame_is_told_the_rows_before_it():
    """Frame f: rows 4f-12 … 4f-1, row 0 where there are none."""
    spec = ActionSpec(layers=(0,))
    rows = torch.arange(60.0)[None, :, None]
    told = told_rows(rows, torch.tensor([0, 1, 5]), spec)[0, :, :, 0]
    assert told[0].tolist() == [0.0] * 12
    assert told[1].tolist() == [0.0] * 9 + [1.0, 2.0, 3.0]
    assert told[2].tolist() == [float(row) for row in range(8, 20)]


def test_a_track_is_seen_where_it_is_and_under_its_own_name():
    points = torch.tensor([[[[0.3125, 0.5], [0.9, 0.9]]]])
    visible = torch.tensor([[[True, False]]])
    drawn = track_map(points, visible, channels=4, rows=3, columns=8)[0, 0]
    assert torch.allclose(drawn[:, 1, 2], identity(2, 4)[0], atol=1e-6)
    drawn[:, 1, 2] = 0
    assert not drawn.abs().gt(1e-6).any()  # nowhere else, and the hidden one nowhere


def test_a_track_between_cells_is_shared_among_them_and_keeps_its_weight():
    points, visible = torch.tensor([[[[0.5, 0.5]]]]), torch.ones(1, 1, 1, dtype=torch.bool)
    drawn = track_map(points, visible, channels=4, rows=4, columns=4)
    assert torch.allclose(drawn.sum((0, 1, 3, 4)), identity(1, 4)[0], atol=1e-6)
    assert torch.allclose(drawn[0, 0, :, 1, 1], drawn[0, 0, :, 2, 2])


def test_pictures_of_tracks_become_channels_of_latent_frames():
    maps = torch.randn(2, 8, 6, 3, 5)
    assert TrackHead(6, 4)(maps).shape == (2, 2, 4, 3, 5)


def draw(*pens: tuple[float, float, float], tracks: int = 2):
    places, seen, held = torch.zeros(1, tracks, 2), torch.zeros(1, tracks, dtype=torch.bool), torch.zeros(1).long()
    for pen in pens:
        places, seen, held = drawn(places, seen, held, torch.tensor([pen]))
    return [[round(x, 3) for x in place] for place in places[0][seen[0]].tolist()], int(held)


def test_the_pen_takes_up_a_track_or_begins_one():
    assert draw((0, 0.5, 0.5)) == ([], 0)
    assert draw((1, 0.2, 0.2), (1, 0.4, 0.2), (0, 0.9, 0.9)) == ([[0.4, 0.2]], 0)  # it stays where it was let go
    near = ((1, 0.2, 0.2), (0, 0, 0), (1, 0.22, 0.2))
    assert draw(*near) == ([[0.22, 0.2]], 1)
    assert draw(*near, (1, 0.9, 0.9)) == ([[0.9, 0.9]], 1)  # however far it is dragged in one picture
    far = ((1, 0.2, 0.2), (0, 0, 0), (1, 0.8, 0.8))
    assert draw(*far) == ([[0.2, 0.2], [0.8, 0.8]], 2)
    assert draw(*far, (0, 0, 0), (1, 0.5, 0.3)) == ([[0.5, 0.3], [0.8, 0.8]], 1)  # all in use: the nearest


def test_players_draw_each_for_themselves():
    places, seen, held = torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2).long()
    places, seen, held = drawn(places, seen, held, torch.tensor([[1, 0.5, 0.5], [0, 0.1, 0.1]]))
    assert seen.tolist() == [[True, False, False], [False] * 3] and held.tolist() == [1, 0]
