"""`worldloop train codec|world|distil|…`: the stages of making a world, each resumable and bounded in time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Train the parts of a world, in this order: codec, world, distil.")

Data = Annotated[Path, typer.Option(help="a recording made by 'worldloop record'")]
Out = Annotated[Path, typer.Option(help="the run's folder: spec.json, weights, sample strips, TensorBoard events")]
Minutes = Annotated[float, typer.Option(min=0.01, help="training time in all, resumed runs included")]
Batch = Annotated[int | None, typer.Option(min=1, help="clips (codec: pictures) per step and process")]
Resume = Annotated[bool, typer.Option("--resume", help="go on where the last run in OUT stopped")]
Seed = Annotated[int, typer.Option(help="seed of weights and draws")]
Json = Annotated[bool, typer.Option("--json", help="print the result as one JSON object")]
Init = Annotated[Path | None, typer.Option(help="weights to begin from, such as an earlier run's")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="a field of the world's spec, as generator.dim=256; first stage only")
]


@app.command()
def codec(
    data: Data, out: Out, minutes: Minutes = 60, batch: Batch = None, frames: int = 100_000, seed: Seed = 0,
    resume: Resume = False, set_: Set = None,
    decoder_only: Annotated[bool, typer.Option(help="improve the decoder alone; worlds stay valid")] = False,
    init: Init = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train the autoencoder between pictures and latents."""
    from worldmodel.train.codec import train_codec
    from worldmodel.train.plan import plan_world

    spec = plan_world(data, out, set_ or [])
    figures = train_codec(spec, data, out, minutes, batch or 128, frames, seed, resume, decoder_only, init)
    _report(out / f"{'decoder' if decoder_only else 'codec'}.safetensors", figures, as_json)


@app.command()
def world(
    data: Data, out: Out, minutes: Minutes = 240, batch: Batch = None, seed: Seed = 0, resume: Resume = False,
    init: Init = None,
    recoloured: Annotated[
        Path | None, typer.Option(help="the same drives in other colours (record --palette), to learn prompt switches")
    ] = None,
    worn: Annotated[
        Path | None, typer.Option(help="the same drives worn out (record --worn), to learn to mend its own pictures")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="what the world is told beside keys and prompt: camera, its own motion; tracks, of points"),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train the generator by diffusion forcing; needs the codec of the same OUT."""
    from worldmodel.train.plan import with_conditions
    from worldmodel.train.world import train_world

    spec = with_conditions(data, out, condition or [])
    figures = train_world(spec, data, out, minutes, batch or 16, seed, resume, init, recoloured, worn)
    _report(out / "world.safetensors", figures, as_json)


@app.command()
def distil(
    data: Data, out: Out,
    teacher: Annotated[Path, typer.Option(help="the folder of a trained world's run")],
    method: Annotated[str, typer.Option(help="how; 'worldloop list' knows all")] = "self-forcing",
    minutes: Minutes = 60, batch: Batch = None, seed: Seed = 0, resume: Resume = False,
    init: Annotated[Path | None, typer.Option(help="weights to begin from (default: the teacher's)")] = None,
    judge: Annotated[Path | None, typer.Option(help="a judge by 'train judge' (default: the environment's)")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a field of the spec that differs from the teacher's")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make a student of a trained world: few steps, own roll-outs, frames in flight. Imported checkpoints:
    distil-checkpoint.
    """
    from worldmodel.train.distil.train import train_distil
    from worldmodel.train.judge.judge import Judge

    judging = Judge.load(judge) if judge else None
    figures = train_distil(method, teacher, data, out, minutes, batch or 8, seed, resume, init, set_ or [], judging)
    _report(out / "world.safetensors", {"method": method, **figures}, as_json)


@app.command()
def distil_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="the student: a checkpoint, as 'worldloop import' takes it")],
    out: Annotated[Path, typer.Option(help="the run's folder: weights, config.json, sample strips, events")],
    teacher: Annotated[Path, typer.Option(help="the checkpoint to learn from, such as Wan 2.1; may be the same file")],
    prompts: Annotated[Path, typer.Option(help="a text file, one prompt a line: all the data there is")],
    text_encoder: Annotated[Path, typer.Option(help="folder of the families' text encoder (UMT5)")],
    method: Annotated[str, typer.Option(help="self-forcing, rolling-forcing or long-tuning")] = "self-forcing",
    lora: Annotated[
        int | None, typer.Option(min=1, help="train adapters of this rank alone (default: all weights, in float32)")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="play the student as this family, where its file does not tell")
    ] = None,
    minutes: Minutes = 60,
    frames: Annotated[int, typer.Option(min=1, help="latent frames of a clip")] = 21,
    batch: Annotated[int, typer.Option(min=1, help="clips per step and process")] = 1,
    rate: Annotated[
        float | None, typer.Option(min=0.0, help="learning rate of the student (default: 2e-6, with --lora 1e-5)")
    ] = None,
    avoid: Annotated[str, typer.Option(help="what a teacher with guidance is guided away from")] = "",
    height: Annotated[int | None, typer.Option(help="rows of the latent", min=1)] = None,
    width: Annotated[int | None, typer.Option(help="columns of the latent", min=1)] = None,
    heads: Annotated[int | None, typer.Option(help="attention heads, where they are not 128 wide", min=1)] = None,
    init: Annotated[Path | None, typer.Option(help="weights that an earlier run saved, to begin from")] = None,
    seed: Seed = 0, resume: Resume = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Distil an imported checkpoint: few steps on its own roll-outs, from prompts alone."""
    from worldmodel.train.distil.imported.train import train_distil_checkpoint

    given = {"latent_height": height, "latent_width": width, "num_heads": heads}
    figures = train_distil_checkpoint(
        method, checkpoint, teacher, prompts, text_encoder, out, minutes, lora, family, frames, batch, rate, avoid,
        seed, resume, init, {name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    _report(out / f"{'lora' if lora else 'student'}.safetensors", {"method": method, **figures}, as_json)


@app.command()
def heads(
    data: Data, out: Out, minutes: Minutes = 10, batch: Batch = None, seed: Seed = 0, resume: Resume = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train the heads that tell reward and end, on the codec of the same OUT; 'worldloop export' takes them along."""
    from worldmodel.train.heads import BATCH, train_heads
    from worldmodel.train.plan import read_plan

    figures = train_heads(read_plan(out), data, out, minutes, batch or BATCH, seed, resume)
    _report(out / "heads.safetensors", figures, as_json)


@app.command()
def judge(
    data: Data, out: Out, steps: Annotated[int, typer.Option(min=1, help="training steps")] = 400,
    frames: Annotated[int, typer.Option(min=400, help="frames to train on")] = 14_000, seed: Seed = 0,
    resume: Resume = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Train the networks that 'worldloop eval' judges a world of this environment by: some minutes on one core."""
    from worldmodel.train.judge.train import train_judge

    _report(out, train_judge(data, out, steps, frames, seed, resume), as_json)


@app.command()
def prompt(
    out: Out, minutes: Minutes = 20, seed: Seed = 0,
    init: Annotated[
        Path | None, typer.Option(help="an encoder to teach the names that training leaves out; worlds stay valid")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train the text encoder that all native worlds share. Worlds trained with another encoder will not know its
    vectors.
    """
    if init is not None:
        from worldmodel.prompt.teach import teach

        _report(out, teach(init, out, minutes, seed, _tell), as_json)
        return
    from worldmodel.prompt.train import train as train_prompt

    _report(out, train_prompt(out, minutes, seed, _tell), as_json)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _report(out: Path, figures: dict[str, Any], as_json: bool) -> None:
    result = {"out": str(out), **figures}
    print(json.dumps(result) if as_json else ", ".join(f"{k} {v}" for k, v in result.items()))
