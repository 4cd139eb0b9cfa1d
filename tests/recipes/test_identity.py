"""The recipe of faces.safetensors: a file as dlib writes it becomes the same network."""

import numpy as np
import torch
from torch import nn

from latentsync.face.face_net import FaceNet
from recipes.identity.__main__ import converted


def number(value: int) -> bytes:
    data = value.to_bytes(max(1, (value.bit_length() + 7) // 8), "little")
    return bytes([len(data)]) + data


def layer(name: bytes, values: np.ndarray, *before: int) -> bytes:
    """A layer with its parameters, as dlib has it: version 2, sizes, values."""
    numbers = (*before, 2, values.size, 1, 1, 1)
    return bytes([len(name)]) + name + b"".join(map(number, numbers)) + values.astype("<f4").tobytes()


def test_batch_norms_are_folded_and_the_order_is_that_of_the_file():
    random, data, outs = np.random.default_rng(5), b"\x01\x02loss", []
    for _, module in FaceNet().named_modules():
        if isinstance(module, nn.Conv2d):
            weight, bias = random.normal(0, 0.05, tuple(module.weight.shape)), random.normal(0, 1, module.out_channels)
            gain, shift = random.uniform(0.5, 2, module.out_channels), random.normal(0, 1, module.out_channels)
            data += layer(b"con_4", np.concatenate([weight.ravel(), bias])) + b"\x01\x00"
            data += layer(b"affine_", np.concatenate([gain, shift])) + b"\x01\x00"
            outs.append((weight, bias, gain, shift))
    last = random.normal(0, 1, (256, 128))
    state = converted(data + layer(b"fc_2", last.ravel(), 128, 256))
    x = torch.randn(1, 32, 9, 9)
    for name, (weight, bias, gain, shift) in (("first", outs[0]), ("blocks.3.conv1", outs[7])):
        taken = x[:, : weight.shape[1]]
        plain = nn.functional.conv2d(taken, torch.tensor(weight).float(), torch.tensor(bias).float())
        wanted = plain * torch.tensor(gain).float()[:, None, None] + torch.tensor(shift).float()[:, None, None]
        made = nn.functional.conv2d(taken, state[f"{name}.weight"], state[f"{name}.bias"])
        assert torch.allclose(made, wanted, atol=1e-4), name
    assert np.allclose(state["last.weight"].numpy(), last.T, atol=1e-6)
