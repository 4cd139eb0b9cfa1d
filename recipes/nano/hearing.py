"""Teach a U-Net that was told shapes of lips to hear speech.

The U-Net gets one token for a moment: a linear function (`teller`) of the shape of the lips. Here a projection of the
audio tokens learns the shape, which takes a minute; put before the teller it makes the same token of speech. What
speech leaves open comes out as a middling shape, not as a blur. A U-Net that learned to hear and to draw at once heard
nothing after 5,000 steps. That projection is linear and of low rank: there are minutes of speech, not hours, and
attention to the tokens, or small nonlinear networks, heard people worse whom they had not met.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.files import atomic_path
from latentsync.models.unet_blocks import AudioProjection
from latentsync.training.loop import Report, trapezoid

from .audio import Voices, fold_whitening
from .puppets import Speech
from .unet import Shapes


@dataclass(frozen=True)
class HearingTraining:
    """batch_size: moments of speech of a step. noise: largest on the tokens, in standard deviations. p_silent,
    p_unknown: chance of silence, and of no tokens at all, which guidance takes: it gives the mean shape. gain: what was
    learned is enlarged by it, since a mean of all that is possible moves less than lips do."""

    rank: int = 12
    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 3e-3
    noise: float = 4.0
    p_silent: float = 0.1
    p_unknown: float = 0.05
    gain: float = 1.5
    seed: int = 1247
    report_every: int = 250


class Hearing:
    """Trains a projection from whitened tokens (N, 50, D) to shapes (N, 1, K)."""

    def __init__(self, shapes: Shapes, voices: Voices, settings: HearingTraining) -> None:
        torch.manual_seed(settings.seed)
        self.shapes, self.voices, self.settings = shapes, voices, settings
        self.random = np.random.default_rng(settings.seed)
        self.projection = AudioProjection(len(voices.whitening), settings.rank, len(shapes.silent), nn)
        self.moments = [(i, f) for i, frames in shapes.spoken.items() for f in range(len(frames))]
        self.optimizer = torch.optim.AdamW(
            self.projection.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
        )
        self.schedule = trapezoid(self.optimizer, settings.steps, decay=0.5)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Audio tokens (B, 50, D) and shapes (B, K)."""
        settings, random = self.settings, self.random
        tokens, shapes = [], []
        for which in random.integers(len(self.moments), size=settings.batch_size):
            person, frame = (Speech.SILENT, 0) if random.random() < settings.p_silent else self.moments[which]
            heard, shape = self.voices(person, frame, random), self.shapes(person, frame)
            heard = heard + settings.noise * random.random() * torch.randn_like(heard)
            known = float(random.random() >= settings.p_unknown)
            tokens.append(known * heard)
            shapes.append(known * shape)
        return torch.stack(tokens), torch.stack(shapes)

    def train_step(self) -> float:
        """Mean squared error; the mean shape has about 1."""
        tokens, shapes = self.draw()
        loss = F.mse_loss(self.projection(tokens)[:, 0], shapes)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def train(self, on_report: Report | None = None) -> None:
        settings, errors = self.settings, []
        for step in range(1, settings.steps + 1):
            errors.append(self.train_step())
            if on_report and step % settings.report_every == 0:
                on_report({"step": step, "error": round(float(np.mean(errors[-settings.report_every :])), 4)})

    @torch.no_grad()
    def state(self, teller: nn.Linear) -> dict[str, Tensor]:
        """The tensors of the U-Net's audio_projection, for plain tokens."""
        gain, out = self.settings.gain, self.projection.out
        return {
            "mix.weight": fold_whitening(self.projection.mix.weight, self.voices.whitening),
            "out.weight": gain * teller.weight @ out.weight,
            "out.bias": teller(gain * out.bias),
        }


def teach_hearing(
    checkpoint: Path, shapes: Shapes, voices: Voices, path: Path, *,
    settings: HearingTraining | None = None, on_report: Report | None = None,
) -> Hearing:  # fmt: skip
    """Add hearing to the averaged U-Net of a checkpoint of UNetTrainer; write what `export` needs to path."""
    settings = settings or HearingTraining()
    saved = torch.load(checkpoint, weights_only=True)
    weight = saved["teller"]["weight"]
    teller = nn.Linear(weight.shape[1], weight.shape[0])
    teller.load_state_dict(saved["teller"])
    hearing = Hearing(shapes, voices, settings)
    hearing.train(on_report)
    heard = {f"audio_projection.{name}": value for name, value in hearing.state(teller).items()}
    kept = {name: saved[name] for name in ("settings", "step", "average_decoder")}
    with atomic_path(path) as unfinished:
        torch.save({**kept, "unet": saved["average"] | heard}, unfinished)
    return hearing
