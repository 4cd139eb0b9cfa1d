"""Weights of dlib's face recognition, as the pack has them: python -m recipes.identity MODEL.dat OUT.safetensors

MODEL.dat: dlib_face_recognition_resnet_model_v1.dat of github.com/davisking/dlib-models (public domain), unpacked.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from latentsync.face.face_net import FaceNet
from latentsync.weights.files import write_safetensors

NAMES = (b"con_4", b"affine_", b"fc_2")
"""Layers with parameters. Each is its name, then (fc_2: two numbers, then) a tensor: version, four sizes, values."""


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An integer, and where it ends: dlib writes how many bytes it has, then these, the lowest first."""
    count = data[at] & 15
    return int.from_bytes(data[at + 1 : at + 1 + count], "little"), at + 1 + count


def layers(data: bytes) -> Iterator[tuple[bytes, np.ndarray]]:
    """Name and parameters of each layer that has any, from the picture on."""
    places = sorted((at, name) for name in NAMES for at in _places(data, bytes([len(name)]) + name))
    for at, name in places:
        at += 1 + len(name)
        numbers = []
        for _ in range(7 if name == b"fc_2" else 5):
            number, at = _number(data, at)
            numbers.append(number)
        yield name, np.frombuffer(data, "<f4", int(np.prod(numbers[-4:])), at)


def _places(data: bytes, text: bytes) -> Iterator[int]:
    at = data.find(text)
    while at >= 0:
        yield at
        at = data.find(text, at + 1)


def converted(data: bytes) -> dict[str, Tensor]:
    """FaceNet's tensors: each batch norm, a factor and a summand by channel, goes into the convolution before it."""
    net = FaceNet()
    found = iter(layers(data))
    state = dict[str, Tensor]()
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            (_, values), (_, affine) = next(found), next(found)
            size, channels = module.weight.numel(), module.out_channels
            factor, summand = affine[:channels], affine[channels:]
            weight = values[:size].reshape(module.weight.shape) * factor[:, None, None, None]
            state |= {f"{name}.weight": torch.tensor(weight)}
            state |= {f"{name}.bias": torch.tensor(values[size:] * factor + summand)}
    _, values = next(found)
    state["last.weight"] = torch.tensor(values.reshape(net.last.in_features, net.last.out_features).T.copy())
    net.load_state_dict(state)
    return state


def main(
    model: Annotated[Path, typer.Argument(help="dlib_face_recognition_resnet_model_v1.dat")],
    out: Annotated[Path, typer.Argument(help="The file to write, in fp16.")],
) -> None:
    state = {name: value.half().contiguous() for name, value in converted(model.read_bytes()).items()}
    facts = {"source": "dlib_face_recognition_resnet_model_v1 by Davis King", "license": "CC0-1.0"}
    write_safetensors(out, state, facts)


if __name__ == "__main__":
    typer.run(main)
