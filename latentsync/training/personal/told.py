"""Telling a network the lips' shape while it learns to draw them.

Speech does not tell all of a mouth's shape, and the mean of all mouths that would fit is a half-closed blur: a network
that learns a person from speech alone opens their mouth too little. nano makes one token of a moment's speech, which
lies in few dimensions, those of the lips' shape (its recipe told it that shape first). So each filmed moment gets an
offset in these dimensions, learned along with the network: what is heard plus the offset is the shape that was
filmed, and the network learns to draw it sharply. In use there are no offsets. But they also tell how this person's
lips differ from what is usually heard: a small linear correction of the hearing is fitted to them.
"""

import torch
from torch import Tensor, nn

from ...models.unet_blocks import AudioProjection
from ...weights.lora import PREFIX

RIDGE = 10.0
"""Strength of the ridge for each moment, with standardized features. Six people of the recipe of nano, each left out of
what it heard: median correlation of the opening that is told with the true one on held-out seconds 0.59 without a
correction, 0.54 with 0.2, 0.63 with 4, 0.63 with 10 (worst loss 0.01), 0.63 with 20.
"""


class Told(nn.Module):
    """Stands in for the projection `heard`. moments: those of the batch, (B·F,); None, as in use: nothing is told."""

    steps: Tensor
    correction: Tensor

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
        self.register_buffer("correction", torch.zeros(len(self.steps), heard.out.in_features, device=device), False)
        self.moments: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        token = self.heard(tokens)
        if self.moments is None:
            shape = self.heard.mixed(tokens) @ self.correction.to(token).T
        else:
            shape = self.offsets(self.moments)
        return token + (shape.to(token) @ self.steps.to(token))[:, None]

    @torch.no_grad()
    def fit(self, audio: Tensor, moments: Tensor) -> None:
        """Fit the correction to the offsets of these moments by ridge regression. audio: (N, 50, D) of all moments."""
        device = self.steps.device
        parts = [self.heard.mixed(part.to(device).float()) for part in audio[moments].split(64)]
        features = torch.cat(parts).double()
        mean, spread = features.mean(0), features.std(0).clamp_min(1e-6)
        known = (features - mean) / spread
        wanted = self.offsets.weight[moments.to(device)].double()
        strength = RIDGE * len(known) * torch.eye(known.shape[1], dtype=known.dtype, device=device)
        fitted = torch.linalg.solve(known.T @ known + strength, known.T @ wanted).T / spread
        # nothing is added to what is heard on average: a LoRA has no bias
        self.correction.copy_(fitted - torch.outer(fitted @ mean, mean) / mean.square().sum())

    def lora(self) -> dict[str, Tensor]:
        """The correction as a LoRA of the projection's last layer, under the names of a LoRA file."""
        layer, rank = f"{PREFIX}audio_projection.out", len(self.steps)
        pair = {"lora_A.weight": self.correction, "lora_B.weight": self.steps.T, "alpha": torch.tensor(float(rank))}
        return {f"{layer}.{name}": tensor for name, tensor in pair.items()}
