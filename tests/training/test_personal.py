"""A model of one person: footage, examples, training, resuming, the file and the page."""

import itertools
import re
import signal
import subprocess
import sys
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from latentsync.cli.main import app
from latentsync.errors import FootageError, UnfinishedError, UserError
from latentsync.evaluation.full_size import SD_VAE, random_unet, random_vae
from latentsync.face.identity import Looks
from latentsync.models.unet import UNet
from latentsync.models.unet_blocks import AudioProjection
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import VAE
from latentsync.training.personal import run
from latentsync.training.personal.examples import APART, CHOICES, alike, make_examples, unbroken
from latentsync.training.personal.footage import BLOCK, Clip, check, detail, said, thinned
from latentsync.training.personal.judge import Figures, Judge
from latentsync.training.personal.page import Story, sheet, write_page
from latentsync.training.personal.plan import make_plan
from latentsync.training.personal.run import Request, personalize
from latentsync.training.personal.settings import PersonalSettings
from latentsync.training.personal.told import Told
from latentsync.training.personal.trainer import PersonalTrainer, cell_weights
from latentsync.training.unet.codec import Codec
from latentsync.training.unet.lora import LoRAConv2d, add_lora, lora_state, targets
from latentsync.weights.bundle import load_models
from latentsync.weights.files import read_tensors
from latentsync.weights.load import load_unet
from latentsync.weights.lora import merge_lora, open_lora
from latentsync.weights.vae_files import load_vae

from ..tiny import lively, pan, tiny_checkpoint, tiny_config, whisper_file, write_clip, write_speech
from .parts import SIDE, faces

FPS = Fraction(25)
SHORT = PersonalSettings(steps=4, batch_size=1, frames=4, decoded=3, rank=2, judge_every=2, adversarial_from=1)


def clip(frames: int = 60, seed: int = 0, name: str = "a.mp4", speech: float = 30.0) -> Clip:
    random = np.random.default_rng(seed)
    points = random.normal(SIDE / 2, 6, (1, 68, 2)) + random.normal(0, 1, (frames, 1, 2))
    looks = Looks(np.eye(2, 4, dtype=np.float32)[0], 1)
    audio = torch.randn(frames, 50, 384, generator=torch.Generator().manual_seed(seed)).half()
    return Clip(name, np.arange(frames), faces(frames, seed), points.astype(np.float32), audio, speech, 0, looks)  # type: ignore[arg-type]


# ---- footage ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(0, 1200))
def test_thinned_footage_keeps_the_end_and_no_more_than_asked(count, most):
    numbers = np.arange(count) * 2
    kept = thinned(numbers, most)
    assert len(np.unique(kept)) == len(kept)
    assert set(kept) <= set(numbers)
    assert (np.diff(kept) > 0).all()
    assert kept[-1] == numbers[-1]
    assert len(kept) <= max(most, 2 * BLOCK) or most == 0
    if most == 0 or most >= count:
        assert len(kept) == count


def test_thinned_footage_is_spread_over_the_whole_clip():
    kept = thinned(np.arange(1000), 320)
    assert kept[0] == 0
    assert np.diff(kept).max() < 80
    assert all(stop - start >= BLOCK for start, stop in unbroken(kept))


def test_speech_is_what_lies_between_pauses():
    rate, t = 16000, torch.arange(4 * 16000) / 16000
    sound = 0.3 * torch.sin(2 * torch.pi * 200 * t)
    sound[rate : 2 * rate] = 0
    times = np.array([0.5, 1.5, 2.5, 3.5, 4.5])
    assert said(sound, times).tolist() == [True, False, True, True, False]


def test_blur_takes_the_detail_away():
    random = np.random.default_rng(0)
    crop = cv2.resize(random.integers(0, 255, (48, 48, 3), dtype=np.uint8), (192, 192), interpolation=cv2.INTER_CUBIC)
    points = np.stack(np.meshgrid(np.linspace(60, 130, 17), np.linspace(100, 150, 4)), -1).reshape(68, 2)
    values = [detail(cv2.GaussianBlur(crop, (0, 0), sigma), points) for sigma in (0.5, 1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert detail((crop // 4 + 90).astype(np.uint8), points) == pytest.approx(detail(crop, points), rel=0.1)


def test_faults_are_all_named_at_once():
    other = replace(
        clip(name="b.mp4"), looks=Looks(np.eye(2, 4, dtype=np.float32)[1], 1), problems=("b.mp4 is blurred",)
    )
    short = replace(clip(), speech=4.0)
    found = check([short, replace(other, speech=5.0)])
    assert found[0] == "b.mp4 is blurred"
    assert "9 s of speech" in found[1]
    assert "12 s are needed" in found[1]
    assert "two people" in found[2]
    assert check([clip()]) == []


# ---- examples --------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_runs_are_what_follows_without_a_gap(kept):
    numbers = np.flatnonzero([*kept, True])
    runs = unbroken(numbers)
    assert [i for start, stop in runs for i in range(start, stop)] == [*range(len(numbers))]
    for start, stop in runs:
        assert numbers[stop - 1] - numbers[start] == stop - 1 - start
    assert all(numbers[start] - numbers[start - 1] > 1 for start, _ in runs[1:])


def test_references_hold_the_head_alike_but_are_other_moments():
    count = 40
    pose = np.arange(count) % 5  # the same pose every fifth frame
    rigid = np.zeros((count, 3, 2)) + pose[:, None, None]
    trained = np.arange(count) < 30
    found = alike(rigid, np.zeros(count, int), np.arange(count), trained)
    assert found.shape == (count, CHOICES)
    assert found.max() < 30
    away = np.abs(found - np.arange(count)[:, None])
    assert away.min() >= APART
    assert (pose[found[:, 0]] == pose).all()


def test_windows_are_of_moments_that_are_trained_on():
    examples = make_examples([clip(), clip(40, 1, "b.mp4")], lambda p: (p[:, :, ::8, ::8], p[:, :, ::8, ::8]))
    assert examples.held_out == ((51, 60), (94, 100))
    random, seen = np.random.default_rng(0), set()
    for scattered in (False, True):
        for _ in range(50):
            window = examples.window(random, 6, scattered=scattered, own=0)
            seen |= set(window["moments"].tolist())
            assert window["clean"].shape == (6, 3, 8, 8)
            steps = window["moments"].diff()
            assert scattered or (steps == 1).all()
    held = {i for start, stop in examples.held_out for i in range(start, stop)}
    assert not seen & held
    assert len(seen) > 60


def test_some_moments_are_their_own_reference():
    latents = torch.arange(60.0)[:, None, None, None].expand(60, 4, 8, 8)
    examples = replace(make_examples([clip()], lambda p: (p[:, :, ::8, ::8],) * 2), clean=latents)
    random = np.random.default_rng(0)
    for own in (0.0, 0.1, 1.0):
        windows = [examples.window(random, 6, scattered=False, own=own) for _ in range(300)]
        same = [(one["reference"] == one["clean"]).all(dim=(1, 2, 3)) for one in windows]
        assert float(torch.cat(same).float().mean()) == pytest.approx(own, abs=0.03)


# ---- training --------------------------------------------------------------------------------------------------------


def test_a_lora_of_a_convolution_is_what_its_file_says():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.Conv2d(10, 4, 1))
    plain = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    before = net(x := torch.randn(2, 6, 8, 8))
    names = add_lora(net, 3, everywhere=True)
    assert names == ["0", "1"]
    assert isinstance(net[0], LoRAConv2d)
    assert torch.equal(net(x), before)
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    merged = nn.Sequential(nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.Conv2d(10, 4, 1))
    merged.load_state_dict(merge_lora(plain, lora_state(net)))
    assert (net(x) - before).abs().max() > 0.1
    torch.testing.assert_close(net(x), merged(x))


def test_everywhere_leaves_out_what_hears():
    unet = UNet(replace(tiny_config(motion="none"), audio_rank=4))
    names = targets(unet, everywhere=True)
    assert "conv_in" in names
    assert "conv_out" in names
    assert not any(name.startswith("audio_projection") for name in names)
    assert set(targets(unet)) < set(names)


def trainer(tmp_path, settings: PersonalSettings = SHORT, frames: int = 60) -> PersonalTrainer:
    path = tmp_path / "tiny.safetensors"
    if not path.exists():
        tmp_path.mkdir(exist_ok=True)
        tiny_checkpoint(path, motion="none", taesd=True)
    vae = load_vae(path)
    codec = Codec(vae, SIDE)
    examples = make_examples([clip(frames)], lambda pixels: codec.encode_pair(pixels.float() / 127.5 - 1))
    return PersonalTrainer(load_unet(path), vae, examples, settings, codec)


def test_the_lips_weigh_most_and_what_is_kept_least(tmp_path):
    mask = Codec(load_vae(tiny_checkpoint(tmp_path / "t.safetensors", taesd=True)), SIDE).mask
    weights = cell_weights(mask)
    assert weights.mean() == pytest.approx(1)
    assert weights[5, 4] == weights.max()
    assert weights[0, 0] == weights.min() == pytest.approx(float(weights.max()) / 80)


def test_only_the_lora_and_the_decoder_change(tmp_path):
    ours = trainer(tmp_path)
    before = {n: p.detach().clone() for n, p in ours.unet.named_parameters()}
    pictures = [p.detach().clone() for p in ours.decoder.parameters()]
    for _ in range(3):
        ours.train_step()
    changed = {n for n, p in ours.unet.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert any(not torch.equal(p, old) for p, old in zip(ours.decoder.parameters(), pictures, strict=True))
    apart = trainer(tmp_path, replace(SHORT, decoder=False))
    assert not any(p.requires_grad for p in apart.decoder.parameters())


def test_what_checkpointing_computes_again_is_the_same(tmp_path):
    plain, again = (trainer(tmp_path / name, replace(SHORT, checkpointing=name == "again")) for name in ("a", "again"))
    losses = [float(one.train_step()["total"]) for one in (plain, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for p, q in zip(plain.lora, again.lora, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_it_learns_the_person(tmp_path):
    """What is minimized falls on a window that is seen again and again."""
    settings = replace(SHORT, steps=40, adversarial=False, learning_rate=1e-2, decoder_learning_rate=1e-2)
    ours = trainer(tmp_path, settings)
    ours.warmup, batch = 1, ours.batch()
    ours.batch = lambda: batch
    errors = [float(ours.train_step()["total"]) for _ in range(40)]
    assert np.mean(errors[-5:]) < 0.87 * np.mean(errors[:5])


def heard() -> tuple[AudioProjection, torch.Tensor]:
    projection = lively(AudioProjection(384, 2, 384, nn), 1)
    weight = projection.out.weight.data
    left, strength, right = torch.linalg.svd(weight, full_matrices=False)
    strength[3:] = 0  # as nano's, whose tokens tell a shape of few numbers
    projection.out.weight.data = left * strength @ right
    return projection, torch.randn(9, 50, 384, generator=torch.Generator().manual_seed(0)).half()


def test_a_shape_is_told_in_the_dimensions_that_are_heard():
    projection, audio = heard()
    told = Told(projection, audio)
    assert told.offsets.weight.shape == (9, 3)
    tokens, plain = audio.float(), projection(audio.float())
    assert torch.equal(told(tokens), plain)
    told.moments = torch.arange(9)
    assert torch.equal(told(tokens), plain)
    told.offsets.weight.data[4, 0] = 1  # one standard deviation of what is heard
    moved = (told(tokens) - plain)[:, 0]
    assert moved[4].norm() > 0
    assert not moved[[0, 1, 2, 3, 5, 6, 7, 8]].any()
    basis = torch.linalg.svd(projection.out.weight, full_matrices=False)[0][:, :3]
    torch.testing.assert_close(basis @ (basis.T @ moved[4]), moved[4])


def test_offsets_are_learned_of_the_moments_that_were_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.training.test_personal.load_unet", hearing_unet)
    ours = trainer(tmp_path)
    assert ours.told is not None
    batch = ours.batch()
    ours.batch = lambda: batch
    for _ in range(2):  # at first the LoRA, and with it the attention's change, may be zero
        ours.train_step()
    seen = set(batch["moments"].flatten().tolist())
    moved = set(ours.told.offsets.weight.abs().sum(1).nonzero().flatten().tolist())
    assert moved == seen
    assert ours.told.moments is None


def test_the_hearing_is_corrected_by_what_was_told():
    """Offsets that are a linear function of what is heard are heard from then on; on average nothing is added."""
    projection, _ = heard()
    audio = torch.randn(400, 50, 384, generator=torch.Generator().manual_seed(1)).half() + 0.3
    told = Told(projection, audio)
    before, features = told(audio.float()).detach(), projection.mixed(audio.float()).detach()
    wanted = (features - features.mean(0)) @ torch.randn(
        features.shape[1], 3, generator=torch.Generator().manual_seed(2)
    )
    told.offsets.weight.data = wanted / wanted.std(0)
    moments = torch.arange(0, 400, 2)
    told.fit(audio, moments)
    added = ((told(audio.float()) - before)[:, 0] @ torch.linalg.pinv(told.steps)).detach()
    for i in range(3):
        assert np.corrcoef(added[1::2, i], told.offsets.weight.detach()[1::2, i])[0, 1] > 0.9
    assert added[moments].mean(0).abs().max() < 0.05
    state = {"audio_projection.out.weight": projection.out.weight.detach()}
    merged = merge_lora(state, told.lora())
    with torch.no_grad():
        projection.out.weight.copy_(merged["audio_projection.out.weight"])
        torch.testing.assert_close(
            projection(audio.float()), before + (added @ told.steps)[:, None], atol=1e-4, rtol=1e-4
        )


def hearing_unet(path) -> UNet:
    return lively(UNet(replace(tiny_config(motion="none"), audio_rank=2, prediction_type="sample", resolution=SIDE)), 0)


@pytest.mark.parametrize("tells", [False, True])
def test_a_resumed_run_takes_the_same_steps(tmp_path, monkeypatch, tells):
    if tells:
        monkeypatch.setattr("tests.training.test_personal.load_unet", hearing_unet)
    whole = trainer(tmp_path)
    for _ in range(4):
        whole.train_step()
    first = trainer(tmp_path)
    first.train_step()
    first.train_step()
    first.save(tmp_path / "state.pt")
    again = trainer(tmp_path)
    again.load(tmp_path / "state.pt")
    for _ in range(2):
        again.train_step()
    for a, b in zip([*whole.lora, *whole.picture], [*again.lora, *again.picture], strict=True):
        assert torch.equal(a, b)
    if whole.told is not None:
        assert again.told is not None
        assert torch.equal(whole.told.offsets.weight, again.told.offsets.weight)
    for a, b in zip(whole.average.module.parameters(), again.average.module.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("person")
    sound = write_speech(folder / "a.wav", 1.2)
    tiny_checkpoint(folder / "tiny.safetensors", motion="none", taesd=True)
    whisper_file(folder / "whisper.safetensors")
    return write_clip(folder / "me.mp4", pan(30, 160, 140), FPS, audio=sound)


def request(recording, out, **changes) -> Request:
    folder = recording.parent
    own = Request([recording], out, str(folder / "tiny.safetensors"), whisper=folder / "whisper.safetensors",
                  anyway=True, settings=SHORT, device="cpu")  # fmt: skip
    return replace(own, **changes)


@pytest.fixture
def improving(monkeypatch):
    """A tiny network with random weights makes nobody's mouth; what is judged gets better all the same."""
    numbers = itertools.count()
    monkeypatch.setattr(Judge, "figures", lambda self, made: Figures(0.1, 0.1, 0.1 + 0.01 * next(numbers)))


def test_no_file_where_nothing_got_better(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(Judge, "figures", lambda self, made: Figures(0.1, 0.1, 0.1))
    with pytest.raises(UnfinishedError, match=r"No step was better than .* alone"):
        personalize(request(recording, tmp_path / "me.safetensors"))
    assert not (tmp_path / "me.safetensors").exists()


def test_from_a_recording_to_a_file_that_runs(recording, tmp_path, improving):
    lines = []
    made = personalize(request(recording, tmp_path / "me.safetensors", person="Ada"), lines.append)
    assert made.lora == tmp_path / "me.safetensors"
    assert made.steps == 4
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["me.html", "me.safetensors"]
    lora = open_lora(made.lora)
    assert lora.metadata["person"] == "Ada"
    assert lora.metadata["base"] == "nano"
    assert made.lora.stat().st_size < 2_000_000
    page = made.page.read_text()
    assert "A model of Ada" in page
    assert "video/mp4" in page
    assert "image/jpeg" in page
    assert any("step 4: opening" in line for line in lines)
    folder = recording.parent
    options = {"whisper": folder / "whisper.safetensors"}
    with load_models(folder / "tiny.safetensors", **options) as plain:
        pass
    with load_models(folder / "tiny.safetensors", lora=[made.lora], **options) as models:
        differing = [n for n, p in models.unet.state_dict().items() if not torch.equal(p, plain.unet.state_dict()[n])]
        assert differing
        assert "conv_in.weight" in differing


def test_a_stopped_run_goes_on_to_the_same_file(recording, tmp_path, improving):
    whole = personalize(request(recording, tmp_path / "whole.safetensors", person="x"))
    calls = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) == 4  # before the fourth step

    out = tmp_path / "again.safetensors"
    with pytest.raises(UnfinishedError, match="stopped at step 3; run it again"):
        personalize(request(recording, out, person="x"), should_stop=stop)
    assert not out.exists()
    lines: list[str] = []
    again = personalize(request(recording, out, person="x"), lines.append)
    assert "continues at step 3 of 4" in lines
    assert again.lora is not None
    assert whole.lora is not None
    ours, theirs = read_tensors(again.lora), read_tensors(whole.lora)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list(tmp_path.glob(".*"))


def test_a_preview_trains_nothing(recording, tmp_path):
    made = personalize(request(recording, tmp_path / "me.safetensors", preview=True))
    assert made.lora is None
    assert made.after is None
    assert [p.name for p in tmp_path.iterdir()] == ["me.html"]
    assert "at most 4 steps" in made.page.read_text()


def test_poor_footage_is_refused_before_any_training(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PersonalTrainer", None)
    with pytest.raises(UserError, match=r"1 s of speech.*12 s are needed"):
        personalize(request(recording, tmp_path / "me.safetensors", anyway=False))
    assert not list(tmp_path.iterdir())


def test_the_command_says_how_to_train_all_the_same(recording, tmp_path, monkeypatch):
    def refuse(*_):
        raise FootageError("These clips will not make a good model.")

    monkeypatch.setattr(run, "personalize", refuse)
    said = CliRunner().invoke(app, ["personalize", str(recording), "-o", str(tmp_path / "me.safetensors"), "--consent"])
    assert said.exit_code == 2
    assert "a good model. To train all the same, add --anyway; --face says" in said.stderr


@pytest.mark.parametrize(("training", "times", "code"), [(False, 1, 130), (True, 1, 1), (True, 2, 130)])
def test_ctrl_c_ends_at_once_where_nothing_is_saved(recording, tmp_path, monkeypatch, training, times, code):
    def make(request, report, should_stop):
        assert not (training and should_stop())
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        assert should_stop()
        raise UnfinishedError("stopped at step 3")

    monkeypatch.setattr(run, "personalize", make)
    done = CliRunner().invoke(app, ["personalize", str(recording), "-o", str(tmp_path / "me.safetensors"), "--consent"])
    assert done.exit_code == code
    assert ("the same command continues" if code == 130 else "stopped at step 3") in done.stderr


def test_silence_is_refused(recording, tmp_path):
    sound = tmp_path / "quiet.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))
    quiet = write_clip(tmp_path / "quiet.mp4", pan(25, 256, 224), FPS, audio=sound)
    with pytest.raises(UserError, match=r"quiet.mp4 is silent; give videos with the person's voice"):
        personalize(request(recording, tmp_path / "me.safetensors", clips=[quiet]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out": Path("me.pt")}, "must end in .safetensors"),
        ({"clips": []}, "at least one video"),
        ({"clips": [Path("nowhere.mp4")]}, "no video nowhere.mp4"),
        ({"minutes": -1}, "minutes is -1"),
        ({"out": Path("nowhere/me.safetensors")}, "no folder nowhere to write me.safetensors to"),
    ],
)
def test_requests_are_checked_first(recording, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        personalize(replace(request(recording, tmp_path / "me.safetensors"), **changes))


# ---- the plan --------------------------------------------------------------------------------------------------------


def full_trainer(unet, vae, side: int = 256) -> PersonalTrainer:
    crops = np.zeros((64, side, side, 3), np.uint8)
    one = replace(clip(64), crops=crops, audio=torch.randn(64, 50, 384).half())
    examples = make_examples([one], lambda pixels: (torch.zeros(len(pixels), 4, side // 8, side // 8),) * 2)
    settings = PersonalSettings.for_network(unet)
    codec = Codec(vae, side, torch.bfloat16, gradient_checkpointing=settings.checkpointing)
    return PersonalTrainer(unet, vae, examples, settings, codec)


@pytest.mark.slow
def test_a_person_of_1_5_fits_a_card_of_12_gb():
    """Computed on tensors without content: 7.5 GB, of which 5.1 are the U-Net's weights in fp32."""
    with torch.device("meta"):
        unet, vae = UNet(UNetConfig(resolution=256)), VAE(AutoencoderKL(**SD_VAE), scaling=0.18215)
    plan = make_plan(full_trainer(unet, vae))
    assert plan.memory is not None
    assert 5.5e9 < plan.memory.total < 12e9
    assert plan.memory.weights == pytest.approx(5.1e9, rel=0.02)
    assert "1.5 takes" in plan.lines("1.5")[1]
    with pytest.raises(UserError, match=r"Training takes 7\.\d GB, and 4\.0 GB are free"):
        replace(plan, free=4_000_000_000).check()


@pytest.mark.slow
def test_a_step_of_full_size():
    """Random weights, 16 frames of 256 px, on a CPU."""
    unet, vae = random_unet(UNetConfig(resolution=256), "cpu", torch.float32), random_vae(SD_VAE, "cpu", torch.float32)
    ours = full_trainer(unet, vae)
    losses = ours.train_step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    # motion modules end in a layer of zeros here, so that what is in them gets no gradient yet
    moved = [p for n, p in ours.unet.named_parameters() if "lora_B" in n and "motion" not in n]
    assert moved
    assert all(bool(p.abs().max() > 0) for p in moved)


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_sheet_has_a_row_for_each(tmp_path):
    true, before, after = (np.full((10, 32, 32, 3), value, np.uint8) for value in (10, 120, 240))
    picture = sheet(true, before, after, columns=4)
    assert picture.shape == (96, 128, 3)
    assert [int(picture[row].mean()) for row in (5, 40, 80)] == [10, 120, 240]
    figures = Figures(0.5, 0.6, 0.3)
    page = write_page(tmp_path / "a.html", Story("<b>", {"Clips": "a & b"}, true, before, figures, after, figures))
    text = page.read_text()
    assert "<b>" not in text.replace("<body>", "")
    assert "a &amp; b" in text


def test_more_detail_than_the_true_mouth_is_no_gain():
    assert Figures(0.5, 0.6, 3.0).score == Figures(0.5, 0.6, 1.0).score > Figures(0.5, 0.6, 0.5).score


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from latentsync.training import progress
from latentsync.training.personal.judge import Figures, Judge
from latentsync.training.personal.run import Request, personalize
from latentsync.training.personal.settings import PersonalSettings

progress.EVERY = 0.0  # a line at each update, however fast this machine encodes
first = []

def figures(self, made):  # a tiny network makes nobody's mouth: what changes most is the best
    first.append(made.astype(float))
    return Figures(0.1, 0.1, 0.1 + float(np.abs(made - first[0]).mean()) / 255)

Judge.figures = figures
settings = PersonalSettings(steps=8, batch_size=1, frames=4, decoded=3, rank=2, judge_every=2, adversarial_from=1,
                            learning_rate=1e-2, decoder_learning_rate=1e-2)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
request = Request([folder / "me.mp4"], out, str(folder / "tiny.safetensors"), "x", anyway=True, device="cpu",
                  whisper=folder / "whisper.safetensors", settings=settings)
personalize(request, lambda line: print(line, flush=True))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_file(recording, tmp_path):
    def start(out: Path) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", SCRIPT, str(recording.parent), str(out)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    with start(tmp_path / "whole.safetensors") as whole:
        assert whole.wait(600) == 0
    again = tmp_path / "again.safetensors"
    for line in ("encoding: frame", "step 4: opening", "step 6: opening"):  # where it is when it is killed
        with start(again) as process:
            assert process.stdout is not None
            assert any(told.startswith(line) for told in process.stdout)
            process.kill()
        assert not again.exists()
    with start(again) as last:
        assert last.stdout is not None
        lines = last.stdout.read()
        assert last.wait(600) == 0
    assert re.search("continues at step [46] of 8", lines)
    ours, theirs = read_tensors(again), read_tensors(tmp_path / "whole.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list(tmp_path.glob(".*"))
