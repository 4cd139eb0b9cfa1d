"""`latentsync train recipe`: what a configuration says, and the recipe that comes of it."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .console import show_json, show_table
from .parameters import expand_options, option
from .train import Set

if TYPE_CHECKING:
    from ..training.public_config import Line

VALUE_WIDTH = 40
"""Characters of a value that the table shows."""


@expand_options
def recipe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML for --config, ours or the public project's.")],
    stage: Annotated[str, option(None, "", "Of the U-Net, under the file.", "STAGE")] = "1",
    preset: Annotated[str, option(None, "", "Of the SyncNet, under the file.", "NAME")] = "16_pixel_attn",
    set_: Set = None,
    as_json: Annotated[bool, option(None, "--json", "Print JSON.")] = False,
) -> None:
    """Show how each key of a public configuration is used, and the whole recipe. Nothing is trained.

    \b
      latentsync train recipe configs/unet/stage2_512.yaml
      latentsync train unet data --config configs/unet/stage2_512.yaml -o stage2
    """
    from ..training.config import apply_overrides, read_config
    from ..training.recipes import SyncNetRecipe, UNetRecipe, is_syncnet, recipe_text, unet_recipe
    from ..training.syncnet.architecture import syncnet_recipe
    from ..training.yaml_files import read_yaml

    if is_syncnet(apply_overrides(read_yaml(file), set_ or ())):
        config = read_config(SyncNetRecipe, file, set_ or ())
        network, made = syncnet_recipe(preset, config)
        made = dataclasses.replace(made, network=json.loads(json.dumps(dataclasses.asdict(network))))
    else:
        config = read_config(UNetRecipe, file, set_ or ())
        made = unet_recipe(stage, config)
    files = config.public.files if config.public else {}
    lines = config.public.lines if config.public else ()
    if as_json:
        parts = [dataclasses.asdict(line) for line in lines]
        show_json({"recipe": dataclasses.asdict(made), "files": files, "lines": parts})
        return
    if lines:
        rows = [(line.key, _short(line.value), _fate(line)) for line in lines]
        show_table([tuple(map(escape, row)) for row in rows], ["key", "value", "becomes"])
        typer.echo()
    typer.echo(recipe_text(made, **files), nl=False)


def _fate(line: "Line") -> str:
    settings = ", ".join(f"{name} {_short(value)}" for name, value in line.settings.items())
    return f"{settings} ({line.why})" if settings and line.why else settings or f"– {line.why}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= VALUE_WIDTH else f"{text[: VALUE_WIDTH - 1]}…"
