"""TAESD and its like: tiny autoencoders in diffusers' layout (AutoencoderTiny), and as the original's two files."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import getting
from ..models.tiny_vae import TinyAutoencoder, TinyConfig
from .files import Shape, file_in, mismatch, read_header, read_tensors, shapes_of
from .registry import find

HALVES = ("encoder", "decoder")
_PREFIXES = ("", "vae.")
_SUFFIXES = (".safetensors", ".pth")
_NAME = "taesd"


def find_prefix(keys: Iterable[str]) -> str | None:
    """What stands before "encoder.layers.0.weight" or "decoder.layers.0.weight"; None when there is no such VAE."""
    keys = set(keys)
    for prefix in _PREFIXES:
        starts = [f"{prefix}{half}.layers." for half in HALVES]
        if any(f"{start}0.weight" in keys for start in starts) and all(
            any(key.startswith(start) for key in keys) for start in starts
        ):
            return prefix
    return None


def half_of(shapes: Mapping[str, Shape]) -> str | None:
    """Which half of the original two files these tensors are: "encoder", "decoder" or None."""
    if not any(re.fullmatch(r"\d+\.conv\.0\.weight", key) for key in shapes):
        return None
    if len(shapes.get("0.weight", ())) == 4:
        return "encoder"
    return "decoder" if len(shapes.get("1.weight", ())) == 4 else None  # layer 0 is a clamp there


def find_taesd() -> Path:
    """The built-in model's own VAE where it is one of these, else the original decoder; UserError how to get it."""
    nano = find("nano")
    return nano if find_prefix(read_header(nano).shapes) is not None else find(_NAME)


def halves_of(path: Path) -> dict[str, Path] | None:
    """The original two files, of one of them or the folder they are in; None where there is neither."""
    if path.is_dir():
        names = [f"{_NAME}_{half}{suffix}" for half in HALVES for suffix in _SUFFIXES]
        path = file_in(path, names)
    half = half_of(read_header(path).shapes) if path.is_file() else None
    if half is None:
        return None
    other = next(one for one in HALVES if one != half)
    partner = path.with_name(path.name.replace(half, other))
    if partner == path or not partner.is_file():
        raise UserError(
            f"{path} is the {half} alone of a tiny autoencoder; put the {other} next to it, with the same name except"
            f" for that word ({getting(_NAME)} for both of TAESD's)."
        )
    return {half: path, other: partner}


def read_halves(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """The two files' tensors as AutoencoderTiny names them. UserError where a file is not the half it should be."""
    state: dict[str, Tensor] = {}
    for half, path in files.items():
        if (found := half_of(read_header(path).shapes)) != half:
            what = f"the {found}" if found else "something else"
            raise UserError(
                f"{path} should be the {half} of a tiny autoencoder and is {what}; put the right file there."
            )
        shift = 1 if half == "decoder" else 0  # the original counts its clamp as a layer
        for key, tensor in read_tensors(path).items():
            number, _, rest = key.partition(".")
            state[f"{half}.layers.{int(number) - shift if number.isdigit() else number}.{rest}"] = tensor
    return state


def config_from_shapes(shapes: Mapping[str, Shape]) -> TinyConfig:
    """The architecture, read from the tensors."""
    blocks = {half: _blocks(shapes, half) for half in HALVES}
    if len(blocks["encoder"]) != len(blocks["decoder"]) or len(blocks["encoder"]) < 2:
        raise UserError(
            f"its halves have {blocks['encoder']} and {blocks['decoder']} blocks; a decoder undoes its encoder."
        )
    try:
        width, colors = shapes["encoder.layers.0.weight"][:2]
        latents = shapes["decoder.layers.0.weight"][1]
        widths = [shapes[f"decoder.layers.{i}.weight"][0] for i, kind in _layers(shapes, "decoder") if kind == "c"]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"missing or misshapen: a first convolution ({error.args[0]}).") from error
    return TinyConfig(blocks["encoder"], blocks["decoder"], width, tuple(widths[:-1]), latents, colors)


def _blocks(shapes: Mapping[str, Shape], half: str) -> tuple[int, ...]:
    """How many blocks follow each convolution but the last: (1, 3, 3, 3) for TAESD's encoder."""
    return tuple(len(run) for run in "".join(kind for _, kind in _layers(shapes, half)).split("c")[1:-1])


def _layers(shapes: Mapping[str, Shape], half: str) -> list[tuple[int, str]]:
    """The numbers of convolutions ("c") and blocks ("b") in order."""
    layers: dict[int, str] = {}
    for key in shapes:
        if found := re.match(rf"{half}\.layers\.(\d+)\.(weight|bias)?", key):
            layers[int(found[1])] = "c" if found[2] else "b"
    return sorted(layers.items())


def build(state: Mapping[str, Tensor]) -> TinyAutoencoder:
    """A TinyAutoencoder with these very tensors. UserError naming what is missing, unknown or misshapen."""
    shapes = shapes_of(state)
    with torch.device("meta"):  # nothing is allocated, the global random generator is left alone
        model = TinyAutoencoder(config_from_shapes(shapes))
    if problem := mismatch(shapes_of(model.state_dict()), shapes):
        raise UserError(f"{problem}.")
    model.load_state_dict(dict(state), strict=True, assign=True)
    return model
