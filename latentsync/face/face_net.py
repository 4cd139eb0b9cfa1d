"""Tells faces apart: the residual network of dlib's face recognition, which is in the public domain.

Davis King trained it on 3 million pictures of 7,485 people; on Labeled Faces in the Wild it tells 99.4 % of the pairs
(github.com/davisking/dlib-models). Its batch norms are folded into the convolutions.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

ASSET = Path(__file__).parents[1] / "assets" / "faces.safetensors"
"""In fp16; `python -m recipes.identity` makes it from dlib's file."""

SIDE = 150
"""Pixels of the picture that it was trained on."""
LENGTH = 128
MEAN, SCALE = (122.782, 117.001, 104.298), 256.0  # of its input layer, RGB
LEVELS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
"""Channels and blocks; the first block of each level but the first halves the picture."""


class FaceNet(nn.Module):
    """Faces (N, 3, 150, 150) RGB 0..255 to (N, 128); two views of a person are nearer to each other than 0.6."""

    def __init__(self) -> None:
        super().__init__()
        width = LEVELS[0][0]
        self.first = nn.Conv2d(3, width, 7, stride=2)
        blocks = list[nn.Module]()
        for level, (channels, count) in enumerate(LEVELS):
            for i in range(count):
                blocks.append(_Block(width, channels, 2 if level and i == 0 else 1))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(width, LENGTH, bias=False)

    def forward(self, faces: Tensor) -> Tensor:
        x = F.relu(self.first((faces - faces.new_tensor(MEAN)[:, None, None]) / SCALE))
        return self.last(self.blocks(F.max_pool2d(x, 3, stride=2)).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1 if stride == 1 else 0)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv2(F.relu(self.conv1(x)))
        if self.stride > 1:
            x = F.avg_pool2d(x, 2, stride=2)
        # the smaller of the two is filled up with zeros: more channels, or a row and a column
        return F.relu(_filled(made, x) + _filled(x, made))


def _filled(x: Tensor, other: Tensor) -> Tensor:
    (c, h, w), (c2, h2, w2) = x.shape[1:], other.shape[1:]
    return F.pad(x, (0, max(0, w2 - w), 0, max(0, h2 - h), 0, max(0, c2 - c)))


@lru_cache
def face_net() -> FaceNet:
    with torch.device("meta"):  # the global random generator is left alone
        net = FaceNet()
    net.load_state_dict({key: value.float() for key, value in load_file(ASSET).items()}, assign=True)
    return net.eval()
