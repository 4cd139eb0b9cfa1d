"""Telling a network the lips' shape while it learns to draw them.

Speech does not tell all of a mouth's shape, and the mean of all mouths that would fit is a half-closed blur: a network
that learns a person from speech alone opens their mouth too little. nano makes one token of a moment's speech, which
lies in few dimensions, those of the lips' shape (its recipe told it that shape first). So each filmed moment gets an
offset in these dimensions, learned along with the network: what is heard plus the offset is the shape that was
filmed, and the network learns to draw it sharply. In use there are no offsets.
"""

import torch
from torch import Tensor, nn

from ...models.unet_blocks import AudioProjection


class Told(nn.Module):
    """Stands in for the projection `heard`. moments: those of the batch, (B·F,); None, as in use: nothing is told."""

    steps: Tensor

    def __init__(self, heard: AudioProjection, audio: Tensor) -> None:
        """audio: (N, 50, D), what is heard at each of the person's moments."""
        super().__init__()
        self.heard = heard
        with torch.no_grad():
            left, strength, _ = torch.linalg.svd(heard.out.weight.float(), full_matrices=False)
            directions = left[:, strength > 1e-4 * strength[0]]
            device = directions.device
            made = torch.cat([heard(part.to(device).float())[:, 0] for part in audio.split(64)])
            spread = ((made - made.mean(0)) @ directions).std(0)
        self.register_buffer("steps", (directions * spread).T.contiguous(), persistent=False)
        self.offsets = nn.Embedding(len(audio), len(self.steps), sparse=True, device=device)
        nn.init.zeros_(self.offsets.weight)
        self.moments: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        token = self.heard(tokens)
        if self.moments is None:
            return token
        return token + (self.offsets(self.moments) @ self.steps)[:, None].to(token)
