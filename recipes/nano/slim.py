"""Make the decoder narrower where pictures are large, where nearly all of its time goes; it learns from the tuned one.

The tuned decoder is the teacher and needs no pictures, so every part of a face is learned. Half of the latents are the
encoder's, half the U-Net's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from latentsync.face.mask import latent_mask
from latentsync.models.device import autocast
from latentsync.models.tiny_vae import TinyAutoencoder, TinyVAE
from latentsync.models.unet import UNet
from latentsync.models.vae import VAE
from latentsync.training.loop import Report, fit
from latentsync.weights.files import our_metadata, read_tensors, write_safetensors
from latentsync.weights.load import load_unet
from latentsync.weights.vae_files import load_vae

from .data import RESOLUTION, Person
from .decoder import DecoderTrainer, DecoderTraining
from .scenes import STATES, Scenes, load_scenes
from .tiles import TILE, Tile, decode_tile, mouth_tile

NOISIEST = 999
"""The timestep from which one step makes an image."""


@dataclass(frozen=True)
class SlimTraining(DecoderTraining):
    """widths: of the decoder's levels, from the latents to the picture. p_mouth: chance of a tile at the mouth, else
    it is anywhere."""

    widths: tuple[int, ...] = (64, 64, 48, 32)
    p_mouth: float = 0.6
    steps: int = 6000
    batch_size: int = 8
    learning_rate: float = 1e-3
    adversarial_from: float = 0.5
    adversarial_weight: float = 0.2
    texture_weight: float = 5.0


def narrowed(vae: VAE, widths: tuple[int, ...]) -> VAE:
    """The same with a decoder of these widths, which starts with the first channels of the other's."""
    slim = TinyAutoencoder(replace(vae.model.config, decoder_widths=widths))
    wide = vae.model.state_dict()
    slim.load_state_dict({
        name: wide[name][tuple(slice(size) for size in value.shape)] for name, value in slim.state_dict().items()
    })  # fmt: skip
    slim.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return TinyVAE(slim, scaling=vae.scaling, shift=vae.shift).eval().requires_grad_(False)


class SlimTrainer(DecoderTrainer):
    """Holds a narrower decoder, its teacher and a U-Net that hears."""

    def __init__(
        self, scenes: Sequence[Scenes], settings: SlimTraining, teacher: VAE, unet: UNet, people: Sequence[Person]
    ) -> None:
        super().__init__(scenes, settings, narrowed(teacher, settings.widths))
        self.slim, self.teacher, self.unet, self.people = settings, teacher, unet, people
        self.mask = torch.from_numpy(latent_mask(RESOLUTION, 8))

    def pictures(self) -> tuple[Tensor, Tensor]:
        latents, tile = self.latents(), self._tile()
        with autocast("cpu"):
            with torch.no_grad():
                true = decode_tile(self.teacher, latents, tile).float()
            return decode_tile(self.vae, latents, tile).float(), true

    def _tile(self) -> Tile:
        if self.random.random() < self.slim.p_mouth:
            return mouth_tile(self.random)
        (rows, columns), cells = TILE, RESOLUTION // 8
        top, left = int(self.random.integers(1, cells - rows)), int(self.random.integers(1, cells - columns))
        return slice(top, top + rows), slice(left, left + columns)

    @torch.no_grad()
    def latents(self) -> Tensor:
        """(N, C, h, w): half of an encoder's, half that the U-Net makes when it hears what is said."""
        random, encoded, inputs, tokens = self.random, [], [], []
        for i in range(self.settings.batch_size):
            scenes = self.scenes[int(random.integers(len(self.scenes)))]
            which, state = int(random.integers(len(scenes))), int(random.integers(STATES))
            latents, person = scenes.latents[which].float(), int(scenes.person[which, state])
            if i % 2 or person < 0:  # says nothing
                encoded.append(latents[state])
                continue
            reference = latents[int(random.integers(STATES))]
            noise = torch.randn_like(reference)
            inputs.append(torch.cat((noise, self.mask[None], scenes.masked[which].float(), reference)))
            tokens.append(torch.from_numpy(self.people[person].audio[int(scenes.frame[which, state])]).float())
        if not inputs:
            return torch.stack(encoded)
        made = self.unet(torch.stack(inputs)[:, :, None], NOISIEST, torch.stack(tokens)[:, None])[:, :, 0]
        return torch.cat((made, torch.stack(encoded)))


def train_slim(
    file: Path, scenes: Path, people: Sequence[Person], folder: Path, out: Path, settings: SlimTraining,
    *, on_report: Report | None = None,
) -> SlimTrainer:  # fmt: skip
    """Train, or resume from folder/slim.pt; then write the model of file with the narrower decoder to out."""
    teacher, unet = load_vae(file), load_unet(file)
    trainer, checkpoint = SlimTrainer(load_scenes(scenes), settings, teacher, unet, people), folder / "slim.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    fit(trainer, checkpoint, save_every=2 * settings.report_every, on_report=on_report)
    state = {name: value for name, value in read_tensors(file).items() if not name.startswith("vae.decoder.")}
    state |= {f"vae.decoder.{name}": value.half() for name, value in trainer.average.module.state_dict().items()}
    write_safetensors(out, state, our_metadata(file))
    return trainer
