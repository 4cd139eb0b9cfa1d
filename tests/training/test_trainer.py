"""Whole runs on tiny networks: the right numbers move, losses fall, runs go on exactly, trouble passes."""

import copy
import dataclasses
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import default_collate

from latentsync.dataset import find_clips
from latentsync.errors import UnfinishedError, UserError
from latentsync.training.dataset import ClipStore, split_clips
from latentsync.training.distributed import make_accelerator
from latentsync.training.logging import CHARTS, EVENTS, read_log
from latentsync.training.recipes import Files
from latentsync.training.trainer import Trainer
from latentsync.training.unet.data import UNetWindows
from latentsync.training.unet.run import long_enough, run_unet
from latentsync.training.unet.samples import SampleWriter
from latentsync.training.unet.task import PerceptualNets, UNetTask
from latentsync.weights.identify import identify
from latentsync.weights.load import load_unet

from ..tiny import tiny_whisper, write_clip, write_speech
from .parts import faces, recipe, tiny_task, tiny_vae, write_clips, write_files

STEPS = {"1": 5, "2": 7, "2-efficient": 12}
"""That take the loss of a fixed batch below half."""
TRAINED = {"1": ("",), "2": ("motion_modules.", "attentions."), "2-efficient": ("motion_modules.", "attn2")}
TERMS = {"1": {"noise"}, "2": {"noise", "sync", "lpips", "trepa"}, "2-efficient": {"noise", "sync", "lpips"}}
NO_PIXELS = {"sync_weight": 0.0, "lpips_weight": 0.0, "trepa_weight": 0.0}


def trainer_of(data, run, stage="1", task=None, **settings):
    chosen = recipe(stage, **settings)
    accelerator = make_accelerator("fp32", chosen.gradient_accumulation_steps, cpu=True)
    return Trainer(task or tiny_task(data, chosen), chosen, run, accelerator)


@pytest.fixture
def plain(monkeypatch):
    """Runs without their pictures of curves, which take longer than these networks do."""
    monkeypatch.setattr("latentsync.training.trainer.draw_charts", lambda run: None)


def events(run):
    path = run / EVENTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- acceptance 2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STEPS)
def test_exactly_the_stages_parameters_move_and_the_loss_falls(clips, stage):
    """One fixed batch with fixed noise; every tensor of the network, VAE and nets is compared."""
    task = tiny_task(clips, recipe(stage))
    network, others = task.network, [task.codec.vae, *filter(None, vars(task.nets).values())]
    before = copy.deepcopy([part.state_dict() for part in (network, *others)])
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=5e-3)
    batch, totals = default_collate([task.data[0]]), []
    for _ in range(STEPS[stage] + 1):
        losses = task.losses(network, batch)
        assert losses.keys() == TERMS[stage] | {"total"}
        totals.append(float(losses["total"].detach()))
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    assert totals[-1] < totals[0] / 2
    for key, tensor in network.state_dict().items():
        trained = any(part in key for part in TRAINED[stage]) and not key.endswith(".pe")
        assert torch.equal(tensor, before[0][key]) != trained, key
    for part, state in zip(others, before[1:], strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in part.state_dict().items())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_every_loss_term_has_a_gradient(clips, gradient_checkpointing):
    task = tiny_task(clips, recipe("2", gradient_checkpointing=gradient_checkpointing))
    parameters = [p for p in task.network.parameters() if p.requires_grad]
    with torch.no_grad():  # past the motion modules' first step, where their last layer is zero
        for name, parameter in task.network.named_parameters():
            if "motion_modules" in name and "proj_out" in name:
                parameter.add_(0.1)
    losses = task.losses(task.network, default_collate([task.data[0]]))
    recipe_weights = {"noise": 1.0, "sync": 0.05, "lpips": 0.1, "trepa": 10.0}
    for name in recipe_weights:
        task.network.zero_grad()
        losses[name].backward(retain_graph=True)  # not autograd.grad, which wants none of the input: see losses()
        gradients = [p.grad for p in parameters]
        assert all(g is not None and g.isfinite().all() for g in gradients), name
        assert all(g.abs().sum() > 0 for g in gradients if g.ndim > 1), name
    total = sum(weight * losses[name] for name, weight in recipe_weights.items())
    assert torch.allclose(losses["total"], total)


def test_checkpointing_changes_no_number(clips):
    results = []
    for gradient_checkpointing in (False, True):
        task = tiny_task(clips, recipe("2-efficient", gradient_checkpointing=gradient_checkpointing))
        task.losses(task.network, default_collate([task.data[0]]))["total"].backward()
        results.append({n: p.grad for n, p in task.network.named_parameters() if p.requires_grad})
    for name, gradient in results[0].items():
        assert torch.allclose(gradient, results[1][name], atol=1e-6), name


def test_parts_of_a_step_add_up(clips, tmp_path):
    """Two batches of one clip are one of two."""
    results = []
    for batch, accumulate in ((2, 1), (1, 2)):
        trainer = trainer_of(
            clips, tmp_path, batch_size=batch, gradient_accumulation_steps=accumulate, max_grad_norm=1e9
        )
        trainer.compute_gradients()
        results.append([p.grad for p in trainer.parameters])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_lpips_may_see_fewer_frames(clips):
    seen = []

    def perceptual(a, b):
        seen.append(len(a))
        return (a - b).square().mean()

    task = tiny_task(clips, recipe("2-efficient", decoded_frames=3, sync_weight=0.0), PerceptualNets(lpips=perceptual))
    assert set(task.losses(task.network, default_collate([task.data[0]]))) == {"total", "noise", "lpips"}
    assert seen == [3]


def test_noise_and_steps_hang_on_the_samples_number(clips):
    task = tiny_task(clips, recipe("1", drop_audio=0.5))
    shape = torch.Size((3, 4, 16, 8, 8))
    steps, _, noise = task.draw(torch.tensor([4, 5, 6]), shape, validating=False)
    again = task.draw(torch.tensor([6]), shape, validating=False)
    assert steps[2] == again[0][0]
    assert torch.equal(noise[2], again[2][0])
    many = task.draw(torch.arange(400), torch.Size((400, 1, 1, 1, 1)), validating=False)
    assert abs(many[0].float().mean() - 500) < 50
    assert abs(many[1].mean() - 0.5) < 0.1
    even, all_heard, _ = task.draw(torch.arange(2), torch.Size((2, 1, 1, 1, 1)), validating=True)
    assert even.tolist() == [250, 750]
    assert all_heard.min() == 1


def test_what_the_recipe_wants_must_be_given(clips):
    with pytest.raises(UserError, match=r"SyncNet .* and a LPIPS .* and a VideoMAE"):
        tiny_task(clips, recipe("2"), PerceptualNets())
    chosen = recipe("1", trainable=("nothing",))
    with pytest.raises(UserError, match="There is nothing to train"):
        Trainer(tiny_task(clips, chosen), chosen, clips, make_accelerator("fp32", 1, cpu=True))
    with pytest.raises(UserError, match="bitsandbytes"):
        trainer_of(clips, clips, optimizer="adamw8bit")
    with pytest.raises(UserError, match="CUDA GPUs only"):
        make_accelerator("fp16", 1, cpu=True)


# ---- a run and its files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(clips, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    trainer = trainer_of(
        clips, run, "2-efficient", steps=4, validate_every=2, save_every=2, public_form=True, ema_decay=0.9
    )
    return trainer, trainer.fit()


def test_a_run_leaves_curves_samples_and_weights(finished):
    trainer, reason = finished
    run = trainer.run
    assert reason == "4 steps are done"
    lines = read_log(run)
    assert [line["step"] for line in lines if "loss/total" in line] == [1, 2, 3, 4]
    held = [line for line in lines if "validation/total" in line]
    assert [line["step"] for line in held] == [2, 4]
    wanted = {"validation/sync", "validation/lpips", "made/sync confidence", "true/sync confidence"}
    assert wanted <= held[0].keys()
    assert all(0 <= line["waiting for data"] <= 1 for line in lines if "waiting for data" in line)
    assert {p.name for p in (run / "samples").iterdir()} == {
        "step-00000002.mp4", "step-00000002.png", "step-00000004.mp4", "step-00000004.png",
    }  # fmt: skip
    assert (run / CHARTS).stat().st_size > 10_000
    assert events(run)[-1]["reason"] == reason


def test_the_sample_video_shows_truth_and_result_with_sound(finished):
    from latentsync.media.probe import probe
    from latentsync.media.reader import VideoReader

    info = probe(finished[0].run / "samples" / "step-00000004.mp4")
    assert (info.width, info.height, info.fps, info.frames, info.has_audio) == (128, 64, 25, 16, True)
    with VideoReader(info) as reader:
        (frame,) = reader.read([5])
    left, right = frame[:, :64].astype(int), frame[:, 64:].astype(int)
    assert abs(left[:20] - right[:20]).mean() < 3
    assert abs(left[40:56, 16:48] - right[40:56, 16:48]).mean() > 3


@pytest.mark.parametrize("mode", ["per_frame", "first_frame"])
def test_samples_are_made_as_in_use(clips, mode):
    """Frames are their own references, or the first one is; steps and guidance are those of the weights."""
    chosen = recipe("1", sample_steps=0)
    task = tiny_task(clips, chosen)
    unet = task.network
    unet.config = dataclasses.replace(unet.config, reference_mode=mode, default_steps=3, default_guidance=2.0)
    writer = SampleWriter(unet, task.codec, chosen, task.validation)
    (segment,) = writer._segments()
    seen = []
    unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    made = writer.sample(segment)
    assert len(seen) == 3 * 2  # without and with the speech
    inputs, _, audio = seen[0][:3]
    assert (audio == 0).all()
    clean, masked = (part.transpose(0, 1) for part in task.codec.encode_pair(segment.true))
    reference = clean if mode == "per_frame" else clean[:, :1].expand_as(clean)
    assert torch.allclose(inputs[0][5:9], masked, atol=1e-5)
    assert torch.allclose(inputs[0][9:], reference, atol=1e-5)
    kept = task.codec.keep > 0.5
    assert torch.equal(made[:, :, kept], segment.true[:, :, kept])


def test_the_result_is_a_model_that_loads(finished):
    trainer, _ = finished
    unet = load_unet(trainer.run / "unet.safetensors")
    info = identify(trainer.run / "unet.safetensors")
    assert (info.motion, info.resolution, info.prediction_type, info.problem) == ("decoder", 64, "epsilon", None)
    best = trainer.checkpoints.best()
    assert best in (2, 4)
    public = trainer.checkpoints.path(4) / "unet.pt"
    content = torch.load(public, weights_only=True)
    assert content["global_step"] == 4
    assert content["state_dict"].keys() == unet.state_dict().keys()
    assert identify(public).kind == "unet"
    best_public = torch.load(trainer.run / "unet.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(best_public[key], tensor) for key, tensor in unet.state_dict().items())


def test_what_is_saved_is_the_average(finished):
    trainer, _ = finished
    saved = load_unet(trainer.checkpoints.path(4) / "unet.safetensors").state_dict()
    names = [n for n, p in trainer.task.network.named_parameters() if p.requires_grad]
    for name, mean in zip(names, trainer.average.module.parameters(), strict=True):
        assert torch.equal(saved[name], mean)
    assert any(not torch.equal(saved[n], trainer.task.network.state_dict()[n]) for n in names)


def test_a_finished_run_has_nothing_to_do(finished, clips):
    trainer, _ = finished
    before = (trainer.run / "unet.safetensors").read_bytes()
    again = trainer_of(clips, trainer.run, "2-efficient", steps=4, ema_decay=0.9)
    assert again.fit() == "4 steps are done"
    assert (trainer.run / "unet.safetensors").read_bytes() == before


# ---- going on --------------------------------------------------------------------------------------------------------


def curves(run):
    drop = ("time", "clips per second", "waiting for data")
    return [{k: v for k, v in line.items() if k not in drop} for line in read_log(run)]


def alike(a, b, tolerance=1e-6):
    assert [line.keys() for line in a] == [line.keys() for line in b]
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, abs=tolerance)


SETTINGS = {
    "gradient_accumulation_steps": 2, "ema_decay": 0.9, "validate_every": 2, "save_every": 2, "log_every": 2,
    "sample_clips": 0,
}  # fmt: skip


def test_a_run_in_two_parts_is_the_run_in_one(clips, tmp_path, plain):
    trainer_of(clips, tmp_path / "whole", steps=3, **SETTINGS).fit()
    part = trainer_of(clips, tmp_path / "parts", steps=3, **SETTINGS)
    stop_after(part, 1)
    assert part.fit() == "stop requested"
    assert part.checkpoints.latest() == 1  # between two lines of the log
    rest = trainer_of(clips, tmp_path / "parts", steps=3, **SETTINGS)
    rest.fit()
    alike(curves(tmp_path / "parts"), curves(tmp_path / "whole"), 0)
    ends = [load_unet(tmp_path / name / "checkpoints/step-00000003/unet.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(a, b) for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True))


def stop_after(trainer, step):
    """As a SIGTERM would."""
    plain = trainer.compute_gradients

    def gradients():
        trainer.stop_requested = trainer.step + 1 >= step
        return plain()

    trainer.compute_gradients = gradients


def test_patience_ends_a_run(clips, tmp_path, plain):
    trainer = trainer_of(clips, tmp_path, steps=50, validate_every=1, patience=2, sample_clips=0)
    trainer.validation_losses = lambda: {"validation/total": 1.0}
    assert "no better validation in the last 2" in trainer.fit()
    assert trainer.step == 3
    assert trainer.checkpoints.best() == 1


# ---- trouble ---------------------------------------------------------------------------------------------------------


class Poisoned(UNetTask):
    """Samples of certain numbers lead to a loss that is no number."""

    poison: frozenset = frozenset()

    def losses(self, network, batch, *, validating=False):
        out = super().losses(network, batch, validating=validating)
        if not validating and self.poison & set(batch["number"].tolist()):
            out = {name: loss * float("nan") for name, loss in out.items()}
        return out


def poisoned(clips, run, numbers, **settings):
    chosen = recipe("1", validate_every=100, **settings)
    plain = tiny_task(clips, chosen)
    task = Poisoned(plain.network, tiny_vae(), chosen, plain.data)
    task.poison = frozenset(numbers)
    return trainer_of(clips, run, task=task, validate_every=100, **settings)


def test_a_bad_step_is_left_out(clips, tmp_path, plain):
    trainer = poisoned(clips, tmp_path, {2}, steps=4, save_every=100)
    trainer.fit()
    assert [e["step"] for e in events(tmp_path) if e["event"] == "step skipped"] == [2]
    assert all(p.isfinite().all() for p in trainer.task.network.parameters())
    assert [line["step"] for line in read_log(tmp_path) if "loss/total" in line] == [1, 2, 4]


def test_many_bad_steps_lead_back_to_the_last_checkpoint(clips, tmp_path, plain):
    trainer = poisoned(clips, tmp_path, {3, 4}, steps=6, save_every=2, max_bad_steps=2)
    trainer.fit()
    said = [(e["event"], e["step"]) for e in events(tmp_path)]
    assert said == [("step skipped", 3), ("step skipped", 4), ("rolled back", 2), ("stopped", 6)]
    assert trainer.rollbacks == 1
    assert trainer.checkpoints.latest() == 6
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_cannot_recover_ends_with_a_word(clips, tmp_path, plain):
    trainer = poisoned(clips, tmp_path, set(), steps=6, max_bad_steps=1)
    trainer.task.losses = lambda network, batch, validating=False: {
        "total": sum(p.sum() for p in network.parameters()) * float("nan")
    }
    with pytest.raises(
        UnfinishedError, match=r"non-finite again and again after step 0; unet\.safetensors holds step 0"
    ):
        trainer.fit()
    assert trainer.checkpoints.steps() == [0]
    assert (tmp_path / "unet.safetensors").is_file()


def test_a_validation_without_a_number_leads_back(clips, tmp_path, plain):
    """At step 4 the weights are spoiled once; what is tried again from step 2 on goes well."""
    trainer = trainer_of(clips, tmp_path, steps=6, validate_every=2, save_every=2, sample_clips=1)
    update, sampled = trainer.update, []
    trainer.task.evaluate = lambda folder, step, event: sampled.append(step) or {}

    def spoil():
        update()
        if (trainer.step, trainer.rollbacks) == (3, 0):
            with torch.no_grad():
                trainer.parameters[0].fill_(float("nan"))

    trainer.update = spoil
    assert trainer.fit() == "6 steps are done"
    assert [(e["event"], e["step"]) for e in events(tmp_path)] == [
        ("weights or validation are non-finite", 4), ("rolled back", 2), ("stopped", 6),
    ]  # fmt: skip
    assert sampled == [2, 4, 6]  # not of spoiled weights
    assert all(math.isfinite(line["validation/total"]) for line in read_log(tmp_path) if "validation/total" in line)


@pytest.mark.parametrize("validated", [True, False])
def test_a_diverged_run_is_no_success(clips, tmp_path, plain, validated):
    """Learning rate 0.99: whatever else happens, the weights that are saved and named are finite."""
    told, settings = [], {} if validated else {"holdout_time": 0.0, "holdout_recordings": 0.0}
    trainer = trainer_of(clips, tmp_path, steps=3, learning_rate=0.99, validate_every=100, sample_clips=0, **settings)
    update = trainer.update

    def explode():
        update()
        with torch.no_grad():
            trainer.parameters[0].mul_(float("inf"))

    trainer.update, trainer.report = explode, told.append
    with pytest.raises(UnfinishedError, match=r"after step 0; unet\.safetensors holds step 0"):
        trainer.fit()
    assert trainer.checkpoints.steps() == [0]
    assert f"{tmp_path / 'unet.safetensors'} holds the weights of step 0 (the last checkpoint)" in told
    assert all(p.isfinite().all() for p in load_unet(tmp_path / "unet.safetensors").parameters())


def test_a_run_whose_last_steps_are_skipped_is_no_success(clips, tmp_path, plain):
    trainer = poisoned(clips, tmp_path, {3}, steps=4, save_every=2)
    with pytest.raises(UnfinishedError, match=r"last steps were non-finite.*unet.safetensors holds step 2"):
        trainer.fit()


def test_the_result_is_named(clips, tmp_path, plain):
    told = []
    trainer = trainer_of(clips, tmp_path, steps=3, validate_every=1, sample_clips=0)
    totals = iter((3.0, 1.0, 2.0))
    trainer.validation_losses, trainer.report = lambda: {"validation/total": next(totals)}, told.append
    trainer.fit()
    assert told[-1] == f"{tmp_path / 'unet.safetensors'} holds the weights of step 2 (the best validation/total, 1)"


def test_a_broken_clip_is_replaced_and_named_once(clips, tmp_path, plain):
    """It comes with a good one, of which nothing is said."""
    settings = {"steps": 3, "batch_size": 2, "sample_clips": 0}
    chosen = recipe("1", **settings)
    task = tiny_task(clips, chosen)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    task.data.clips.append(type(task.data.clips[0])(broken, "broken"))
    trainer = trainer_of(clips, tmp_path / "run", task=task, **settings)
    trainer.fit()
    named = [e["why"] for e in events(tmp_path / "run") if e["event"] == "clip replaced"]
    assert len(named) == 1
    assert "broken.mp4" in named[0]


# ---- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


def command(*words):
    from typer.testing import CliRunner

    from latentsync.cli.main import app

    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.slow
def test_two_stages_by_command(clips, files, tmp_path):
    """Stage 1 from nothing with cached latents, then stage 2 on it with a SyncNet; the result says the mouth."""
    shared = ("--vae", files["vae"], "--whisper", files["whisper"], "--device=cpu", "--precision", "fp32",
              "--workers", 0, "--cache", tmp_path / "cache", "--validate-every", 2)  # fmt: skip
    (tmp_path / "fast.yaml").write_text("sample_steps: 2\nsample_clips: 1\nsample_frames: 16\nholdout_time: 0.4\n")
    shared += ("--config", tmp_path / "fast.yaml", "--steps", 2)
    one = ("train", "unet", clips, "--stage", 1, "--size", "tiny", "--resolution", 64, "-o", tmp_path / "one")
    done = command(*one, "--cache-latents", *shared)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "cache").glob("latents-*/*"))) == 3
    result = tmp_path / "one" / "unet.safetensors"
    info = identify(result)
    assert (info.kind, info.resolution) == ("nano", 64)  # a VAE that is not the usual one travels with the network
    two = ("train", "unet", clips, "--stage", "2-efficient", "--init", result, "-o", tmp_path / "two")
    judged = ("--sync-net", files["sync_net"], "--lpips", "off")
    done = command(*two, *judged, *shared)
    assert done.exit_code == 0, done.output
    last = [line for line in read_log(tmp_path / "two") if "validation/total" in line][-1]
    assert {"validation/sync", "made/sync confidence"} <= last.keys()
    assert load_unet(tmp_path / "two" / "unet.safetensors").config.motion == "decoder"
    assert "sync_weight: 0.05" in (tmp_path / "two" / "recipe.yaml").read_text()
    again = command("train", "charts", tmp_path / "two")
    assert again.exit_code == 0


@pytest.mark.slow
def test_a_lora_by_command(clips, files, tmp_path):
    from ..tiny import tiny_checkpoint

    base = tiny_checkpoint(tmp_path / "base.safetensors", audio_dim=64)
    run = tmp_path / "run"
    words = ("train", "unet", clips, "--stage", 2, "--init", base, "--lora", 4, "--sync-weight", 0, "--lpips", "off")
    more = (
        "--trepa-weight",
        0,
        "--whisper",
        files["whisper"],
        "--device",
        "cpu",
        "--workers",
        0,
        "--steps",
        2,
        "-o",
        run,
    )
    (tmp_path / "fast.yaml").write_text("sample_clips: 0\nholdout_time: 0.4\nlearning_rate: 1e-3\n")
    done = command(*words, *more, "--config", tmp_path / "fast.yaml")
    assert done.exit_code == 0, done.output
    lora = run / "lora.safetensors"
    assert identify(lora).kind == "lora"
    assert sorted(p.name for p in (run / "checkpoints/step-00000002").iterdir()) == ["lora.safetensors", "trainer.pt"]
    merged = command("train", "merge-lora", base, lora, tmp_path / "merged.safetensors")
    assert merged.exit_code == 0, merged.output
    changed = load_unet(tmp_path / "merged.safetensors").state_dict()
    moved = {k for k, t in load_unet(base).state_dict().items() if not torch.equal(t, changed[k])}
    assert moved
    assert all(".attn2." in key or ".attention_blocks." in key for key in moved)


def test_a_lora_is_for_a_finished_network(clips, files, tmp_path):
    from ..tiny import tiny_checkpoint

    base = tiny_checkpoint(tmp_path / "base.safetensors", audio_dim=64, motion="none")
    files = Files(init=str(base), whisper=str(files["whisper"]))
    with pytest.raises(UserError, match=r"lacks .*motion_modules.* take --stage 1"):
        run_unet(clips, tmp_path / "run", recipe("2", lora=4, **NO_PIXELS), files, cpu=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--lora", 4), "give one with --init"),
        (("--stage", 5), "stage is '5'"),
        (("--stage", 2), "needs a SyncNet"),
        (("--init", "nowhere.pt"), "There is no file nowhere.pt"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(clips, files, tmp_path, words, says):
    shared = ("--vae", files["vae"], "--whisper", files["whisper"], "--device=cpu", "--size", "tiny", "--lpips", "off")
    shared += ("--holdout-time", 0, "--resolution", 64)
    done = command("train", "unet", clips, "-o", tmp_path / "run", *shared, *words)
    assert done.exit_code == 2
    assert says in done.output
    assert len(done.output.strip().splitlines()) <= 3


def test_ears_must_fit(clips, files, tmp_path):
    from ..tiny import tiny_checkpoint

    base = tiny_checkpoint(tmp_path / "base.safetensors")
    files = Files(init=str(base), whisper=str(files["whisper"]))
    with pytest.raises(UserError, match="64 numbers per token and the U-Net takes 384"):
        run_unet(clips, tmp_path / "run", recipe("2", **NO_PIXELS), files, cpu=True)


def test_held_out_ends_must_hold_a_window(clips, files, tmp_path):
    given = Files(size="tiny", vae=str(files["vae"]), whisper=str(files["whisper"]), cache=tmp_path)
    with pytest.raises(UserError, match="shorter than a window of 16 frames; raise --holdout-time"):
        run_unet(clips, tmp_path / "run", recipe("1", holdout_time=0.2), given, cpu=True)
    held = split_clips(find_clips(clips), recipe("1")).time
    short = replace(held[0], part=(0.9, 1.0))
    assert long_enough(ClipStore(tmp_path, 64), [short, *held[1:]], 16) == held[1:]


def test_clips_that_cannot_be_used_are_reported_as_such(files, tmp_path):
    """And not as too short, which would call for another remedy."""
    (tmp_path / "data").mkdir()
    for i in range(2):
        audio = write_speech(tmp_path / f"{i}.wav", 2.0)
        write_clip(tmp_path / "data" / f"{i}.mp4", faces(60, i), Fraction(30), audio=audio)
    given = Files(size="tiny", vae=str(files["vae"]), whisper=str(files["whisper"]), cache=tmp_path / "cache")
    with pytest.raises(UserError, match="30 fps"):
        run_unet(tmp_path / "data", tmp_path / "run", recipe("1", steps=1), given, cpu=True)


def test_what_the_initial_weights_state_is_kept(clips, files, tmp_path):
    """From metadata of before version 0.2 to those of the result; its windows have one reference frame."""
    from ..tiny import tiny_checkpoint

    base = tiny_checkpoint(tmp_path / "base.safetensors", audio_dim=64, motion="none")
    old = tmp_path / "old.safetensors"
    with safe_open(base, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        stated = {"default_steps": "3", "license": "Apache-2.0", "latent_rgb": "[[1, 2, 3]]"}
        save_file(tensors, old, file.metadata() | {"reference": "still"} | stated)
    given = Files(str(old), whisper=str(files["whisper"]), cache=tmp_path / "cache")
    run_unet(clips, tmp_path / "run", recipe("1", steps=1, sample_clips=0), given, cpu=True)
    assert load_unet(tmp_path / "run" / "unet.safetensors").config.reference_mode == "first_frame"
    metadata = identify(tmp_path / "run" / "unet.safetensors").metadata
    assert metadata | stated | {"version": "run", "steps": "1"} == metadata
    assert "reference_mode: first_frame" in (tmp_path / "run" / "recipe.yaml").read_text()
    store = ClipStore(tmp_path / "cache", 64, tiny_whisper())
    sample = UNetWindows(store, first_frame=True)(find_clips(clips)[0], np.random.default_rng(0))
    assert (sample["reference"] == sample["reference"][:1]).all()


def test_the_learning_rate_follows_the_schedule_also_after_resuming(clips, tmp_path, plain):
    """Two epochs of three clips, in two runs; the rate of each step is logged."""
    settings = {"epochs": 2, "holdout_time": 0.0, "holdout_recordings": 0.0, "learning_rate": 1e-3}
    settings |= {"lr_scheduler": "linear", "warmup_steps": 2}
    first = trainer_of(clips, tmp_path, **settings)
    assert first.settings.steps == 6
    first.settings = replace(first.settings, steps=3)  # stopped there
    first.fit()
    trainer_of(clips, tmp_path, **settings).fit()
    rates = [line["learning rate"] for line in read_log(tmp_path) if "learning rate" in line]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_a_run_changes_none_of_its_clips(tmp_path, plain):
    data = write_clips(tmp_path / "data", 2)
    before = {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}
    trainer_of(data, tmp_path / "run", steps=2, validate_every=1, save_every=2).fit()
    assert {path: path.read_bytes() for path in before} == before
    samples = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert samples == [f"step-0000000{step}.{kind}" for step in (1, 2) for kind in ("mp4", "png")]
