"""Actions files: a game written down as text, one tick a line.

# the road is straight here        a comment; this line is no tick
gas left                           names separated by spaces
                                   an empty line: a tick with nothing pressed
@prompt a red road in white snow   switches the prompt at the next line's tick
@blend 8 lava                      the same, but reaches it in 8 ticks
gas                                # comments may follow actions, too
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ActionsFileError
from runtime.manifest import MAX_TEXT, Manifest

MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Line:
    """One tick. prompt: what to switch to before it, None to go on as before. over: ticks that the switch takes."""

    actions: frozenset[str] = frozenset()
    prompt: str | None = None
    over: int = 1


def read_actions(path: Path, manifest: Manifest) -> list[Line]:
    """Read and check an actions file; an error names the line."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ActionsFileError(f"actions file {path} cannot be read ({error.strerror})") from error
    if len(raw) > MAX_BYTES:
        raise ActionsFileError(f"actions file {path} is larger than {MAX_BYTES >> 20} MB: split it")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ActionsFileError(
            f"actions file {path} is not text (byte {error.start}): one tick a line, action names"
        ) from error
    return parse_actions(text, manifest, str(path))


def parse_actions(text: str, manifest: Manifest, where: str) -> list[Line]:
    ticks: list[Line] = []
    prompt: str | None = None
    over = 1
    known = frozenset(manifest.action_names)
    rows = text.split("\n")
    if rows[-1].strip() == "":
        rows.pop()  # what follows the last line end is no line
    for number, row in enumerate(rows, 1):
        line = row.strip()
        if line.startswith("#"):
            continue
        if line.startswith("@"):
            prompt, over = _prompt(line, f"{where}:{number}")
            continue
        actions = frozenset(line.split("#")[0].split())
        if unknown := sorted(actions - known):
            has = ", ".join(manifest.action_names) or "none"
            raise ActionsFileError(
                f"{where}:{number}: no action {unknown[0]!r:.80} in world {manifest.name!r}; it has: {has}"
            )
        ticks.append(Line(actions, prompt, over))
        prompt, over = None, 1
    if prompt is not None:
        raise ActionsFileError(f"{where}: the last @prompt has no tick after it: add a line (it may be empty)")
    return ticks


def _prompt(line: str, where: str) -> tuple[str, int]:
    """What a line that begins with @ says: a text, and in how many ticks it is reached."""
    word, _, text = line.partition(" ")
    if word not in ("@prompt", "@blend"):
        raise ActionsFileError(f"{where}: {word!r:.80} is not known here, only '@prompt TEXT' and '@blend TICKS TEXT'")
    over = 1
    if word == "@blend":
        count, _, text = text.strip().partition(" ")
        if not re.fullmatch(r"[1-9]\d{0,5}", count):
            raise ActionsFileError(f"{where}: @blend needs a number of ticks before the text, got {count!r:.80}")
        over = int(count)
    if not text.strip() or len(text) > MAX_TEXT:
        raise ActionsFileError(f"{where}: {word} needs a text of 1 to {MAX_TEXT} characters")
    return text.strip(), over
