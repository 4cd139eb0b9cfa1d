"""Teach a U-Net that was told shapes of lips to hear speech.

A told shape reaches the picture through the attention to the audio alone: it answers a shape with the same vector
everywhere. So that attention is trained by itself to give for speech what it gave for the shape of the lips in that
moment. What speech leaves open comes out as a middling shape, not as a blur. This takes minutes, where a U-Net that
learned to hear and to draw at once heard nothing after 5,000 steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.face.mask import latent_mask
from latentsync.files import atomic_path
from latentsync.models.unet import UNet
from latentsync.models.unet_blocks import Attention

from .audio import Voices
from .data import RESOLUTION
from .loop import Report, trapezoid
from .puppets import Speech
from .scenes import Scenes
from .unet import Shapes, UNetTraining


@dataclass(frozen=True)
class HearingTraining:
    """batch_size: moments of speech of a step. positions: of the picture that attend, for each. noise: largest on the
    tokens, in standard deviations. p_silent, p_unknown: chance of silence, and of no tokens at all, which guidance
    takes: it gives the mean shape. gain: what was learned is enlarged by it, since a mean of all that is possible moves
    less than lips do (openings of 0.6 of the true spread on held-out time). files: of scenes, whose pictures hear."""

    steps: int = 1500
    batch_size: int = 64
    positions: int = 12
    learning_rate: float = 3e-3
    noise: float = 1.5
    p_silent: float = 0.1
    p_unknown: float = 0.05
    gain: float = 1.5
    files: int = 7
    seed: int = 1247
    report_every: int = 250


class Hearing:
    """Trains the attention to the audio of a U-Net in place."""

    def __init__(
        self,
        unet: UNet,
        teller: nn.Linear,
        shapes: Shapes,
        voices: Voices,
        scenes: Sequence[Scenes],
        settings: HearingTraining,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.unet, self.teller, self.shapes, self.voices, self.settings = unet, teller, shapes, voices, settings
        self.random = np.random.default_rng(settings.seed)
        self.modules = {
            name: module
            for name, module in unet.named_modules()
            if isinstance(module, Attention) and name.endswith("attn2")
        }
        self.pixels = self._pixels(scenes)
        self.answers = {name: self._answers(module) for name, module in self.modules.items()}
        self.moments = [(i, f) for i, frames in shapes.spoken.items() for f in range(len(frames))]
        self.parameters = [p for module in self.modules.values() for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
        )
        self.schedule = trapezoid(self.optimizer, settings.steps, decay=0.5)

    @torch.no_grad()
    def _pixels(self, scenes: Sequence[Scenes]) -> dict[str, Tensor]:
        """(N, T, C) of each attention: what attends to the audio while the U-Net paints the first states of scenes."""
        found: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda _, inputs, __, name=name: found.__setitem__(name, inputs[0]))
            for name, module in self.modules.items()
        ]
        latents = torch.cat([part.latents[:, 0] for part in scenes]).float()
        masked = torch.cat([part.masked for part in scenes]).float()
        mask = torch.from_numpy(latent_mask(RESOLUTION, 8)).expand(len(latents), 1, -1, -1)
        sample = torch.cat((torch.randn_like(latents), mask, masked, latents), 1).transpose(0, 1)[None]
        said = [zip(part.person[:, 1].tolist(), part.frame[:, 1].tolist(), strict=True) for part in scenes]
        shapes = torch.stack([self.shapes(person, frame) for person, frame in chain(*said)])
        self.unet(sample, 999, self.teller(shapes)[None, :, None].expand(1, -1, 50, -1))
        for hook in hooks:
            hook.remove()
        return found

    @torch.no_grad()
    def _answers(self, module: Attention) -> tuple[Tensor, Tensor]:
        """What it answers to shapes: (K, C) for each of their numbers, and (C,) for the mean shape."""
        told = module.to_out[0](module.to_v(self.teller(torch.eye(self.teller.in_features + 1)[:, 1:])))
        return told[1:] - told[0], told[0]

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
        """Mean squared error over that of the mean shape."""
        tokens, shapes = self.draw()
        total = torch.zeros(())
        for name, module in self.modules.items():
            directions, middle = self.answers[name]
            pixels = self.pixels[name]
            some = pixels[torch.from_numpy(self.random.integers(len(pixels), size=len(tokens)))]
            some = some[:, torch.from_numpy(self.random.permutation(some.shape[1])[: self.settings.positions])]
            wanted = (middle + shapes @ directions)[:, None].expand(-1, some.shape[1], -1)
            total = total + F.mse_loss(module(some, tokens), wanted) / directions.square().sum(0).mean()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(total.detach()) / len(self.modules)

    @torch.no_grad()
    def enlarge(self) -> None:
        for name, module in self.modules.items():
            weight, bias = module.to_out[0].parameters()
            weight.mul_(self.settings.gain)
            bias.lerp_(self.answers[name][1], 1 - self.settings.gain)


def teach_hearing(
    checkpoint: Path, shapes: Shapes, voices: Voices, scenes: Sequence[Scenes], path: Path, *,
    settings: HearingTraining | None = None, on_report: Report | None = None,
) -> Hearing:  # fmt: skip
    """Take the averaged U-Net of a checkpoint of UNetTrainer; write what `export` needs to path."""
    settings = settings or HearingTraining()
    saved = torch.load(checkpoint, weights_only=True)
    unet = UNet(UNetTraining(**saved["settings"]).config).eval()
    unet.load_state_dict(saved["average"])
    weight = saved["teller"]["weight"]
    teller = nn.Linear(weight.shape[1], weight.shape[0])
    teller.load_state_dict(saved["teller"])
    hearing = Hearing(unet, teller, shapes, voices, scenes[: settings.files], settings)
    errors = []
    for step in range(1, settings.steps + 1):
        errors.append(hearing.train_step())
        if on_report and step % settings.report_every == 0:
            on_report({"step": step, "error": round(float(np.mean(errors[-settings.report_every :])), 4)})
    hearing.enlarge()
    kept = {name: saved[name] for name in ("settings", "step", "average_decoder")}
    with atomic_path(path) as unfinished:
        torch.save({**kept, "average": unet.state_dict(), "whitening": voices.whitening}, unfinished)
    return hearing
