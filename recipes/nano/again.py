"""Go on from a finished model: a checkpoint of UNetTrainer from its file.

The file holds a projection that hears, in place of the `teller` of shapes. Hearing depends on the prepared people
alone, so it can be learned again, and what the file does with it is the teller.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from latentsync.models.unet_blocks import AUDIO_TIMES
from latentsync.weights.load import load_unet
from latentsync.weights.vae_files import load_vae

from .data import Person
from .hearing import Hearing
from .scenes import Scenes
from .unet import UNetTrainer, UNetTraining

AGAIN = UNetTraining(
    steps=2400,
    learning_rate=8e-4,
    easy_until=-2,
    mixed_from=-1,
    pictures_from=0,
    adversarial_from=200,
    decoder_from=200,
)


def teller_of(state: dict[str, Tensor], hearing: Hearing) -> nn.Linear:
    """Undoes Hearing.state: weight and bias of the file's `audio_projection` to those of the teller."""
    projection, gain = hearing.projection, hearing.settings.gain
    mix, weight, bias = (state[f"audio_projection.{name}"].float() for name in ("mix.weight", "out.weight", "out.bias"))
    teller = nn.Linear(len(projection.out.bias), len(weight))
    with torch.no_grad():
        heard = gain * _whole(projection.mix.weight, projection.out.weight)
        teller.weight.copy_(_whole(mix, weight) @ torch.linalg.pinv(heard))
        teller.bias.copy_(bias - teller.weight @ (gain * projection.out.bias))
    return teller


def _whole(mix: Tensor, out: Tensor) -> Tensor:
    """(K, 10 · L · D): both layers as one, since their factors have other signs on other machines."""
    return torch.einsum("ktr,rm->ktm", out.unflatten(1, (AUDIO_TIMES, -1)), mix).flatten(1)


def start_again(
    file: Path, scenes: Sequence[Scenes], people: Sequence[Person], hearing: Hearing, checkpoint: Path,
    settings: UNetTraining = AGAIN,
) -> UNetTrainer:  # fmt: skip
    """Write the checkpoint from which train_unet goes on. hearing: taught as that of the file was."""
    trainer = UNetTrainer(scenes, people, settings, load_vae(file))
    state = load_unet(file).state_dict()
    trainer.teller.load_state_dict(teller_of(state, hearing).state_dict())
    told = {name: value.float() for name, value in state.items() if not name.startswith("audio_projection.")}
    trainer.unet.load_state_dict(told)
    trainer.average.module.load_state_dict(told)
    trainer.save(checkpoint)
    return trainer
