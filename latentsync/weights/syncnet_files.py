"""SyncNet files."""

import dataclasses
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch

from ..errors import UserError
from ..models.syncnet import PUBLISHED, ChungSyncNet, StableSyncNet, SyncNet, SyncNetConfig, config_from_dict
from ..weights.files import Shape, mismatch, our_metadata, read_tensors, shapes_of, write_safetensors


def load_syncnet(
    path: str | os.PathLike[str], *, config: SyncNetConfig | None = None, device: str | torch.device = "cpu"
) -> SyncNet:
    """A judge from a file: ours, the public stable_syncnet.pt, or syncnet_v2.model; every tensor accounted for.

    config: needed only where neither metadata nor the shapes of a published architecture tell it.
    """
    path = Path(path)
    state = {key.removeprefix("module."): value.float() for key, value in read_tensors(path).items()}
    shapes = shapes_of(state)
    net: SyncNet
    with torch.device("meta"):
        chung = any(key.startswith("netcnnlip.") for key in shapes)
        net = ChungSyncNet() if chung else StableSyncNet(config or _told(path) or _recognised(path, shapes))
    if problem := mismatch(shapes_of(net.state_dict()), shapes):
        raise UserError(f"{path} is not a SyncNet that fits; {problem}.")
    net.load_state_dict(state, strict=True, assign=True)
    return net.to(device).eval().requires_grad_(False)


def save_syncnet(path: str | os.PathLike[str], net: StableSyncNet, metadata: Mapping[str, object]) -> Path:
    """As our safetensors, which say their config."""
    facts = {"format": "latentsync", "kind": "syncnet", "config": json.dumps(dataclasses.asdict(net.config))}
    return write_safetensors(path, net.state_dict(), facts | {key: str(value) for key, value in metadata.items()})


def _told(path: Path) -> SyncNetConfig | None:
    said = our_metadata(path).get("config") if path.suffix == ".safetensors" else None
    return config_from_dict(json.loads(said)) if said else None


def _recognised(path: Path, shapes: Mapping[str, Shape]) -> SyncNetConfig:
    for config in PUBLISHED.values():
        if _wanted(config) == dict(shapes):
            return config
    raise UserError(
        f"{path} is a SyncNet of none of the published architectures ({', '.join(PUBLISHED)}); give its config."
    )


@lru_cache
def _wanted(config: SyncNetConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        return shapes_of(StableSyncNet(config).state_dict())
