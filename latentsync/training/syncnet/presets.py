"""Architectures and recipes of SyncNets."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...audio.syncnet_mel import RATE
from ...dataset import FPS
from ...errors import UserError
from ...models.syncnet import PUBLISHED, EncoderConfig, Factor, SyncNetConfig, config_from_dict
from ..recipes import SYNCNET_PRESETS, SyncNetRecipe, build, read_yaml


def _encoder(channels: int, widths: tuple[int, ...], factors: tuple[Factor, ...]) -> EncoderConfig:
    return EncoderConfig(channels, widths, factors, (False,) * len(widths))


SMALL = SyncNetConfig(
    audio=_encoder(1, (32, 64, 128, 128, 256), ((4, 2), 2, 2, 2, 2)),
    visual=_encoder(30, (32, 64, 128, 256), ((4, 4), 2, 2, (1, 3))),
    frames=10,
    size=(24, 48),
    mels=(80, 32),
)
"""For two CPU cores: 0.4 s of a crop 48 pixels wide, downsampled by four at once where most of the work is."""

NETWORKS = {**PUBLISHED, "small": SMALL}


def syncnet_recipe(preset: str, config: Path | None = None, **given: Any) -> tuple[SyncNetConfig, SyncNetRecipe]:
    """Network and recipe from a preset, then a file, then the given values (None: not given).

    config: YAML or JSON of SyncNetRecipe's settings, or a public configuration, of which only the architecture is used.
    """
    if preset not in NETWORKS:
        raise UserError(f"preset is {preset!r}; it must be one of {', '.join(NETWORKS)}.")
    content = read_yaml(config) if config else {}
    public = content.get("model", content)
    if isinstance(public, Mapping) and "audio_encoder" in public:
        return network_from(public), build(SyncNetRecipe, SYNCNET_PRESETS.get(preset, {}), None, given)
    recipe = build(SyncNetRecipe, SYNCNET_PRESETS.get(preset, {}), config, given)
    return network_from(recipe.network) if recipe.network else NETWORKS[preset], recipe


def network_from(settings: Mapping[str, Any]) -> SyncNetConfig:
    """An architecture in our form or in the public one. In ours input channels, mel frames and attention may be left
    out."""
    try:
        config = config_from_dict(settings if "audio_encoder" in settings else _complete(settings))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The SyncNet's architecture lacks or misnames {error}; give frames, space, size, and widths and factors"
            " for audio and for visual."
        ) from error
    config.check()
    return config


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {part.name for part in dataclasses.fields(SyncNetConfig)}
    if unknown := sorted(set(settings) - known):
        raise KeyError(unknown[0])
    frames = settings.get("frames", SyncNetConfig.frames)
    channels = {"audio": 1, "visual": frames * (4 if settings.get("space") == "latent" else 3)}
    parts = {
        name: {"in_channels": channels[name], "attention": [False] * len(settings[name]["widths"]), **settings[name]}
        for name in channels
    }
    return {"mels": [80, -(-frames * RATE // int(FPS))], **settings, **parts}
