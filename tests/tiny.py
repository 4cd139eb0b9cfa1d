"""A real LatentSync small enough for tests: random weights in our own file format, and the models made from it."""

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn

from latentsync.errors import UserError
from latentsync.face.detect import FaceFinder
from latentsync.models.unet import UNet
from latentsync.models.unet_config import UNetConfig
from latentsync.models.whisper import WhisperEncoder
from latentsync.training.unet.lora import add_lora, lora_state
from latentsync.weights.bundle import Models
from latentsync.weights.convert import save_model
from latentsync.weights.files import write_safetensors
from latentsync.weights.load import load_unet
from latentsync.weights.registry import find
from latentsync.weights.vae_files import load_vae
from latentsync.weights.whisper_files import load_whisper

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
RATE = 16_000


def tiny_config(*, latent_channels: int = 4, audio_dim: int = 384, motion: str = "all") -> UNetConfig:
    return UNetConfig((32, 32), 1, (True, True), audio_dim, latent_channels, motion)  # type: ignore[arg-type]


def lively(module: nn.Module, seed: int, spread: float = 0.5) -> nn.Module:
    """Random biases and norms too: those of a new network are zeros and ones, which hide mix-ups."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2:
            parameter.data = noise * 0.1 + parameter.data.round()
        else:
            parameter.data = noise * spread / parameter[0].numel() ** 0.5
    return module


def tiny_vae(width: int = 8, seed: int = 1) -> AutoencoderTiny:
    """TAESD's layers, narrow and with random weights; its pictures keep to the colors between black and white."""
    widths = {f"{half}_block_out_channels": (width,) * 4 for half in ("encoder", "decoder")}
    model = AutoencoderTiny(**widths)  # type: ignore[arg-type]
    lively(model, seed, spread=1.0)
    last = model.decoder.layers[-1]
    last.weight.data *= 0.1
    last.bias.data += 0.5
    return model.eval().requires_grad_(False)


def taesd_files(folder: Path, model: AutoencoderTiny, suffix: str = ".safetensors") -> Path:
    """The same as TAESD's original two files: bare numbers, one more in the decoder for the clamp before all."""
    folder.mkdir(exist_ok=True)
    for half, first in (("encoder", 0), ("decoder", 1)):
        state = {}
        for key, tensor in getattr(model, half).layers.state_dict().items():
            number, _, rest = key.partition(".")
            state[f"{int(number) + first}.{rest}"] = tensor
        write = save_file if suffix == ".safetensors" else torch.save
        write(state, folder / f"taesd_{half}{suffix}")
    return folder


def tiny_checkpoint(
    path: Path,
    *,
    resolution: int = 64,
    motion: str = "all",
    latent_channels: int = 4,
    audio_dim: int = 384,
    prediction_type: str = "sample",
    reference_mode: str | None = None,
    taesd: bool = False,
    seed: int = 0,
) -> Path:
    """U-Net and VAE with random weights as one file, laid out and labelled like "nano". taesd: with a tiny VAE."""
    config = tiny_config(latent_channels=latent_channels, audio_dim=audio_dim, motion=motion)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 16, 32),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    return save_model(
        path,
        lively(UNet(config), seed).state_dict(),
        vae_state=tiny_vae(seed=seed + 1).state_dict() if taesd else lively(vae, seed + 1, spread=1.0).state_dict(),
        metadata={
            "version": "nano",
            "resolution": resolution,
            "prediction_type": prediction_type,
            "reference_mode": reference_mode,
            "vae_groups": None if taesd else 8,
            "vae_scaling": 1.0 if taesd else 0.5,
        },
    )


def person_lora(path: Path, checkpoint: str | Path, *, rank: int = 2, seed: int = 5, **metadata: str) -> Path:
    """Laid out as a model of one person is: on linear layers and convolutions, with a change of the VAE's decoder."""
    unet = load_unet(checkpoint)
    add_lora(unet, rank, everywhere=True, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = lora_state(unet)
    for name, tensor in tensors.items():
        if ".lora_" in name:
            tensors[name] = torch.randn(tensor.shape, generator=generator) * (0.3 / tensor[0].numel()) ** 0.5
    for name, tensor in load_vae(checkpoint).model.decoder.state_dict().items():
        change = torch.randn(tensor.shape, generator=generator) * 0.1 * tensor.abs().mean()
        tensors[f"vae.decoder.{name}.diff"] = change
    return write_safetensors(path, tensors, {"format": "latentsync", "kind": "lora", "person": "me", **metadata})


def find_model(name: str) -> Path | None:
    """A known file, found as the product finds it (LATENTSYNC_MODELS), else beside the repository."""
    try:
        return find(name)
    except UserError:
        pass
    try:
        return find(name, [SHARED])
    except UserError:
        return None


def tiny_whisper(dim: int = 384, layers: int = 4, seed: int = 2) -> WhisperEncoder:
    """An encoder of Whisper tiny's shape whose random weights still let the sound through."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Encoder

    config = WhisperConfig(
        d_model=dim,
        encoder_layers=layers,
        encoder_attention_heads=dim // 64,
        encoder_ffn_dim=dim,
        num_mel_bins=80,
    )
    return WhisperEncoder(lively(Encoder(config), seed).state_dict()).eval().requires_grad_(False)


def whisper_file(path: Path) -> Path:
    """tiny_whisper() with one layer, in Whisper's own layout; its name decides what it is found as."""
    state = {f"encoder.{key}": value for key, value in tiny_whisper(layers=1).encoder.state_dict().items()}
    norm = {"encoder.layer_norm.weight": torch.ones(384), "encoder.layer_norm.bias": torch.zeros(384)}
    save_file(state | norm, path)
    return path


def any_whisper() -> WhisperEncoder:
    """Whisper tiny.en where it is at hand, else random weights of its shape."""
    path = find_model("tiny.en")
    return load_whisper(path) if path else tiny_whisper()


def face_model() -> Path:
    """MediaPipe's model file; the test is skipped, saying so, where it is absent."""
    path = find_model("face_landmarker.task")
    if path is None:
        pytest.skip("face_landmarker.task is neither in LATENTSYNC_MODELS nor beside the repository")
    return path


def link(at: Path, to: Path) -> None:
    """What lies at `to` lies at `at` too: as a link, or copied where a user may make none (Windows)."""
    try:
        at.symlink_to(to)
    except OSError:
        shutil.copyfile(to, at)


def tiny_models(folder: Path, *, whisper: WhisperEncoder | None = None, **checkpoint: object) -> Models:
    """Everything that lipsync needs, from a tiny checkpoint written into folder."""
    path = tiny_checkpoint(folder / "tiny.safetensors", **checkpoint)  # type: ignore[arg-type]
    unet = load_unet(path)
    finder = FaceFinder(face_model())
    return Models(unet, load_vae(path), whisper or any_whisper(), finder, unet.config.resolution, "nano")


def speech(seconds: float, rate: int = RATE, seed: int = 3) -> Tensor:
    """Noise whose loudness comes and goes four times a second, like syllables: (T,) float32."""
    t = torch.arange(round(seconds * rate)) / rate
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(seed))
    return 0.3 * noise * (torch.sin(2 * torch.pi * 2 * t) ** 2)


def pan(frames: int, width: int = 128, height: int = 112, *, scale: float | None = None) -> np.ndarray:
    """A face that sways a little: a real portrait (scikit-image's astronaut), (frames, height, width, 3) uint8.

    scale: of the 512-pixel portrait; None fills the picture with head and shoulders.
    """
    import cv2

    data = pytest.importorskip("skimage.data", reason="scikit-image brings the portrait")
    scale = scale or 0.5 * min(width / 128, height / 112)
    side = max(width + 7, height + 2, round(512 * scale))
    picture = cv2.resize(data.astronaut(), (side, side), interpolation=cv2.INTER_AREA)
    room = side - width
    shifts = min(room - 3, 100 * scale) + 3 * np.sin(np.arange(frames) / 3)
    return np.stack([picture[2 : 2 + height, x : x + width] for x in shifts.round().astype(int).clip(0, room)])


def write_speech(path: Path, seconds: float, rate: int = RATE) -> Path:
    """A .wav of speech()."""
    import wave

    samples = (speech(seconds, rate).clamp(-1, 1) * 32767).to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.numpy().tobytes())
    return path


def write_clip(
    path: Path,
    frames: np.ndarray | None,
    fps: Fraction,
    *,
    audio: Path | None = None,
    late: Fraction = Fraction(0),
    aspect: Fraction = Fraction(1),
) -> Path:
    """A nearly lossless video of these frames, its sound beginning late seconds after them. None: sound only."""
    with av.open(str(path), "w") as out:
        picture = None
        if frames is not None:
            picture: Any = out.add_stream("libx264", rate=fps)
            picture.width, picture.height, picture.pix_fmt = frames.shape[2], frames.shape[1], "yuv444p"
            picture.codec_context.time_base = 1 / fps
            picture.codec_context.sample_aspect_ratio = aspect
            picture.options = {"crf": "8", "preset": "ultrafast"}
        codec = "pcm_s16le" if path.suffix == ".mkv" else "aac"
        sound: Any = out.add_stream(codec, rate=RATE, layout="mono") if audio else None
        for i, frame in enumerate(frames if frames is not None else ()):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            image.pts, image.time_base = i, 1 / fps
            out.mux(picture.encode(image))
        if picture:
            out.mux(picture.encode(None))
        if audio:
            _copy_sound(audio, out, sound, late)
    return path


def _copy_sound(path: Path, out: Any, stream: Any, late: Fraction) -> None:
    with av.open(str(path)) as source:
        resampler = av.AudioResampler(
            stream.codec_context.format.name, "mono", RATE, stream.codec_context.frame_size or 1024
        )
        at = round(late * RATE)
        for frame in [*source.decode(audio=0), None]:
            for block in resampler.resample(frame):
                block.pts, block.time_base = at, Fraction(1, RATE)
                at += block.samples
                out.mux(stream.encode(block))
    out.mux(stream.encode(None))
