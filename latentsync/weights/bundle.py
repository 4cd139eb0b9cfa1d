"""All networks that one checkpoint needs."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..face.detect import FaceFinder
from ..models.subpixel import quicken
from ..models.unet import UNet
from ..models.vae import VAE
from ..models.whisper import WhisperEncoder
from ..settings import GUIDANCE, STEPS, Settings
from .identify import FileInfo, identify
from .load import load_unet, locate
from .lora import open_lora
from .registry import check_present, find, get, is_registered
from .vae_files import load_vae
from .whisper_files import load_whisper

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """The networks of one checkpoint, on one device. defaults: settings that suit it."""

    unet: UNet
    vae: VAE
    whisper: WhisperEncoder
    finder: FaceFinder
    resolution: int
    name: str = ""
    defaults: Settings = field(default_factory=partial(Settings, steps=STEPS, guidance=GUIDANCE))

    def __enter__(self) -> "Models":
        return self

    def __exit__(self, *_: object) -> None:
        self.finder.close()

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def fingerprint(self) -> str:
        """Says whether these are the same weights as those of another run, by a few numbers of each tensor."""
        known = hashlib.sha256()
        for network in (self.unet, self.vae.model, self.whisper):
            for name, values in network.state_dict().items():
                known.update(name.encode())
                known.update(values.flatten()[:4].double().cpu().numpy().tobytes())
        return known.hexdigest()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype


@lru_cache(maxsize=2)
def draft_decoder(device: torch.device, dtype: torch.dtype) -> VAE:
    """The built-in tiny VAE, which decodes Stable Diffusion's latents with a twentieth of the work."""
    return load_vae("taesd", device=device, dtype=dtype)


def companions(info: FileInfo) -> tuple[str | Path, str]:
    """VAE and Whisper that a checkpoint was trained with: a file or a registered name each."""
    return (info.path, "tiny.en") if info.kind == "nano" else ("vae", "tiny")


def _check_present(checkpoint: str, vae: str | Path | None, whisper: str | Path | None) -> None:
    """All at once, before gigabytes are read: what of the known files is not here."""
    is_file = Path(checkpoint).is_file()
    kind = identify(Path(checkpoint)).kind if is_file else get(checkpoint).kind if is_registered(checkpoint) else ""
    if kind not in ("unet", "nano"):
        return  # loading says what it is
    own_vae, own_whisper = companions(FileInfo(Path(checkpoint), kind, ""))
    wanted = [str(name) for name in (checkpoint, vae or own_vae, whisper or own_whisper, "face-landmarker")]
    check_present([name for name in wanted if not Path(name).is_file() and is_registered(name)])


def load_models(
    checkpoint: str | Path = "nano",
    *,
    vae: str | Path | None = None,
    whisper: str | Path | None = None,
    resolution: int | None = None,
    lora: Sequence[str | Path] = (),
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Models:
    """Load what a checkpoint needs. vae and whisper default to those that it was trained with. lora: files of LoRAs, or
    "FILE:STRENGTH"."""
    _check_present(str(checkpoint), vae, whisper)
    info, loras = identify(locate(checkpoint)), [open_lora(given) for given in lora]
    for one in loras:
        one.check(info)

    def merged(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return reduce(lambda tensors, one: one.merged(tensors), loras, state)

    unet = load_unet(checkpoint, dtype=dtype, device=device, resolution=resolution, change=merged)
    config = unet.config
    if not config.resolution:
        raise UserError(
            f"{checkpoint} does not state its resolution; give it (--resolution 256 for LatentSync 1.5, 512 for 1.6)."
        )
    own_vae, own_whisper = companions(info)
    loaded_vae = load_vae(vae or own_vae, dtype=dtype, device=device)
    for one in loras:
        loaded_vae.model.load_state_dict(one.merged_vae(loaded_vae.model.state_dict()))
    loaded_vae = quicken(loaded_vae)
    if loaded_vae.channels != config.latent_channels:
        raise UserError(
            f"The VAE has {loaded_vae.channels} latent channels and {checkpoint} takes {config.latent_channels};"
            " give the VAE that belongs to it."
        )
    encoder = load_whisper(whisper or own_whisper, device=device)
    if encoder.dim != config.audio_dim:
        raise UserError(
            f"The Whisper encoder gives {encoder.dim} numbers per token and {checkpoint} takes"
            f" {config.audio_dim}; LatentSync 1.5 and 1.6 go with Whisper tiny."
        )
    finder = FaceFinder(find("face_landmarker.task"))
    name = " + ".join([info.version or Path(checkpoint).stem, *(one.label for one in loras)])
    _log.debug("%s on %s in %s: %s", info.title, device, dtype, config)
    defaults = Settings(steps=config.default_steps, guidance=config.default_guidance)
    return Models(unet, loaded_vae, encoder, finder, config.resolution, name, defaults)
