"""Noise, schedule, guidance and the solver loop, as functions over a U-Net."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .models.libraries import hide_broken_torchvision
from .models.unet_config import UNetConfig
from .settings import GUIDANCE, STEPS, WINDOW, Settings
from .timeline import windows

TRAIN_STEPS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012
"""Ends of Stable Diffusion 1.x's "scaled linear" noise schedule, with which LatentSync was trained."""

SolverCallback = Callable[[int, int, Tensor], None]
"""on_step(steps done, steps in all, estimate of the clean latents); may raise to cancel."""


Denoiser = Callable[..., Tensor]
"""unet(sample, timestep, audio[, deep]). What it predicts is its config.prediction_type; without one, the noise."""


def alphas_cumprod() -> Tensor:
    """(1000,) float64: how much signal power is left at each training step; betas are linear in their square root."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def timesteps(steps: int, spacing: str = "leading") -> list[int]:
    """Descending. "leading", with offset 1: 20 steps give 951, 901, …, 1; "trailing": 999, 949, …, 49.

    Few steps want the latter (Lin et al. 2024): with two, the former starts at 501 although it is given pure noise.
    A single step always starts at the noisiest; by the first rule it would be 1, where noise passes for the picture.
    """
    if steps == 1 or spacing == "trailing":
        return [round(TRAIN_STEPS * (1 - i / steps)) - 1 for i in range(steps)]
    ratio = TRAIN_STEPS // steps
    return [min(i * ratio + 1, TRAIN_STEPS - 1) for i in reversed(range(steps))]


def shared_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """(1, C, 1, h, w) float32 from a CPU generator: one frame of noise, which every frame of the clip shares."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, channels, 1, height, width), generator=generator)


def predict_x0(output: Tensor, noisy: Tensor, alpha_bar: float, prediction: str) -> Tensor:
    """The network's output as an estimate of the clean latents (Salimans & Ho 2022 for "v_prediction")."""
    signal, spread = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if prediction == "epsilon":
        return (noisy - spread * output) / signal
    if prediction == "sample":
        return output
    if prediction == "v_prediction":
        return signal * noisy - spread * output
    raise UserError(f"The checkpoint predicts {prediction!r}; known are epsilon, sample and v_prediction.")


class DeepFeatures:
    """What the deep layers gave, for each call of a step, kept for the interval - 1 steps after it. 1: never kept."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._kept: list[list[Tensor]] = []
        self._call = 0

    def begin(self, step: int) -> None:
        """step: from 0. Every step must make the same calls in the same order."""
        self._call = 0
        if step % self.interval == 0:
            self._kept = []

    def next(self) -> list[Tensor]:
        """For UNet's `deep`, at its next call."""
        if self._call == len(self._kept):
            self._kept.append([])
        self._call += 1
        return self._kept[self._call - 1]


def cfg_denoise(
    unet: Denoiser,
    inputs: Tensor,
    timestep: int,
    audio: Tensor,
    guidance: float,
    *,
    together: bool = True,
    deep: DeepFeatures | None = None,
) -> Tensor:
    """One evaluation with classifier-free guidance; without audio means all-zero tokens. guidance 1 costs half.
    together: with and without in one batch, else one after the other, which takes half the memory."""
    if guidance == 1:
        return run_unet(unet, inputs, timestep, audio, deep)
    if not together:
        without = run_unet(unet, inputs, timestep, torch.zeros_like(audio), deep)
        return without + guidance * (run_unet(unet, inputs, timestep, audio, deep) - without)
    tokens = torch.cat((torch.zeros_like(audio), audio))
    without, with_audio = run_unet(unet, torch.cat((inputs, inputs)), timestep, tokens, deep).chunk(2)
    return without + guidance * (with_audio - without)


def run_unet(
    unet: Denoiser, inputs: Tensor, timestep: int | Tensor, audio: Tensor, deep: DeepFeatures | None = None
) -> Tensor:
    """unet on a batch of windows. On a CPU one by one: batches are not faster there and would change the rounding."""
    step = torch.as_tensor(timestep, device=inputs.device)
    kept = deep is not None and deep.interval > 1

    def run(x: Tensor, a: Tensor) -> Tensor:
        return unet(x, step, a, deep.next()) if kept and deep is not None else unet(x, step, a)

    if inputs.device.type != "cpu":
        return run(inputs, audio)
    return torch.cat([run(x, a) for x, a in zip(inputs.split(1), audio.split(1), strict=True)])


def ddim(
    steps: int, prediction: str, spacing: str = "leading"
) -> Iterator[tuple[int, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]]:
    """Yield (timestep, update); update(output, noisy) → (less noisy, clean). Song et al. 2021, eta 0."""
    bars, ratio, plan = alphas_cumprod().tolist(), TRAIN_STEPS // steps, timesteps(steps, spacing)
    later = [bars[max(t - ratio, 0)] for t in plan] if spacing == "leading" else [*(bars[t] for t in plan[1:]), 1.0]
    for t, before in zip(plan, later, strict=True):
        bar = bars[t]

        def update(output: Tensor, noisy: Tensor, bar: float = bar, before: float = before) -> tuple[Tensor, Tensor]:
            clean = predict_x0(output, noisy, bar, prediction)
            noise = (noisy - bar**0.5 * clean) / (1 - bar) ** 0.5
            return before**0.5 * clean + (1 - before) ** 0.5 * noise, clean

        yield t, update


def multistep(
    solver: str, steps: int, prediction: str
) -> Iterator[tuple[int, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]]:
    """The same protocol over diffusers' multistep solvers."""
    hide_broken_torchvision()
    from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    classes = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler, "deis": DEISMultistepScheduler}
    scheduler: Any = classes[solver](
        num_train_timesteps=TRAIN_STEPS,
        beta_start=BETA_FIRST,
        beta_end=BETA_LAST,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",  # the default one repeats a time step when there are 1000, and divides by zero
        prediction_type=prediction,
    )
    scheduler.set_timesteps(steps)
    bars = alphas_cumprod().tolist()
    for t in scheduler.timesteps.tolist():

        def update(output: Tensor, noisy: Tensor, t: int = t) -> tuple[Tensor, Tensor]:
            return scheduler.step(output, t, noisy).prev_sample, predict_x0(output, noisy, bars[t], prediction)

        yield t, update


def denoise_window(
    unet: Denoiser,
    noise: Tensor,
    conditions: Tensor,
    audio: Tensor,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    solver: str = Settings.solver,
    mode: str = Settings.mode,
    reuse: int = Settings.reuse,
    together: bool = True,
    on_step: SolverCallback | None = None,
) -> Tensor:
    """Denoise windows together. noise (B, C, F, h, w); conditions (B, 2C + 1, F, h, w) = mask, masked, reference.

    The network computes in the conditions' format; the latents keep that of the noise, which should be fp32: in bf16
    the rounding of every step would add up. mode: see Settings.guided. together: see cfg_denoise.
    """
    settings = Settings(steps=steps, guidance=guidance, solver=solver, mode=mode, reuse=reuse)  # or one sentence
    if steps < 1:
        raise UserError("steps is 0; it must be at least 1 here, where no checkpoint says how many.")
    config: Any = getattr(unet, "config", UNetConfig())
    prediction = config.prediction_type
    plan = (
        ddim(steps, prediction, config.timestep_spacing) if solver == "ddim" else multistep(solver, steps, prediction)
    )
    latents, deep = noise, DeepFeatures(reuse)
    for done, (t, update) in enumerate(plan, 1):
        deep.begin(done - 1)
        strength = guidance if done - 1 in settings.guided else 1
        inputs = torch.cat((latents.to(conditions), conditions), 1)
        output = cfg_denoise(unet, inputs, t, audio, strength, together=together, deep=deep)
        latents, clean = update(output.to(latents), latents)
        if on_step:
            on_step(done, steps, clean)
    return latents


@torch.inference_mode()
def denoise(
    unet: Denoiser,
    noise: Tensor,
    mask: Tensor,
    masked: Tensor,
    reference: Tensor,
    audio: Tensor,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    solver: str = Settings.solver,
    on_step: SolverCallback | None = None,
) -> Tensor:
    """Latents of F frames → (1, C, F, h, w); clips longer than 16 frames go window by window.

    noise, masked, reference: (1, C, F, h, w), scaled latents. mask: (1, 1, F, h, w), 1 = keep. audio: (1, F, 50, D).
    solver: one of settings.SOLVERS. on_step counts the steps of all windows.
    """
    frames = noise.shape[2]
    if audio.shape[1] != frames:
        raise UserError(f"There are {frames} frames of noise and {audio.shape[1]} of audio; they must be as many.")
    conditions = torch.cat((mask, masked, reference), 1)
    plan = windows(0, frames, WINDOW)
    out = torch.empty_like(noise)
    for number, window in enumerate(plan):
        span = slice(window.start, window.stop)
        made = denoise_window(
            unet,
            noise[:, :, span],
            conditions[:, :, span],
            audio[:, span],
            steps=steps,
            guidance=guidance,
            solver=solver,
            on_step=on_step and partial(_shifted, on_step, number * steps, len(plan) * steps),
        )
        out[:, :, window.keep : window.stop] = made[:, :, window.keep - window.start :]
    return out


def _shifted(on_step: SolverCallback, before: int, total: int, done: int, _: int, clean: Tensor) -> None:
    on_step(before + done, total, clean)
