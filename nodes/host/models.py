"""The engine's networks as ComfyUI's own kinds, so that its memory management, patches and samplers apply."""

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from ...latentsync.audio.load import to_mono_16k
from ...latentsync.audio.whisper_features import encode_audio
from ...latentsync.errors import UserError
from ...latentsync.files import parse_json
from ...latentsync.models.syncnet import StableSyncNet, SyncNet
from ...latentsync.models.tiny_vae import TinyVAE
from ...latentsync.models.unet_config import UNetConfig
from ...latentsync.models.vae import VAE
from ...latentsync.models.whisper import WhisperEncoder
from ...latentsync.settings import WINDOW, Settings
from ...latentsync.weights.bundle import companions
from ...latentsync.weights.download import download as get_file
from ...latentsync.weights.identify import FileInfo, check_is_unet, identify
from ...latentsync.weights.load import DTYPES, load_unet
from ...latentsync.weights.lora import Lora
from ...latentsync.weights.registry import ENTRIES, check_present, with_required
from ...latentsync.weights.syncnet_files import load_syncnet
from ...latentsync.weights.vae_files import load_vae
from ...latentsync.weights.whisper_files import load_whisper
from ..images import speech_of
from ..windows import Branches, FrameConditions, FrameUNet
from .files import MODEL_FOLDER, find_file, search_folders
from .loras import chosen_lora, lora_time
from .progress import Stages

NO_SYNCNET = "none"
SD_WIDTH = 320
"""Channels of Stable Diffusion's first level, for which ComfyUI's estimate of memory holds."""


class _Config(comfy.supported_models_base.BASE):
    """What BaseModel asks of a model; the noise schedule is ComfyUI's default, which is Stable Diffusion's."""

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    memory_usage_factor = 1.5
    """Of Stable Diffusion's estimate: attention along time comes on top (by size of the tensors; not measured)."""


class _CleanSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
    """For networks that predict the clean latents; ComfyUI has no model type for these."""


class _PerFrame(comfy.conds.CONDRegular):
    """A tensor (F, …) of a whole clip, which stays in main memory: the network takes it to the GPU window by window."""

    def process_cond(self, batch_size: int, **_: Any) -> "_PerFrame":
        return self

    def concat(self, others: Any) -> Branches:
        return Branches([self.cond, *(other.cond for other in others)])


class LatentSyncModel(comfy.model_base.BaseModel):
    """The U-Net with its conditions per frame: batch rows are the frames of one clip."""

    def __init__(
        self, path: Path, info: FileInfo, dtype: torch.dtype | None, latents: Any, factor: int, lora: Lora | None = None
    ) -> None:
        self.info, self.factor = info, factor
        self.label = " + ".join([info.version or info.path.stem, *([] if lora is None else [lora.label])])
        change = None if lora is None else lora.merged
        device = memory.get_torch_device()
        known = {"device": device, "model_params": info.parameters}
        stored = dtype or memory.unet_dtype(**known, supported_dtypes=list(DTYPES.values()))
        config = _Config({"dtype": stored})
        config.latent_format = latents
        config.manual_cast_dtype = memory.unet_manual_cast(stored, device)
        types = comfy.model_base.ModelType
        kind = types.V_PREDICTION if info.prediction_type == "v_prediction" else types.EPS

        def unet(dtype: torch.dtype, operations: Any, **_: Any) -> FrameUNet:
            def build(sizes: Any) -> FrameUNet:
                return FrameUNet(sizes, operations, memory.throw_exception_if_processing_interrupted)

            known: Any = load_unet(path, dtype=dtype, resolution=info.resolution, build=build, change=change)
            return known

        super().__init__(config, kind, memory.unet_offload_device(), unet)
        self.memory_usage_factor *= self.diffusion_model.config.widths[0] / SD_WIDTH
        if info.prediction_type == "sample":
            self.model_sampling = _CleanSampling(config)

    @property
    def config(self) -> UNetConfig:
        return self.diffusion_model.config

    @property
    def first_frame_reference(self) -> bool:
        """Whether one reference frame serves a whole segment."""
        return self.config.reference_mode == "first_frame"

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        frames = self.check(kwargs.get("latentsync"), kwargs["noise"], kwargs.get("cross_attn"))
        frames = frames.with_first_reference() if self.first_frame_reference else frames
        return {
            "conditions": _PerFrame(frames.channels(self.process_latent_in).cpu()),
            "tokens": _PerFrame(kwargs["cross_attn"].cpu()),
            "segment": comfy.conds.CONDRegular(frames.segment),
        }

    def check(self, frames: FrameConditions | None, noise: Tensor, tokens: Tensor | None) -> FrameConditions:
        """UserError unless these conditions and latents are of one clip and made for this model."""
        if frames is None or tokens is None:
            raise UserError("This CONDITIONING was not made for LatentSync; connect that of LatentSync: Condition.")
        channels, side = self.latent_format.latent_channels, self.config.resolution // self.factor
        if frames.masked.shape[1] != channels:
            raise UserError(
                f"The VAE gave latents with {frames.masked.shape[1]} channels and the model takes {channels};"
                " connect the VAE that LatentSync: Load Model gives out with the MODEL."
            )
        if frames.masked.shape[-1] != side:
            raise UserError(
                f"The crops are {frames.resolution} px wide and the model takes {self.config.resolution} px;"
                " connect the MODEL to LatentSync: Find Faces, so that it cuts them at the right size."
            )
        if noise.shape != frames.masked.shape:
            raise UserError(
                f"The LATENT is {tuple(noise.shape)} and the CONDITIONING is for {tuple(frames.masked.shape)};"
                " connect both from the same LatentSync: Condition."
            )
        if tokens.shape[-1] != self.config.audio_dim:
            raise UserError(
                f"The speech comes with {tokens.shape[-1]} numbers per token and the model takes"
                f" {self.config.audio_dim}; connect the AUDIO_ENCODER that Load Model gives out."
            )
        return frames

    def memory_required(self, input_shape: list[int], cond_shapes: Any = None) -> float:
        # however long the clip is, one window is computed at a time, with and without audio
        at_once = [min(input_shape[0], 2 * WINDOW), *input_shape[1:]]
        return super().memory_required(at_once)


def _rows(text: str, count: int) -> list[list[float]]:
    """That many rows of three numbers; none where the text has not these."""
    try:
        rows = [[float(number) for number in row] for row in parse_json(text)]
    except (ValueError, TypeError):
        return []
    return rows if len(rows) == count and all(len(row) == 3 for row in rows) else []


class _Latents(comfy.latent_formats.LatentFormat):
    """Scale, shift and preview colors of a VAE of ours."""

    def __init__(self, vae: VAE, metadata: Any) -> None:
        self.latent_channels = vae.channels
        self.scale_factor, self.shift = vae.stored
        rows = _rows(metadata.get("latent_rgb", "[]"), vae.channels + 1)
        if rows:
            self.latent_rgb_factors, self.latent_rgb_factors_bias = rows[:-1], rows[-1]

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.shift) * self.scale_factor

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor + self.shift


class _Stage(nn.Module):
    """A VAE of the engine behind the signature of ComfyUI's: latents are not scaled here.

    A tiny VAE's are those of Stable Diffusion's VAE as well, not the scaled ones of its network: so a MODEL that was
    trained with it, ComfyUI's VAE and ComfyUI's TAESD can be mixed.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def encode(self, pixels: Tensor, **_: Any) -> Tensor:
        scaling, shift = self.vae.stored
        return self.vae.encode(pixels) / scaling + shift

    def decode(self, samples: Tensor, top: int = 0, **_: Any) -> Tensor:
        scaling, shift = self.vae.stored
        return self.vae.decode((samples - shift) * scaling, top)


class LatentSyncVAE(comfy.sd.VAE):
    """A VAE that ComfyUI's own loader does not know (other widths, channels, norm groups)."""

    def __init__(self, vae: VAE) -> None:
        # ComfyUI's simplest kind sets up everything but what follows, whatever its version adds
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
        self.first_stage_model = _Stage(vae)
        self.latent_channels = vae.channels
        self.downscale_ratio = self.upscale_ratio = vae.factor
        self.process_input = lambda image: image * 2.0 - 1.0
        # in place: ComfyUI 0.18 and newer ignore what this returns, older ones use it
        self.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
        width = vae.model.config.block_out_channels[0]
        # feature maps at full size, four at once, of four bytes; twice that for what goes on around them
        self.memory_used_encode = lambda shape, dtype: 32 * width * shape[2] * shape[3]
        self.memory_used_decode = lambda shape, dtype: 32 * width * shape[2] * shape[3] * vae.factor**2
        self.disable_offload = True
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=memory.vae_offload_device()
        )


class WhisperAudioEncoder:
    """Whisper's encoder as an AUDIO_ENCODER. All layers are given out, before the final norm, 50 rows a second."""

    model_sample_rate = 16_000

    def __init__(self, whisper: WhisperEncoder) -> None:
        self.model = whisper
        self.load_device = memory.text_encoder_device()
        # in a module of its own, since ComfyUI writes attributes (device, …) to what it manages
        self.patcher = comfy.model_patcher.ModelPatcher(
            nn.Sequential(whisper), load_device=self.load_device, offload_device=memory.text_encoder_offload_device()
        )

    def ready(self) -> WhisperEncoder:
        """The network on its device; its layers cannot be cast one by one."""
        memory.load_models_gpu([self.patcher], force_full_load=True)
        return self.model

    def encode_audio(self, audio: Tensor, sample_rate: int) -> dict[str, Any]:
        """(1, channels, samples) → encoded_audio (1, T, D), encoded_audio_all_layers (of these), audio_samples."""
        waveform, rate = speech_of({"waveform": audio, "sample_rate": sample_rate})
        sound = to_mono_16k(waveform, rate)
        layers = encode_audio(sound, self.model_sample_rate, self.ready()).transpose(0, 1)[:, None]
        return {
            "encoded_audio": layers[-1],
            "encoded_audio_all_layers": list(layers),
            "audio_samples": len(sound),
        }


def checkpoints() -> list[str]:
    """What the loader offers: the known names, then every file of our folder."""
    return _offered("nano", "unet")


def syncnets() -> list[str]:
    """What the score offers: none, the known judges of lip sync, then every file of our folder."""
    return [NO_SYNCNET, *_offered("syncnet")]


def _offered(*kinds: str) -> list[str]:
    """The known names of these kinds, then the files of our folder, but for known files of other kinds."""
    others = {form.file for entry in ENTRIES if entry.kind not in kinds for form in entry.files}
    names = [entry.name for entry in ENTRIES if entry.kind in kinds]
    return [*names, *(name for name in folder_paths.get_filename_list(MODEL_FOLDER) if name not in others)]


@contextmanager
def syncnet(name: str) -> Iterator[SyncNet | None]:
    """A judge that `syncnets` offers, on its device for as long as it is needed."""
    if name == NO_SYNCNET:
        yield None
        return
    net = load_syncnet(checkpoint_path(name))
    if isinstance(net, StableSyncNet) and net.config.space == "latent":
        raise UserError(f"{name} judges VAE latents; choose a SyncNet that sees pixels.")
    patcher = comfy.model_patcher.ModelPatcher(
        nn.Sequential(net), load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device()
    )
    memory.load_models_gpu([patcher], force_full_load=True)
    yield net


def checkpoint_path(name: str) -> Path:
    """The file of a name that `checkpoints` or `syncnets` offers."""
    if name in {entry.name for entry in ENTRIES}:
        return find_file(name)
    path = folder_paths.get_full_path(MODEL_FOLDER, name)
    if path is None:
        raise UserError(f"There is no {name} in models/{MODEL_FOLDER}; choose another file from the list.")
    return Path(path)


def mtime(name: str) -> float:
    """When the file of a checkpoint was last changed; 0 when it is not there, which is not said here."""
    try:
        return checkpoint_path(name).stat().st_mtime
    except (UserError, OSError):
        return 0.0


def downloads() -> list[str]:
    """Names that can be downloaded."""
    return [entry.name for entry in ENTRIES if not entry.built_in]


def download_sizes() -> str:
    return ", ".join(f"{entry.name} {entry.size}" for entry in ENTRIES if not entry.built_in)


def download(name: str, stages: Stages) -> str:
    """Get a file and what it requires into our folder; the path of the file.

    Only from its address: packages are never fetched while ComfyUI runs.
    """
    folder = folder_paths.get_folder_paths(MODEL_FOLDER)[0]

    def get_one(one: str) -> str:
        def on_progress(done: int, total: int | None) -> None:
            stages.step(f"downloading {one} (MB)", done // 10**6, max(total or done, 1) // 10**6 or 1)

        return str(get_file(one, folder, on_progress=on_progress, allow_wheels=False))

    first, *_ = [get_one(entry.name) for entry in with_required([name])]
    return first


COMPANIONS = "latentsync"
"""Under this name a MODEL holds the VAE and the AUDIO_ENCODER that were loaded with it, so that they last as long."""
_loaded: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()


def load(
    name: str, resolution: int | None, dtype: torch.dtype | None, lora: str | None = None, strength: float = 1.0
) -> tuple[Any, Any, WhisperAudioEncoder]:
    """MODEL, VAE and AUDIO_ENCODER of one checkpoint; resolution and dtype None: what the file and the card say.
    lora: a file that is added to U-Net and VAE as the engine does it.

    What is loaded already is given out again for as long as anybody holds the MODEL.
    """
    path = checkpoint_path(name)
    changed = path.stat().st_mtime_ns, lora_time(lora)
    key = path, *changed, resolution, dtype, lora, strength
    patcher = _loaded.get(key)
    if patcher is None:
        patcher = _loaded[key] = _load(name, path, resolution, dtype, chosen_lora(lora, strength))
    return patcher, *patcher.attachments[COMPANIONS]


def _load(name: str, path: Path, resolution: int | None, dtype: torch.dtype | None, lora: Lora | None) -> Any:
    info = identify(path)
    check_is_unet(info)
    if lora is not None:
        lora.check(info)
    if resolution or not info.resolution:
        info = dataclasses.replace(info, resolution=resolution)
    if not info.resolution:
        raise UserError(
            f"{name} does not state its resolution; set the input resolution to 256 (LatentSync 1.5) or 512 (1.6)."
        )
    own_vae, own_whisper = companions(info)
    check_present([name for name in (own_vae, own_whisper) if isinstance(name, str)], search_folders())
    vae, latents = _load_vae(own_vae, info, lora)
    whisper = load_whisper(find_file(own_whisper))
    model = LatentSyncModel(path, info, dtype, latents, vae.downscale_ratio, lora)
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device()
    )
    patcher.set_attachments(COMPANIONS, (vae, WhisperAudioEncoder(whisper)))
    return patcher


def _load_vae(name: str | Path, info: FileInfo, lora: Lora | None) -> tuple[Any, Any]:
    """The VAE and its latent format. name: of what belongs to the checkpoint."""
    if info.kind != "nano":
        path = find_file(str(name))
        if lora is not None and lora.changes_vae:  # by the names of diffusers, which ComfyUI reads too
            state = lora.merged_vae(load_vae(path).model.state_dict())
        else:
            state = comfy.utils.load_torch_file(str(path))
        return comfy.sd.VAE(sd=state), comfy.latent_formats.SD15()
    own = load_vae(name)
    if lora is not None:
        own.model.load_state_dict(lora.merged_vae(own.model.state_dict()))
    # a tiny VAE shares its latents with Stable Diffusion's, and so their previews
    latents = comfy.latent_formats.SD15() if isinstance(own, TinyVAE) else _Latents(own, info.metadata)
    return LatentSyncVAE(own), latents


def model_of(patcher: Any) -> LatentSyncModel:
    """The model inside a MODEL; UserError unless it is one of ours."""
    model = getattr(patcher, "model", None)
    if not isinstance(model, LatentSyncModel):
        kind = type(model).__name__
        raise UserError(f"This MODEL is a {kind}, not a LatentSync model; connect that of LatentSync: Load Model.")
    return model


def settings_for(patcher: Any, settings: Settings) -> Settings:
    """With the checkpoint's own steps and guidance where these are 0."""
    config = model_of(patcher).config
    return settings.resolved(Settings(steps=config.default_steps, guidance=config.default_guidance))


def resolution_of(patcher: Any) -> int:
    """Side of the crops that a MODEL takes, in pixels."""
    return model_of(patcher).config.resolution
