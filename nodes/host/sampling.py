"""The engine's solvers inside ComfyUI's sampling, which brings guidance, patches, previews and cancelling."""

import math
from typing import Any

import comfy.model_management as memory
import comfy.samplers
import torch
from torch import Tensor

from ...latentsync.errors import UserError
from ...latentsync.sampling import alphas_cumprod, ddim, multistep, shared_noise
from ...latentsync.settings import Progress, ProgressCallback, Settings
from ...latentsync.weights.bundle import Models
from .finder import face_finder
from .models import LatentSyncVAE, WhisperAudioEncoder, model_of, settings_for
from .previews import Previews
from .progress import Stages


class EngineSampler(comfy.samplers.Sampler):
    """The engine's schedule and solver as a sampler of ComfyUI."""

    def __init__(self, settings: Settings, spacing: str = "leading") -> None:
        self.settings, self.spacing = settings, spacing

    def plan(self) -> Any:
        steps, solver = self.settings.steps, self.settings.solver
        return ddim(steps, "sample", self.spacing) if solver == "ddim" else multistep(solver, steps, "sample")

    def sigmas(self) -> Tensor:
        bars = alphas_cumprod()
        known = [math.sqrt((1 - bars[t]) / bars[t]) for t, _ in self.plan()]
        return torch.tensor([*known, 0.0], dtype=torch.float32)

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        latents, bars = noise, alphas_cumprod()
        for done, (t, update) in enumerate(self.plan()):
            if len(self.settings.guided) < self.settings.steps:  # mode "fast"; then it is a CFGGuider of ours
                model_wrap.set_cfg(self.settings.guidance if done in self.settings.guided else 1.0)
            # ComfyUI's models take signal + sigma · noise; the engine's latents keep their power instead
            clean = model_wrap(latents / bars[t].sqrt().float(), sigmas[done].expand(len(noise)), **extra_args)
            latents, clean = update(clean, latents)
            if callback:
                callback(done, clean, latents, self.settings.steps)
        return latents


def sample(
    patcher: Any, positive: Any, negative: Any, latent: dict[str, Any], settings: Settings, stages: Stages
) -> dict[str, Any]:
    """LATENT of a clip, window by window as the engine does it (the last one shifted back over its neighbour)."""
    model, settings = model_of(patcher), settings_for(patcher, settings)
    samples = latent["samples"]
    frames, *_ = [model.check(facts.get("latentsync"), samples, c) for c, facts in (*positive, *negative)]
    frames = frames.with_first_reference() if model.first_frame_reference else frames
    split = frames.windows()
    spread, rows = frames.spread(split)
    noise = shared_noise(settings.seed, *samples.shape[1:])[:, :, 0].expand(len(rows), *samples.shape[1:])
    sampler, previews = EngineSampler(settings, model.config.timestep_spacing), Previews(model.latent_format)

    def on_step(done: int, clean: Tensor, _: Tensor, total: int) -> None:
        stages.step("sampling", done + 1, total, previews.picture(clean))

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(
        *([[tokens[rows], {**facts, "latentsync": spread}] for tokens, facts in c] for c in (positive, negative))
    )
    guider.set_cfg(settings.guidance)
    empty = torch.zeros_like(noise)
    made = guider.sample(
        noise, empty, sampler, sampler.sigmas(), callback=on_step, disable_pbar=True, seed=settings.seed
    )
    out, first = torch.zeros_like(samples), 0
    for w in split:
        out[w.keep : w.stop] = made[first + w.keep - w.start : first + w.stop - w.start]
        first += w.stop - w.start
    return {**latent, "samples": out}


class OneNoise:
    """NOISE: one frame of it for all."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        samples = input_latent["samples"]
        return shared_noise(self.seed, *samples.shape[1:])[:, :, 0].repeat(len(samples), 1, 1, 1)


# The engine on ComfyUI's models: for the node that streams.


class _Window:
    """A MODEL as the engine calls it: one batch of windows. The model is brought to its device at every call, since
    the VAE may have pushed it out between."""

    def __init__(self, patcher: Any) -> None:
        self.patcher, self.model = patcher, model_of(patcher)
        self.config = self.model.config
        self.device = patcher.load_device
        self.dtype = self.model.manual_cast_dtype or self.model.get_dtype()

    def __call__(self, sample: Tensor, timestep: Tensor, audio: Tensor, deep: list[Tensor] | None = None) -> Tensor:
        needed = self.model.memory_required([sample.shape[0] * sample.shape[2], 1, *sample.shape[3:]])
        memory.load_models_gpu([self.patcher], memory_required=needed)
        return self.model.diffusion_model.window(sample, timestep, audio, deep)


class _Autoencoder:
    """A VAE as the engine calls it: pixels in [-1, 1], latents scaled."""

    def __init__(self, vae: Any, latents: Any) -> None:
        self.vae, self.latents = vae, latents
        self.channels, self.factor = vae.latent_channels, vae.downscale_ratio

    def encode(self, pixels: Tensor) -> Tensor:
        return self.latents.process_in(self.vae.encode((pixels.movedim(1, -1).float() + 1) / 2)).to(pixels)

    def decode(self, latents: Tensor, top: int = 0) -> Tensor:
        # ComfyUI's own VAEs decode all rows and know no such option
        options = {"top": top} if isinstance(self.vae, LatentSyncVAE) else {}
        return self.vae.decode(self.latents.process_out(latents.float()), options).movedim(-1, 1) * 2 - 1


class HostModels(Models):
    """The engine's bundle of networks, over ComfyUI's."""

    @property
    def device(self) -> torch.device:
        return self.unet.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype  # type: ignore[return-value]


def engine_models(patcher: Any, vae: Any, encoder: Any) -> HostModels:
    """The networks for the engine."""
    model = model_of(patcher)
    if vae.latent_channels != model.latent_format.latent_channels:
        raise UserError(
            f"The VAE has {vae.latent_channels} latent channels and the model takes"
            f" {model.latent_format.latent_channels}; connect the VAE that LatentSync: Load Model gives out."
        )
    if not isinstance(encoder, WhisperAudioEncoder):
        raise UserError("This AUDIO_ENCODER is not LatentSync's Whisper; connect that of LatentSync: Load Model.")
    unet: Any = _Window(patcher)
    autoencoder: Any = _Autoencoder(vae, model.latent_format)
    return HostModels(
        unet=unet,
        vae=autoencoder,
        whisper=encoder.ready(),
        finder=face_finder(),
        resolution=model.config.resolution,
        name=model.label,
        defaults=settings_for(patcher, Settings()),
    )


def engine_steps(stages: Stages, patcher: Any) -> ProgressCallback:
    """The engine's progress as the node's."""
    previews = Previews(model_of(patcher).latent_format)
    names = {"track": "finding faces", "sample": "sampling"}

    def report(step: Progress) -> None:
        picture = None if step.clean is None else previews.picture(step.clean[0].transpose(0, 1))
        stages.step(names.get(step.stage, step.stage), step.done, step.total, picture)

    return report
