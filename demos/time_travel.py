"""Drag time with the mouse: go back, play on from there, and the future that you left stays as a branch beside it.

    python -m demos.time_travel [WORLD]                                   the world's keys play, Esc leaves
    python -m demos.time_travel --headless --ticks 300 --video time.mp4   without a window: two ways back, three futures

Below the picture each branch is a bar, from where it left its parent to its end. Drag along a bar: the world stands
still and shows that moment. Press a key of the world: it goes on from there, as a new branch if there was a future. All
of it is `Session(rewind_mb=…)`: `seek` to a tick, `fork` to keep what comes after it, `switch` to another branch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pygame

from runtime.bindings import Controls
from runtime.frames import as_surface
from runtime.session import Session
from runtime.stage import Options, Stage, run
from runtime.timeline import FIRST_BRANCH
from runtime.window import fit
from runtime.world import World

WIDTH, VIEW, FILM, TREE, MARGIN = 640, 480, 64, 130, 16  # pixels; heights of picture, film strip and branches
ROW, BAR, KNOB = 22, 8, 9  # pixels: from bar to bar at most, a bar's height, the knob's radius
SIZE = WIDTH, VIEW + FILM + TREE
LEAST_SECONDS = 4  # that the slider spans
BACK, PALE = pygame.Color(22, 24, 32), pygame.Color(190, 196, 210)
COLOURS = [pygame.Color(name) for name in ("orange", "deepskyblue", "palegreen3", "orchid", "gold", "slateblue1")]


class TimeTravel:
    """A session and its branches, under the mouse."""

    def __init__(self, world: World, seed: int = 0) -> None:
        pygame.font.init()
        self.session, self.frozen, self.dragging = Session(world, seed=seed, rewind_mb=256), False, False
        self.session.tick()  # so that there is something to show
        assert self.session.timeline is not None, "it was made with a past"
        self.timeline = self.session.timeline

    def advance(self, events: Collection[pygame.event.Event], actions: Collection[str]) -> None:
        """One tick of the world, or none while time stands still."""
        for event in events:
            if event.type == pygame.MOUSEBUTTONDOWN and event.pos[1] > VIEW:
                self.dragging = True
                near = {name: abs(self.place(name, 0)[1] - event.pos[1]) for name in self.timeline.branches}
                self.go_to(min(near, key=lambda name: near[name]), event.pos[0])
            elif event.type == pygame.MOUSEMOTION and self.dragging:
                self.go_to(self.timeline.current, event.pos[0])
            elif event.type == pygame.MOUSEBUTTONUP:
                self.dragging = False
        if not self.dragging and (actions or not self.frozen):
            self.play(actions)

    def play(self, actions: Collection[str]) -> None:
        """Go on from here. The future that we came back from, if there is one, stays a branch of its own."""
        if self.session.tick_number < self.timeline.last:
            self.session.fork(f"branch {len(self.timeline.branches) + 1}")
        self.session.tick(actions)
        self.frozen = False

    def go_to(self, name: str, x: int) -> None:
        """Stand still at the moment of this branch that lies at x in the window."""
        if name != self.timeline.current:
            self.session.switch(name)
        self.session.seek(min(max(self.tick_at(x), self.timeline.first), self.timeline.last))
        self.frozen = True

    def span(self) -> tuple[int, float]:
        """The slider's first tick, and how many ticks it is long."""
        ends = [(branch.steps[0].tick + 1, branch.steps[-1].tick + 1) for branch in self.timeline.branches.values()]
        first, last = min(begin for begin, _ in ends), max(end for _, end in ends)
        return first, max(last - first, LEAST_SECONDS * self.session.world.manifest.tick_hz)

    def tick_at(self, x: int) -> int:
        first, span = self.span()
        return first + round((x - MARGIN) / (WIDTH - 2 * MARGIN) * span)

    def place(self, name: str, tick: int) -> tuple[int, int]:
        """Where a tick of a branch lies in the window."""
        (first, span), names = self.span(), list(self.timeline.branches)
        row = min(ROW, (TREE - 3 * MARGIN) / len(names)) * names.index(name)
        return MARGIN + round(max(tick - first, 0) / span * (WIDTH - 2 * MARGIN)), VIEW + FILM + 2 * MARGIN + round(row)

    def draw(self) -> pygame.Surface:
        view, current, here = pygame.Surface(SIZE), self.timeline.current, self.session.tick_number
        view.fill(BACK)
        self.show(view, here, (0, 0, WIDTH, VIEW))
        for x in range(MARGIN, WIDTH - FILM, FILM):  # this branch as a film strip, in step with the slider
            if self.timeline.first <= (tick := self.tick_at(x + FILM // 2)) <= self.timeline.last:
                self.show(view, tick, (x, VIEW + 8, FILM - 4, FILM - 4))
        for number, (name, branch) in enumerate(self.timeline.branches.items()):
            parent, begin = branch.origin or (name, 0)
            colour = COLOURS[number % len(COLOURS)].lerp(BACK, 0 if name == current else 0.5)
            left, right = self.place(name, begin), self.place(name, branch.steps[-1].tick + 1)
            pygame.draw.line(view, colour, self.place(parent, begin), left, 2)
            pygame.draw.line(view, colour, left, right, BAR)
        pygame.draw.circle(view, PALE, self.place(self.timeline.owner(here), here), KNOB)
        told = f"{current}, {here / self.session.world.manifest.tick_hz:.1f} s"
        told += ": time stands still, a key of the world goes on from here" if self.frozen else ""
        view.blit(pygame.font.Font(None, 20).render(told, True, PALE), (MARGIN, view.get_height() - 24))
        return view

    def show(self, view: pygame.Surface, tick: int, place: tuple[int, int, int, int]) -> None:
        picture = as_surface(self.timeline.frame(tick))
        area = fit(picture.get_size(), place[2:]).move(place[:2])
        view.blit(pygame.transform.scale(picture, area.size), area)


def story(game: TimeTravel, ticks: int) -> Iterator[None]:
    """Plays, drags back, plays otherwise, drags along the first branch, plays a third way."""
    names = game.session.world.manifest.action_names
    go = "gas" if "gas" in names else names[-1]
    acts = ({go}, {go, names[0]}, None, {go, names[1 % len(names)]}, None, {go})  # what is held; None: the mouse drags
    each = -(-ticks // len(acts))
    for tick in range(ticks):
        held = acts[tick // each]
        back = tick % each // max(tick // each // 2, 1)  # the second time half as far
        if held is None:
            game.go_to(FIRST_BRANCH, game.place(FIRST_BRANCH, 2 * each - back)[0])
        else:
            game.play(held)
        yield


def player(game: TimeTravel, stage: Stage) -> Iterator[None]:
    controls = Controls(game.session.world.manifest.actions)
    while stage.is_open:
        stage.clock.wait()
        game.advance(stage.events(controls), controls.read().actions)
        yield


def main(given: Options) -> None:
    world = World.open(given.world)
    game, title = TimeTravel(world, given.seed), "worldloop · time travel"
    with Stage(title, SIZE, world.manifest.tick_hz, window=not given.headless, video=given.video) as stage:
        for _ in story(game, given.ticks) if given.headless else player(game, stage):
            stage.show(game.draw())


if __name__ == "__main__":
    run(main, __doc__, ticks=300)
