"""Schedule, solvers, guidance, windows and noise: goldens, closed forms and counts."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from latentsync import sampling
from latentsync.errors import UserError
from latentsync.models.unet import UNet
from latentsync.models.unet_config import UNetConfig
from latentsync.sampling import (
    TRAIN_STEPS,
    alphas_cumprod,
    cfg_denoise,
    denoise,
    denoise_window,
    predict_x0,
    shared_noise,
    timesteps,
)
from latentsync.settings import SOLVERS, WINDOW
from latentsync.timeline import windows
from latentsync.weights.identify import PREDICTIONS
from latentsync.weights.load import load_unet

from ..tiny import lively, tiny_config

LOOPS = [(5, 1.0), (10, 2.5), (20, 1.5)]


def golden_loop(folder, steps, guidance):
    """Relative error (norms) of a whole loop; the goldens' audio is [nothing, a speech]."""
    unet = load_unet(folder / "latentsync_unet.pt", resolution=256)
    data = load_file(folder / "io.safetensors")
    names = ("noise", "mask", "masked_latents", "ref_latents")
    made = denoise(unet, *(data[n] for n in names), data["audio"][1:], steps=steps, guidance=guidance)
    wanted = data[f"ddim_{steps}_cfg{guidance}"]
    return (made - wanted).norm() / wanted.norm()


@pytest.mark.parametrize(("steps", "guidance"), LOOPS)
@pytest.mark.parametrize("case", ["unet_motion", "unet_plain"])
def test_portable_loops(golden_portable, case, steps, guidance):
    assert golden_loop(golden_portable / case, steps, guidance) < 1e-3


@pytest.mark.parametrize(("steps", "guidance"), LOOPS)
def test_full_loops(golden, steps, guidance):
    assert golden_loop(golden / "full" / "unet_decoder_motion", steps, guidance) < 1e-3


def test_schedule_table():
    assert timesteps(20) == list(range(951, 0, -50))
    assert timesteps(10) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert timesteps(3) == [667, 334, 1]
    assert timesteps(2) == [501, 1]
    assert timesteps(1) == [999]  # the rule's 1 would pass the noise on as the result
    assert timesteps(1000)[:2] == [999, 999]  # 1000 would be past the table's end
    assert timesteps(1, "trailing") == [999]
    assert timesteps(2, "trailing") == [999, 499]
    assert timesteps(4, "trailing") == [999, 749, 499, 249]
    bars = alphas_cumprod()
    assert bars.shape == (TRAIN_STEPS,)
    assert float(bars[0]) == pytest.approx(1 - 0.00085, abs=1e-12)
    assert float(bars[-1]) == pytest.approx(0.0046602, abs=1e-6)
    assert all(a > b for a, b in pairwise(bars.tolist()))


@given(st.integers(1, TRAIN_STEPS))
@settings(deadline=None)
def test_any_number_of_steps_stays_on_the_table(steps):
    plan = timesteps(steps)
    assert len(plan) == steps
    assert plan[-1] == (1 if steps > 1 else 999)
    assert max(plan) < TRAIN_STEPS
    assert plan == sorted(plan, reverse=True)
    trailing = timesteps(steps, "trailing")
    assert len(trailing) == steps
    assert trailing[0] == 999
    assert trailing[-1] >= 0
    assert trailing == sorted(set(trailing), reverse=True)


def as_diffusers(prediction, spacing="leading"):
    """The very same schedule by diffusers, as a second opinion."""
    import diffusers

    return diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=spacing == "trailing",
        steps_offset=1,
        timestep_spacing=spacing,
        prediction_type=prediction,
    )


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 7), ("trailing", 8), ("trailing", 2)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_step_for_step_as_diffusers(prediction, spacing, steps):
    scheduler = as_diffusers(prediction, spacing)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(2, 3, generator=generator)
    for (t, update), wanted in zip(
        sampling.ddim(steps, prediction, spacing), scheduler.timesteps.tolist(), strict=True
    ):
        assert t == wanted
        output = torch.randn(2, 3, generator=generator)
        ours, clean = update(output, ours)
        step = scheduler.step(output, t, theirs)
        theirs = step.prev_sample
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert torch.allclose(clean, step.pred_original_sample, atol=1e-4)


class Ideal(nn.Module):
    """The best possible denoiser of numbers drawn from a normal distribution: what every solver must get right."""

    MEAN, SPREAD = 0.7, 0.4

    def __init__(self, prediction):
        super().__init__()
        self.config = UNetConfig(prediction_type=prediction)
        self.bars = alphas_cumprod()
        self.calls = []

    def forward(self, sample, timestep, audio):
        self.calls.append((float(timestep), float(audio.abs().sum())))
        noisy, bar = sample[:, :1].double(), self.bars[int(timestep)]
        variance = bar * self.SPREAD**2 + 1 - bar
        clean = self.MEAN + bar.sqrt() * self.SPREAD**2 / variance * (noisy - bar.sqrt() * self.MEAN)
        noise = (noisy - bar.sqrt() * clean) / (1 - bar).sqrt()
        velocity = bar.sqrt() * noise - (1 - bar).sqrt() * clean
        return {"sample": clean, "epsilon": noise, "v_prediction": velocity}[self.config.prediction_type].to(sample)


def ideal_run(prediction, solver, steps, **options):
    noise = torch.linspace(-2, 2, 3 * 4).reshape(1, 1, 3, 2, 2).double()
    return noise, denoise_window(
        Ideal(prediction), noise, torch.zeros(1, 3, 3, 2, 2).double(), torch.ones(1, 3, 1, 1),
        steps=steps, guidance=1.0, solver=solver, **options,
    )  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_exact_solution(solver):
    """Of that distribution the deterministic path is known: it stretches the noise to the data's spread."""
    noise, made = ideal_run("epsilon", solver, 100)
    exact = Ideal.MEAN + Ideal.SPREAD * noise
    assert (made - exact).abs().max() < 0.05
    _, coarse = ideal_run("epsilon", solver, 5)
    assert (coarse - exact).abs().max() > (made - exact).abs().max()


@pytest.mark.parametrize("steps", [1, 2, 3, 1000])
@pytest.mark.parametrize("solver", SOLVERS)
def test_few_and_many_steps(solver, steps):
    counts = []
    noise, made = ideal_run("epsilon", solver, steps, on_step=lambda done, total, clean: counts.append((done, total)))
    assert counts == [(i, steps) for i in range(1, steps + 1)]
    assert (made - Ideal.MEAN - Ideal.SPREAD * noise).abs().max() < (0.03 if steps == 1000 else 1.0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_prediction_types_are_three_ways_to_say_the_same(solver):
    _, epsilon = ideal_run("epsilon", solver, 12)
    for prediction in ("sample", "v_prediction"):
        _, other = ideal_run(prediction, solver, 12)
        assert (other - epsilon).abs().max() < 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_on_step_sees_every_step_and_the_clean_estimate(solver, prediction):
    seen = []
    _, made = ideal_run(prediction, solver, 9, on_step=lambda done, total, clean: seen.append((done, total, clean)))
    assert [(done, total) for done, total, _ in seen] == [(i, 9) for i in range(1, 10)]
    assert (seen[-1][2] - made).abs().max() < 0.1
    assert all(clean.shape == made.shape for _, _, clean in seen)


def test_unknown_prediction_is_refused():
    with pytest.raises(UserError, match="predicts 'flow'; known are epsilon, sample and v_prediction"):
        predict_x0(torch.zeros(1), torch.zeros(1), 0.5, "flow")


class Sound(nn.Module):
    """Answers with what it hears, and counts the windows that it is asked for."""

    def __init__(self):
        super().__init__()
        self.windows = 0

    def forward(self, sample, timestep, audio):
        self.windows += len(sample)
        return audio.mean((2, 3))[:, None, :, None, None].expand_as(sample[:, :1]) + 1


@pytest.mark.parametrize(("guidance", "passes"), [(1, 1), (1.0, 1), (0.0, 2), (1.5, 2), (3, 2)])
def test_guidance(guidance, passes):
    unet, audio = Sound(), torch.full((1, 2, 50, 4), 0.5)
    made = cfg_denoise(unet, torch.zeros(1, 4, 2, 3, 3), 10, audio, guidance)
    assert unet.windows == passes
    assert torch.allclose(made, torch.tensor(1 + guidance * 0.5))  # 1 without, 1.5 with audio


class Watch(nn.Module):
    """Predicts as clean the sound plus the masked latents; remembers the frames of every window."""

    config = UNetConfig(prediction_type="sample")

    def __init__(self):
        super().__init__()
        self.spans = []

    def forward(self, sample, timestep, audio):
        self.spans.append([int(v) for v in audio[0, :, 0, 0]])
        number = len(set(map(tuple, self.spans)))  # tells windows apart: later ones say more
        return sample[:, 2:3] + 1000.0 * number


def clip(frames, audio_dim=4, channels=1):
    shape = (1, channels, frames, 2, 2)
    index = torch.arange(frames).float()
    masked = index[None, None, :, None, None].expand(shape)
    audio = index[None, :, None, None].expand(1, frames, 50, audio_dim)
    return torch.zeros(shape), torch.ones(1, 1, frames, 2, 2), masked, torch.zeros(shape), audio


WINDOWS = {
    1: [(0, 1)],
    5: [(0, 5)],
    16: [(0, 16)],
    17: [(0, 16), (1, 17)],
    32: [(0, 16), (16, 32)],
    40: [(0, 16), (16, 32), (24, 40)],
}


@pytest.mark.parametrize("frames", WINDOWS)
def test_windows_of_sixteen_the_last_shifted_back(frames):
    unet, counts = Watch(), []
    made = denoise(
        unet, *clip(frames), steps=2, guidance=1, on_step=lambda done, total, clean: counts.append((done, total))
    )
    spans = [span for span, after in pairwise([*unet.spans, []]) if span != after]
    assert [(span[0], span[-1] + 1) for span in spans] == WINDOWS[frames]
    total = 2 * len(WINDOWS[frames])
    assert counts == [(i, total) for i in range(1, total + 1)]
    # the overlap is the earlier window's: the number of the window that made each frame
    expected = [next(n for n, (a, b) in enumerate(WINDOWS[frames], 1) if a <= i < b) for i in range(frames)]
    assert [round(float(v) / 1000) for v in made[0, 0, :, 0, 0]] == expected


@given(st.integers(1, 200))
@settings(deadline=None)
def test_windows_agree_with_the_timeline(frames):
    plan = windows(0, frames)
    assert all(w.stop - w.start == min(WINDOW, frames) for w in plan)
    assert [i for w in plan for i in range(w.keep, w.stop)] == list(range(frames))


def test_an_exception_from_on_step_ends_it():
    class Cancelled(Exception):
        pass

    unet, calls = Watch(), []

    def cancel(done, total, clean):
        calls.append(done)
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        denoise(unet, *clip(40), steps=2, guidance=1, on_step=cancel)
    assert calls == [1, 2, 3]
    assert len(unet.spans) == 3


def tiny(motion):
    return lively(UNet(tiny_config(audio_dim=16, motion=motion)), 0).eval().requires_grad_(False)


def material(batch, frames, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 4, frames, side, side, generator=generator)
    conditions = torch.randn(batch, 9, frames, side, side, generator=generator)
    return noise, conditions, torch.randn(batch, frames, 50, 16, generator=generator)


@pytest.mark.parametrize("motion", ["none", "all"])
def test_a_batch_of_windows_is_bit_for_bit_the_windows(motion):
    unet = tiny(motion)
    noise, conditions, audio = material(3, 16)
    options = {"steps": 2, "guidance": 1.5}
    together = denoise_window(unet, noise, conditions, audio, **options)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(denoise_window(unet, noise[one], conditions[one], audio[one], **options), together[one])


def test_denoise_is_denoise_window_on_one_window():
    unet = tiny("all")
    noise, conditions, audio = material(1, 5)
    parts = conditions.split((1, 4, 4), 1)
    made = denoise(unet, noise, *parts, audio, steps=2, guidance=1.5)
    assert torch.equal(made, denoise_window(unet, noise, conditions, audio, steps=2, guidance=1.5))
    assert not made.requires_grad


@pytest.mark.parametrize("options", [{"steps": 0}, {"guidance": -1}, {"solver": "euler"}])
def test_bad_settings_end_before_any_work(options):
    unet = Watch()
    with pytest.raises(UserError):
        denoise(unet, *clip(16), **options)
    assert not unet.spans


def test_noise_and_sound_of_different_length():
    noise, mask, masked, reference, audio = clip(16)
    with pytest.raises(UserError, match="16 frames of noise and 15 of audio"):
        denoise(Watch(), noise, mask, masked, reference, audio[:, :15])


def test_noise_hangs_on_the_seed_alone():
    before = torch.get_rng_state()
    first = shared_noise(1247, 4, 8, 8)
    assert first.shape == (1, 4, 1, 8, 8)
    assert torch.equal(first, shared_noise(1247, 4, 8, 8))
    assert not torch.equal(first, shared_noise(1248, 4, 8, 8))
    assert torch.equal(before, torch.get_rng_state())  # nobody else's generator is touched
    assert abs(float(shared_noise(0, 8, 64, 64).std()) - 1) < 0.02
    assert shared_noise(2**63 - 1, 1, 2, 2).isfinite().all()


class Recorder:
    """A denoiser that says what it was asked, and adds its deep features to the sound's mean."""

    config = UNetConfig(prediction_type="sample")

    def __init__(self):
        self.asked = []

    def __call__(self, x, timestep, audio, deep=None):
        heard = bool(audio.any())
        self.asked.append((int(timestep), heard, None if deep is None else bool(deep)))
        if deep is not None and not deep:
            deep.append(torch.full((1,), float(timestep) + heard))
        return x[:, :4] * 0 + (deep[0] if deep else 0)


def asked(**settings):
    unet, noise = Recorder(), torch.randn(1, 4, 2, 4, 4)
    denoise_window(unet, noise, torch.zeros(1, 9, 2, 4, 4), torch.ones(1, 2, 50, 8), **settings)
    return unet.asked


def test_deep_features_are_computed_in_every_third_step_and_of_each_branch_alone():
    calls = asked(steps=7, guidance=2.0, reuse=3)
    assert [reused for _, _, reused in calls] == [False, False, *[True] * 4] * 2 + [False, False]
    assert [heard for _, heard, _ in calls] == [False, True] * 7
    assert all(reused is None for *_, reused in asked(steps=3, guidance=2.0))


@pytest.mark.parametrize(
    ("steps", "guided"), [(1, [0]), (2, [0]), (4, [1, 2]), (6, [1, 2, 3]), (7, [1, 2, 3, 4]), (20, [*range(5, 15)])]
)
def test_fast_guides_in_the_middle_of_the_steps_only(steps, guided):
    calls = asked(steps=steps, guidance=2.0, mode="fast")
    order = sorted({t for t, *_ in calls}, reverse=True)
    assert [order.index(t) for t, heard, _ in calls if not heard] == guided
    assert [order.index(t) for t, heard, _ in calls if heard] == [*range(steps)]
    assert len(asked(steps=steps, guidance=2.0, mode="fast", reuse=2)) == 2 * steps


def test_one_branch_after_the_other_is_the_same():
    unet = lively(UNet(tiny_config(audio_dim=16)), 5).double().eval()
    noise = torch.randn(1, 4, 3, 4, 4, dtype=torch.float64)
    more = torch.randn(1, 9, 3, 4, 4, dtype=torch.float64), torch.randn(1, 3, 50, 16, dtype=torch.float64)
    with torch.inference_mode():
        together, apart = (denoise_window(unet, noise, *more, steps=3, together=t) for t in (True, False))
    assert torch.allclose(together, apart, atol=1e-10)
