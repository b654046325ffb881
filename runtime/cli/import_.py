"""`worldloop import`: turn a public checkpoint into a world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from runtime import encoder_folder
from runtime.cli.options import Json, finish
from runtime.errors import CheckFailed, UsageError

app = typer.Typer(add_completion=False)


@app.command()
def command(
    checkpoint: Annotated[Path, typer.Argument(help="a .safetensors file, a folder of them, or a torch .pt file")],
    codec: Annotated[Path | None, typer.Option(help="the codec's file, where it is one of its own")] = None,
    lora: Annotated[Path | None, typer.Option(help="a LoRA to merge into the weights")] = None,
    part: Annotated[str | None, typer.Option(help="the part of the file to take, such as generator_ema")] = None,
    height: Annotated[int | None, typer.Option(help="rows of the latent", min=1)] = None,
    width: Annotated[int | None, typer.Option(help="columns of the latent", min=1)] = None,
    heads: Annotated[int | None, typer.Option(help="attention heads, where they are not 128 wide", min=1)] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="folder of the text encoder, for prompts", exists=True, file_okay=False)
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="a picture to start from; may be given again", exists=True, dir_okay=False)
    ] = None,
    image_encoder: Annotated[
        Path | None, typer.Option(help="folder of the CLIP image encoder, for --image", exists=True, file_okay=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the world file (default: the checkpoint's name)")] = None,
    dry_run: Annotated[bool, typer.Option(help="say what it is and what it needs; load nothing")] = False,
    json: Json = False,
) -> None:
    """Recognise a checkpoint, check that it fits, say how much memory it takes, and write NAME.world."""
    from worldmodel.families.checkpoint import convert, open_checkpoint
    from worldmodel.families.family import FAMILIES
    from worldmodel.families.importing import plan_import

    given = {"latent_height": height, "latent_width": width, "num_heads": heads}
    config = {name: value for name, value in given.items() if value is not None}
    encoder = None
    if image_encoder is not None:
        from worldmodel.condition.start_picture import ClipVision

        encoder = ClipVision.load(image_encoder)
        config["image_tokens"] = encoder.tokens
    if text_encoder is not None and not (text_encoder / "config.json").is_file():
        raise UsageError(f"--text-encoder {text_encoder}: expected a folder with config.json, weights, tokenizer.json")
    target = out or checkpoint.with_suffix(".world")
    if target.suffix != ".world":
        raise UsageError(f"--out {target}: a world file's name ends in .world")
    plan = plan_import(checkpoint, codec, lora, part, config)
    about = plan.about
    if text_encoder is not None:
        from worldmodel.prompt.umt5 import check_width

        check_width(text_encoder, about.prompt_shape[1])
    report: dict[str, Any] = {
        "family": plan.family,
        "title": about.title,
        "licence": FAMILIES[plan.family].licence,
        "source": FAMILIES[plan.family].source,
        "parameters": plan.parameters,
        "memory": plan.memory(),
        "missing": list(plan.fit.missing),
        "unexpected": list(plan.fit.unexpected),
        "misshaped": [{"name": name, "expected": want, "found": found} for name, want, found in plan.fit.misshaped],
        "tick_hz": about.tick_hz,
        "height": about.height,
        "width": about.width,
        "actions": [button.name for button in about.buttons],
    }
    if not dry_run and plan.fit.ok:
        from export.family_world import start_names, write_family_world

        if checkpoint.is_file() and checkpoint.suffix != ".safetensors":
            safe = checkpoint.with_suffix(".safetensors")
            if not safe.exists():
                convert(open_checkpoint(checkpoint, part), safe)
            report["converted"] = str(safe)
        facts = {
            **plan.told,
            **config,
            "lora": lora is not None,
            "text_encoder": encoder_folder.noted(text_encoder, target) if text_encoder else None,
        }
        starts = start_names(image or [])
        report["world_hash"] = write_family_world(target, plan, {**facts, "found": vars(plan.found)}, starts, encoder)
        report["out"], report["starts"] = str(target), list(starts)
    finish(report, json, text(report))
    if not plan.fit.ok:
        raise CheckFailed(f"{checkpoint}: the weights do not fit {about.title}: {plan.fit}")


def text(report: dict[str, Any]) -> str:
    memory, actions = report["memory"], ", ".join(report["actions"]) or "none"
    lines = [
        f"{report['title']} ({report['family']}), {report['parameters'] / 1e6:.1f} million parameters",
        f"source: {report['source']}, licence: {report['licence']}",
        f"{report['width']} × {report['height']} at {report['tick_hz']:g} Hz; actions: {actions}",
        f"memory: weights {memory['weights_mb']} MiB, state {memory['state_mb']} MiB, peak {memory['peak_mb']} MiB",
    ]
    lines += [f"{kind}: {name}" for kind in ("missing", "unexpected") for name in report[kind]]
    lines += [f"mis-shaped: {one['name']}: {one['found']}, expected {one['expected']}" for one in report["misshaped"]]
    return "\n".join(lines + ([f"written: {report['out']}"] if "out" in report else []))
