"""Architectures of SyncNets, and recipes with them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...audio.syncnet_mel import RATE
from ...dataset import FPS
from ...errors import UserError
from ...models.syncnet import PUBLISHED, SyncNetConfig, config_from_dict
from ..config import Config, merged
from ..recipes import SYNCNET_PRESETS, SyncNetRecipe, build

CHANNELS = {"pixel": 3, "latent": 4}
"""Of a frame."""


def syncnet_recipe(
    preset: str, config: Path | Config | None = None, **given: Any
) -> tuple[SyncNetConfig, SyncNetRecipe]:
    """Network and recipe from a preset, then a file, then the given values (None: not given).

    config: SyncNetRecipe's settings, or a public configuration. Its network states what differs from the preset's.
    """
    if preset not in NETWORKS:
        raise UserError(f"preset is {preset!r}; it must be one of {', '.join(NETWORKS)}.")
    recipe = build(SyncNetRecipe, SYNCNET_PRESETS.get(preset, {}), config, given)
    if not recipe.network:
        return NETWORKS[preset], recipe
    return network_from(recipe.network, NETWORKS[preset]), recipe


def network_from(settings: Mapping[str, Any], base: SyncNetConfig | None = None) -> SyncNetConfig:
    """An architecture in our form or in the public one. In ours input channels, mel frames and attention may be left
    out, and with a base everything that does not differ from it."""
    try:
        if "audio_encoder" in settings:
            config = config_from_dict(settings)
        else:
            config = config_from_dict(_complete(settings if base is None else _on_top(base, settings)))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The SyncNet's architecture lacks or misnames {error}; give frames, space, size, and widths and factors"
            " for audio and for visual."
        ) from error
    config.check()
    return config


def _on_top(base: SyncNetConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Attention goes with the number of blocks: the base's is dropped where the settings have another number."""
    known = dataclasses.asdict(base)
    del known["mels"]
    for name in ("audio", "visual"):
        del known[name]["in_channels"]
        widths = settings.get(name, {}).get("widths", known[name]["widths"])
        if len(widths) != len(known[name]["attention"]):
            del known[name]["attention"]
    return merged(known, settings)


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {part.name for part in dataclasses.fields(SyncNetConfig)}
    if unknown := sorted(set(settings) - known):
        raise KeyError(unknown[0])
    frames, space = settings.get("frames", SyncNetConfig.frames), settings.get("space", SyncNetConfig.space)
    if space not in CHANNELS:
        raise UserError(f"The SyncNet's space is {space!r}; it must be {' or '.join(CHANNELS)}.")
    channels = {"audio": 1, "visual": frames * CHANNELS[space]}
    parts = {
        name: {"in_channels": channels[name], "attention": [False] * len(settings[name]["widths"]), **settings[name]}
        for name in channels
    }
    for name, part in parts.items():
        if part["in_channels"] != channels[name]:
            raise UserError(
                f"The {name} encoder takes {part['in_channels']} channels, but {frames} frames of {space}s give"
                f" {channels[name]}; leave in_channels out."
            )
    return {"mels": [80, -(-frames * RATE // int(FPS))], **settings, **parts}


SMALL = network_from({
    "audio": {"widths": [32, 64, 128, 128, 256], "factors": [[4, 2], 2, 2, 2, 2]},
    "visual": {"widths": [32, 64, 128, 256], "factors": [[4, 4], 2, 2, [1, 3]]},
    "frames": 10, "size": [24, 48],
})  # fmt: skip
"""For two CPU cores: 0.4 s of a crop 48 pixels wide, downsampled by four at once where most of the work is."""

NETWORKS = {**PUBLISHED, "small": SMALL}
