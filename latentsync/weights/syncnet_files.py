"""Reading and writing SyncNet files."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import UserError
from ..files import parse_json
from ..models.syncnet import PUBLISHED, ChungSyncNet, StableSyncNet, SyncNet, SyncNetConfig, config_from_dict
from ..weights.files import Shape, mismatch, our_metadata, read_tensors, shapes_of, write_safetensors


def load_syncnet(
    path: str | os.PathLike[str], *, config: SyncNetConfig | None = None, device: str | torch.device = "cpu"
) -> SyncNet:
    """Our safetensors, stable_syncnet.pt or syncnet_v2.model, every tensor matched. config: if no file gives it."""
    path = Path(path)
    state = {key.removeprefix("module."): value.float() for key, value in read_tensors(path).items()}
    shapes = shapes_of(state)
    net: SyncNet
    with torch.device("meta"):
        chung = any(key.startswith("netcnnlip.") for key in shapes)
        net = ChungSyncNet() if chung else StableSyncNet(config or _stored_config(path) or _identify(path, shapes))
    if problem := mismatch(shapes_of(net.state_dict()), shapes):
        raise UserError(f"{path} is not a SyncNet that fits; {problem}.")
    net.load_state_dict(state, strict=True, assign=True)
    return net.to(device).eval().requires_grad_(False)


def save_syncnet(path: str | os.PathLike[str], net: StableSyncNet, metadata: Mapping[str, object]) -> Path:
    """Write our safetensors, with the config in its metadata."""
    facts = {"format": "latentsync", "kind": "syncnet", "config": json.dumps(dataclasses.asdict(net.config))}
    return write_safetensors(path, net.state_dict(), facts | {key: str(value) for key, value in metadata.items()})


def _stored_config(path: Path) -> SyncNetConfig | None:
    text = our_metadata(path).get("config") if path.suffix == ".safetensors" else None
    if not text:
        return None
    try:
        return config_from_dict(parse_json(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} has damaged metadata (config: {text[:60]}); get the file again.") from error


def _identify(path: Path, shapes: Mapping[str, Shape]) -> SyncNetConfig:
    for config in PUBLISHED.values():
        with torch.device("meta"):
            published = shapes_of(StableSyncNet(config).state_dict())
        if published == shapes:
            return config
    raise UserError(
        f"{path} has none of the published SyncNet architectures ({', '.join(PUBLISHED)}); give its config."
    )
