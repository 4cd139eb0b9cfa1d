"""Train a small U-Net on latents that were computed once, for several augmentations of every clip.

It predicts the clean latents (x0, "sample"): with few parameters and little time that gives mouths where predicting
the noise gives blotches. The loss counts the repainted cells, most of all those around the lips, and their change
from frame to frame. Half of the windows begin at the noisiest step, so that one evaluation makes a picture; and from
some point on the decoded mouths are judged too, by a critic among others, so that the one picture is sharp.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.face.align import latent_mask, mouth_mask
from latentsync.models.unet import UNet, UNetConfig, lips_window
from latentsync.models.vae import VAE
from latentsync.sampling import alphas_cumprod
from latentsync.training.ema import Log, MovingAverage, learning_rate, save_checkpoint, set_rate

from .critic import Sharpener, balance, plain_losses
from .data import Clip, plain, random_augmentation
from .vae import clip_chances

Encode = Callable[[Tensor], Tensor]
"""Pixels (N, 3, R, R) in [-1, 1] to scaled latents (N, C, h, w)."""
LAGS = range(5, 31)
"""Frames between a picture and its reference."""


@dataclass(frozen=True)
class UNetTraining:
    """frames: of one training window; shorter than when sampling, so that a batch shows more of the data.

    audio_rate: how much faster than the rest the attention to the speech learns.
    own_voice: chance that a window is heard as it was spoken, not in one of the clip's other voices. audio_noise: up to
    how much noise, in standard deviations, the tokens get: a few minutes of speech are else learnt by heart (a small
    network told the opening of held-out time with a correlation of 0.46 without, 0.64 with it).
    held_picture: chance that the masked picture of one frame serves the whole window. Cheeks tell what the mouth says;
    a network that reads them follows the words of the source rather than the speech that it is given. held_reference:
    the same for the reference, as with a still. disguise: how strongly the latents of a window are changed, all in the
    same way, in their own unit.
    noise_bias: timesteps are 999 · u^noise_bias; small keeps them where speech, not the noisy picture, tells the mouth.
    shared: chance that one noise frame serves the whole window, as it does when sampling.
    noisiest: chance of the noisiest timestep. judge_from: share of the steps after which decoded mouths are judged,
    `decoded` frames a step. critic_weight: as for the VAE. decoder_rate: how fast the VAE's decoder learns, over the
    U-Net's rate: it gets used to what a U-Net can tell, which is less than what an encoder can.
    """

    resolution: int = 160
    widths: tuple[int, ...] = (64, 96, 160)
    cross: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    latent_channels: int = 16
    norm_groups: int = 8
    steps: int = 3000
    batch: int = 4
    frames: int = 12
    rate: float = 6e-4
    variants: int = 4
    drop_audio: float = 0.1
    own_voice: float = 0.5
    audio_noise: float = 3.0
    held_picture: float = 0.85
    held_reference: float = 0.3
    disguise: float = 0.4
    shared: float = 0.6
    keep_weight: float = 0.05
    lips_weight: float = 5.0
    motion_weight: float = 4.0
    opening_weight: float = 0.3
    noise_bias: float = 0.2
    noisiest: float = 0.7
    judge_from: float = 0.5
    decoded: int = 8
    picture_weight: float = 0.5
    texture_weight: float = 40.0
    kept_weight: float = 3.0
    feature_weight: float = 0.25
    critic_weight: float = 0.5
    decoder_rate: float = 2.0
    audio_rate: float = 3.0
    seed: int = 1247
    report_every: int = 50

    @property
    def config(self) -> UNetConfig:
        return UNetConfig(
            self.widths, self.layers, self.cross, 384, self.latent_channels, "none", self.norm_groups, residual=True
        )


@dataclass(frozen=True)
class LatentClip:
    """One clip under one augmentation: clean and masked latents (F, C, h, w) float16, audio (F, 50, D) float16,
    mouth (F, 3, H, W) uint8: what mouth_box shows of the pictures."""

    name: str
    clean: Tensor
    masked: Tensor
    audio: Tensor
    mouth: Tensor


def mouth_box(resolution: int) -> tuple[slice, slice]:
    """Rows and columns of a crop that hold nearly all that is repainted."""
    return slice(round(0.4 * resolution), resolution), slice(round(0.15 * resolution), round(0.85 * resolution))


def opening_of(clip: Clip) -> Tensor:
    """(F,) mouth opening of the training part, in standard deviations from the clip's mean."""
    opening = torch.from_numpy(clip.opening[: clip.train_frames])
    return (opening - opening.mean()) / opening.std().clamp(min=1e-6)


@torch.no_grad()
def encode_clip(clip: Clip, encode: Encode, settings: UNetTraining, random: np.random.Generator, i: int) -> LatentClip:
    """Latents of the training part of a clip in its i-th variant; the first is the unchanged one."""
    size, voices = settings.resolution, (clip.audio, *clip.voices)
    augment = random_augmentation(random, size) if i else plain(size)
    pixels = augment(clip.crops[: clip.train_frames], size)
    keep = torch.from_numpy(mouth_mask(size))
    with torch.autocast("cpu", torch.bfloat16):
        clean, masked = (torch.cat([encode(part) for part in p.split(32)]).half() for p in (pixels, pixels * keep))
    audio = torch.from_numpy(voices[i % len(voices)][: clip.train_frames])
    rows, columns = mouth_box(size)
    mouth = ((pixels[:, :, rows, columns] + 1) * 127.5).round().byte()
    return LatentClip(clip.name, clean, masked, audio, mouth)


def encode_clips(
    clips: Sequence[Clip], encode: Encode, settings: UNetTraining, on_variant: Callable[[int], None] | None = None
) -> list[list[LatentClip]]:
    """[variant][clip]."""
    random = np.random.default_rng(settings.seed)
    variants = []
    for i in range(settings.variants):
        variants.append([encode_clip(clip, encode, settings, random, i) for clip in clips])
        if on_variant:
            on_variant(i)
    return variants


def cell_weights(settings: UNetTraining) -> Tensor:
    """(h, w) loss weight of each latent cell: kept cells little, repainted cells 1, the lips' surroundings more."""
    keep = torch.from_numpy(latent_mask(settings.resolution, 8))
    weights = torch.where(keep > 0.5, settings.keep_weight, 1.0)
    h, w = weights.shape
    # where lips and chin lie in an aligned crop: 52-80 % of its height, the middle 44 % of its width
    weights[round(0.52 * h) : round(0.8 * h), round(0.28 * w) : round(0.72 * w)] *= settings.lips_weight
    return weights / weights.mean()


def audio_whitening(variants: Sequence[Sequence[LatentClip]], layers: int = 5, floor: float = 1.0) -> Tensor:
    """(D, D) matrix that makes audio tokens whiter: no mean in any layer, no direction much livelier than the rest.

    Whisper's states are dominated by their constant part and by one direction 300 times as strong as the mean; with
    those left in, the attention to the speech hardly learns. Directions weaker than floor times the mean power stay
    weak, as they tell one recording from another rather than one sound from another. A matrix can be folded into the
    attention's weights afterwards (they have no bias, hence a projection rather than a subtraction), so that the file
    takes plain tokens.
    """
    tokens = torch.cat([clip.audio[::4].float().unflatten(1, (-1, layers))[:, 5] for clip in variants[0]])
    mean = tokens.mean(0)
    basis, _ = torch.linalg.qr(mean.T)
    without_mean = torch.eye(mean.shape[1]) - basis @ basis.T
    centered = (tokens - mean).flatten(0, 1) @ without_mean
    power, directions = torch.linalg.eigh(centered.T @ centered / len(centered))
    spread = (power.clamp(min=0) + floor * power.mean()).sqrt()
    matrix = directions / spread @ directions.T @ without_mean
    return matrix / (centered @ matrix.T).std()


def fold_whitening(state: Mapping[str, Tensor], whitening: Tensor) -> dict[str, Tensor]:
    """The same network for plain tokens."""
    heard = ("attn2.to_k.weight", "attn2.to_v.weight")
    return {key: value @ whitening if key.endswith(heard) else value for key, value in state.items()}


class UNetTrainer:
    """Holds the network and takes steps. Deterministic for a seed on one machine."""

    def __init__(
        self, variants: Sequence[Sequence[LatentClip]], clips: Sequence[Clip], settings: UNetTraining, vae: VAE
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.variants, self.vae = settings, variants, vae
        self.decoder = vae.model.decoder.requires_grad_(True)
        self.average_decoder = MovingAverage(self.decoder)
        self.first_vae = deepcopy(vae)
        self.sharpener = Sharpener()
        self.random = np.random.default_rng(settings.seed)
        self.chances = clip_chances(clips)
        self.unet = UNet(settings.config)
        self.average = MovingAverage(self.unet, decay=0.999)
        # a head on the middle block that tells the mouth's opening: a clear, early reason to listen; not shipped
        self.openings = [opening_of(clip) for clip in clips]
        self.head = nn.Linear(settings.widths[-1], 1)
        self.middle = torch.empty(0)
        self.unet.mid_block.register_forward_hook(self._remember)
        heard = [p for name, p in self.unet.named_parameters() if "attn2." in name]
        rest = [p for name, p in self.unet.named_parameters() if "attn2." not in name]
        groups = [
            {"params": rest, "scale": 1.0},
            {"params": heard, "scale": settings.audio_rate},
            {"params": [*self.head.parameters()], "scale": 3.0},
            {"params": [*self.decoder.parameters()], "scale": settings.decoder_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.weights = cell_weights(settings)
        self.mask = torch.from_numpy(latent_mask(settings.resolution, 8))
        self.seen = (3 * lips_window(settings.resolution, settings.resolution)).clamp(max=1)
        self.whitening = audio_whitening(variants)
        self.alphas_cumprod = alphas_cumprod()
        self.step = 0

    def _remember(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.middle = output

    def window(self) -> dict[str, Tensor]:
        """One training window."""
        frames = self.settings.frames
        clips = self.variants[int(self.random.integers(len(self.variants)))]
        which = int(self.random.choice(len(clips), p=self.chances))
        clip = clips[which]
        start = int(self.random.integers(len(clip.clean) - frames + 1))
        span = slice(start, start + frames)
        audio = self._voice(which).audio[span].float() @ self.whitening.T
        audio = audio + self.settings.audio_noise * self.random.random() * torch.randn_like(audio)
        if self.random.random() < self.settings.drop_audio:
            audio = torch.zeros_like(audio)
        masked = self._held(clip.masked[span], self.settings.held_picture).float()
        reference = self._held(self._reference(clip, start), self.settings.held_reference)
        gain, offset = self._disguise(clip)
        shown = {"clean": clip.clean[span], "masked": masked, "reference": reference}
        parts = {name: latents.float() * gain + offset for name, latents in shown.items()}
        parts["masked"] = parts["masked"] * self.mask + masked * (1 - self.mask)  # gray stays gray
        return {k: v.transpose(0, 1) for k, v in parts.items()} | {
            "gain": gain.transpose(0, 1),
            "offset": offset.transpose(0, 1),
            "audio": audio,
            "noise": self._noise(clip),
            "opening": self.openings[which][span],
            "mouth": clip.mouth[span],
        }

    def _disguise(self, clip: LatentClip) -> tuple[Tensor, Tensor]:
        """Gain (1, C, 1, 1) and offset (1, C, h, w), slowly changing over the picture, that a window's latents all get:
        a face that nobody has. So the network learns to change the reference's, not to remember a few people's."""
        c, h, w = clip.clean.shape[1:]
        gain = torch.exp(torch.randn(1, c, 1, 1) * self.settings.disguise / 2)
        coarse = torch.randn(1, c, 4, 4) * self.settings.disguise
        return gain, F.interpolate(coarse, (h, w), mode="bicubic", align_corners=False)

    def _held(self, latents: Tensor, chance: float) -> Tensor:
        if self.random.random() < chance:
            return latents[int(self.random.integers(len(latents)))].expand_as(latents)
        return latents

    def _reference(self, clip: LatentClip, start: int) -> Tensor:
        """The same face a little earlier or later: in nearly the same pose, but with a mouth that says nothing about
        this one. With the very frames, as when sampling, the network would copy that mouth and not hear the speech."""
        last = len(clip.clean) - self.settings.frames
        starts = [i for i in range(last + 1) if LAGS.start <= abs(i - start) < LAGS.stop] or [0, last]
        picked = int(self.random.choice(starts))
        return clip.clean[picked : picked + self.settings.frames]

    def _voice(self, which: int) -> LatentClip:
        own = self.random.random() < self.settings.own_voice
        return self.variants[0 if own else int(self.random.integers(len(self.variants)))][which]

    def _noise(self, clip: LatentClip) -> Tensor:
        (c, h, w), frames = clip.clean.shape[1:], self.settings.frames
        one = torch.randn(c, 1, h, w).expand(c, frames, h, w)
        if self.random.random() < self.settings.shared:
            return one
        return (one + torch.randn(c, frames, h, w)) * 0.5**0.5  # mixed noise, alpha 1 (spec of the public recipe)

    def train_step(self) -> dict[str, Tensor]:
        settings = self.settings
        set_rate(self.optimizer, learning_rate(self.step, settings.steps, settings.rate))
        windows = [self.window() for _ in range(settings.batch)]
        data = {name: torch.stack([w[name] for w in windows]) for name in windows[0]}
        timestep = self._timesteps()
        bar = self.alphas_cumprod[timestep].float()[:, None, None, None, None]
        noisy = bar.sqrt() * data["clean"] + (1 - bar).sqrt() * data["noise"]
        mask = self.mask.expand(settings.batch, 1, settings.frames, *self.mask.shape)
        with torch.autocast("cpu", torch.bfloat16):
            made = self.unet(torch.cat((noisy, mask, data["masked"], data["reference"]), 1), timestep, data["audio"])
            told = self.head(self.middle.mean((2, 3))).unflatten(0, (settings.batch, -1)).squeeze(-1)
        made = made.float()
        losses = self.losses(made, data["clean"])
        losses["opening"] = F.mse_loss(told.float(), data["opening"])
        total = losses["clean"] + settings.motion_weight * losses["motion"]
        total = total + settings.opening_weight * losses["opening"]
        if self.judging:
            judged = self.judged((made - data["offset"]) / data["gain"], data["mouth"])
            losses |= judged
            total = total + settings.picture_weight * self._verdict(judged, made)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.unet)
        self.average_decoder.update(self.decoder)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _timesteps(self) -> Tensor:
        settings = self.settings
        shares = self.random.random(settings.batch) ** settings.noise_bias
        shares[self.random.random(settings.batch) < settings.noisiest] = 1
        return torch.from_numpy((999 * shares).astype(np.int64))

    @property
    def judging(self) -> bool:
        return self.step >= self.settings.judge_from * self.settings.steps

    def judged(self, made: Tensor, mouths: Tensor) -> dict[str, Tensor]:
        """Losses of some of the frames, decoded. made: (B, C, F, h, w); mouths: (B, F, 3, H, W) uint8.

        Around the lips only: elsewhere made is the reference, another moment, and the decoder shall show it as before.
        """
        picked = self.random.choice(made.shape[0] * made.shape[2], self.settings.decoded, replace=False)
        latents = made.transpose(1, 2).flatten(0, 1)[picked]
        rows, columns = mouth_box(self.settings.resolution)
        with torch.autocast("cpu", torch.bfloat16):
            pictures = self.vae.decode(latents)
            with torch.no_grad():
                before = self.first_vae.decode(latents)
        kept = ((pictures - before).float().abs() * (1 - self.seen)).mean()
        true = mouths.flatten(0, 1)[picked].float() / 127.5 - 1
        pictures = torch.lerp(true, pictures.float()[:, :, rows, columns], self.seen[rows, columns])
        layout = {"memory_format": torch.channels_last}
        pictures, true = pictures.contiguous(**layout), true.contiguous(**layout)
        return plain_losses(pictures, true) | self.sharpener.losses(pictures, true) | {"kept": kept}

    def _verdict(self, judged: dict[str, Tensor], made: Tensor) -> Tensor:
        """One number of the losses of pictures, the critic's balanced with the others' where they meet: in made."""
        settings = self.settings
        total = judged["l1"] + judged["edges"] + settings.texture_weight * judged["texture"]
        total = total + settings.feature_weight * judged["features"] + settings.kept_weight * judged["kept"]
        judged["pull"] = balance(total, judged, made)
        return total + settings.critic_weight * judged["pull"] * judged["fool"]

    def losses(self, made: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """Weighted errors of the latents, and of their swing about the window's mean.

        The second leaves the looks of the person out, whose errors would drown what the speech has to tell.
        """
        swing = (made - made.mean(2, keepdim=True), clean - clean.mean(2, keepdim=True))
        return {
            "clean": (F.mse_loss(made, clean, reduction="none") * self.weights).mean(),
            "motion": (F.mse_loss(*swing, reduction="none") * self.weights).mean(),
        }

    def save(self, path: Path) -> None:
        save_checkpoint(
            path,
            step=self.step,
            settings=asdict(self.settings),
            average=self.average.state,
            count=self.average.count,
            whitening=self.whitening,
            unet=self.unet.state_dict(),
            decoder=self.decoder.state_dict(),
            average_decoder=self.average_decoder.state,
            head=self.head.state_dict(),
            critic=self.sharpener.critic.state_dict(),
            critic_optimizer=self.sharpener.optimizer.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random=self.random.bit_generator.state,
            torch_random=torch.get_rng_state(),
        )

    def load(self, path: Path) -> None:
        parts = torch.load(path, weights_only=True)
        self.step = parts["step"]
        self.average.state, self.average.count = parts["average"], parts["count"]
        self.whitening = parts["whitening"]  # the weights belong to it, whatever the clips are now
        self.unet.load_state_dict(parts["unet"])
        self.decoder.load_state_dict(parts["decoder"])
        self.average_decoder.state, self.average_decoder.count = parts["average_decoder"], parts["count"]
        self.head.load_state_dict(parts["head"])
        self.sharpener.critic.load_state_dict(parts["critic"])
        self.sharpener.optimizer.load_state_dict(parts["critic_optimizer"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.random.bit_generator.state = parts["random"]
        torch.set_rng_state(parts["torch_random"])


def start_from(unet: UNet, state: Mapping[str, Tensor]) -> None:
    """Take weights over, also of a network for fewer latent channels: what meets new channels starts at zero."""
    own = unet.state_dict()
    given = dict(state)
    few, many = (tensors["conv_out.weight"].shape[0] for tensors in (given, own))
    inputs = torch.zeros_like(own["conv_in.weight"])
    for i, o, size in ((0, 0, few), (few, many, 1), (few + 1, many + 1, few), (2 * few + 1, 2 * many + 1, few)):
        inputs[:, o : o + size] = given["conv_in.weight"][:, i : i + size]
    given["conv_in.weight"] = inputs
    for key in ("conv_out.weight", "conv_out.bias"):
        wider = torch.zeros_like(own[key])
        wider[:few] = given[key]
        given[key] = wider
    unet.load_state_dict(given)


def train_unet(
    variants: Sequence[Sequence[LatentClip]],
    clips: Sequence[Clip],
    folder: Path,
    settings: UNetTraining,
    vae: VAE,
    *,
    init: Path | None = None,
    on_report: Callable[[str], None] | None = None,
) -> UNetTrainer:
    """Train, or go on from folder/unet.pt; a checkpoint every 5 reports. init: weights that a new run starts from.

    The decoder of vae learns too.
    """
    trainer = UNetTrainer(variants, clips, settings, vae)
    checkpoint, log = folder / "unet.pt", Log(folder / "unet.jsonl")
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif init:
        parts = torch.load(init, weights_only=True)
        start_from(trainer.unet, parts["unet"])
        trainer.whitening = parts["whitening"]
        trainer.average = MovingAverage(trainer.unet, trainer.average.decay)
        trainer.decoder.load_state_dict(parts["decoder"])
        trainer.average_decoder = MovingAverage(trainer.decoder)
        trainer.sharpener.critic.load_state_dict(parts["critic"])
    while trainer.step < settings.steps:
        log.add(**trainer.train_step())
        last = trainer.step == settings.steps
        if trainer.step % settings.report_every == 0 or last:
            line = log.write(trainer.step)
            if on_report:
                on_report(line)
        if trainer.step % (5 * settings.report_every) == 0 or last:
            trainer.save(checkpoint)
    return trainer
