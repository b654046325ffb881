"""The command line: `worldloop COMMAND …`. One file per command, one line here.

A command's module holds `app`, a typer.Typer with one command (or several, as `train codec|world|distil`). It is
imported when it is asked for, so that playing never imports what only training needs.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys

import typer

from runtime.errors import MissingExtraError, UsageError, WorldloopError

COMMANDS: dict[str, tuple[str, str]] = {  # name: (module with `app`, one line of help)
    "play": ("runtime.cli.play", "play a world: in a window, or without one with --headless"),
    "list": ("runtime.cli.list_", "what there is: worlds, backends, caches, schedules, codecs, families"),
    "bench": ("runtime.cli.bench", "measure how fast a world ticks on this machine"),
    "replay": ("runtime.cli.replay", "play a recorded game back, check it, or turn it into a video"),
    "record": ("runtime.cli.record", "record a dataset from a Gymnasium environment"),
    "train": ("runtime.cli.train", "train a codec or a world"),
    "eval": ("runtime.cli.eval", "measure how good a world is"),
    "export": ("runtime.cli.export", "pack a trained world into a world file"),
    "parity": ("runtime.cli.parity", "compare with recorded results of the public implementations"),
    "import": ("runtime.cli.import_", "turn a public checkpoint into a world"),
}

EXTRAS = {  # a module that may be missing: the extra that brings it
    **dict.fromkeys(
        ["torch", "gymnasium", "h5py", "matplotlib", "onnx", "onnxscript", "cv2", "PIL", "tensorboard", "tqdm",
         "vizdoom", "Box2D"],
        "train",
    ),
    "tensorrt": "tensorrt",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with 0 (fine), 1 (the check failed) or 2 (wrong use, bad input: one line on stderr)."""
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except WorldloopError as error:
        code = complain(str(error), error.exit_code)
    except typer.TyperException as error:
        code = complain(error.format_message(), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to say to a closed pipe
        code = 0
    except OSError as error:
        code = complain(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(code)


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(version())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}{did_you_mean(name, COMMANDS)}; 'worldloop --help' lists them")
    try:
        command = typer.main.get_command(importlib.import_module(COMMANDS[name][0]).app)
        result = command(rest, prog_name=f"worldloop {name}", standalone_mode=False)
    except ModuleNotFoundError as error:
        explain_missing(name, error)
        raise
    return result if isinstance(result, int) else 0


def explain_missing(command: str, error: ModuleNotFoundError) -> None:
    """A missing optional package, sooner or later in a command, becomes an error that says how to get it."""
    package = (error.name or "").split(".")[0]
    if package in EXTRAS:
        fix = f"pip install 'worldloop[{EXTRAS[package]}]'"
        raise MissingExtraError(f"'worldloop {command}' needs {package}, which is not installed: {fix}") from error
    if error.name == COMMANDS[command][0]:
        raise UsageError(f"'worldloop {command}' is not part of this version") from error


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(["usage: worldloop COMMAND [OPTIONS]; 'worldloop COMMAND --help' says more", "", *lines])


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("worldloop")
    except PackageNotFoundError:
        return "unknown (not installed)"


def did_you_mean(word: str, known: object) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)  # type: ignore[call-overload]
    return f", did you mean {close[0]!r}?" if close else ""


def complain(message: str, code: int) -> int:
    """Say what is wrong in one line, whatever the message contains."""
    if message:  # an empty one: the command has printed its help
        print("worldloop: " + " ".join(message.split()), file=sys.stderr)
    return code
