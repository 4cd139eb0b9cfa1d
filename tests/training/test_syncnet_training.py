"""The trainer of SyncNets: pairs, losses, crops, exact resume, scores, the command."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate
from typer.testing import CliRunner

from latentsync.audio.load import load_audio
from latentsync.audio.syncnet_mel import sync_mel
from latentsync.cli.main import app
from latentsync.dataset import find_clips
from latentsync.errors import UserError
from latentsync.evaluation.syncnet_sync import StableScorer
from latentsync.models.syncnet import StableSyncNet
from latentsync.training.logging import read_log
from latentsync.training.recipes import SYNCNET_PRESETS, SyncNetRecipe
from latentsync.training.syncnet.architecture import NETWORKS, SMALL, network_from, syncnet_recipe
from latentsync.training.syncnet.data import CropStore, SyncNetWindows, draw_augmentation, draw_pair, mouth
from latentsync.training.syncnet.run import run_syncnet, syncnet_task
from latentsync.training.syncnet.score import Score, read_windows, score
from latentsync.training.syncnet.task import contrastive_loss, cross_entropy, pair_masks
from latentsync.weights.syncnet_files import load_syncnet

TINY = {
    "frames": 5,
    "size": [16, 32],
    "audio": {"widths": [32, 32, 256], "factors": [[8, 4], [5, 2], [2, 2]]},
    "visual": {"widths": [32, 32, 256], "factors": [[4, 4], [2, 4], [2, 2]]},
}
BASE = {
    "network": TINY, "batch_size": 2, "windows": 4, "min_shift": 2, "contrast": 1.0, "learning_rate": 1e-3,
    "precision": "fp32", "workers": 0, "holdout_time": 0.25, "score_windows": 24, "log_every": 1, "steps": 4,
    "validate_every": 2, "save_every": 2, "augment": 1.0, "flip": True,
}  # fmt: skip


def tiny_recipe(**settings) -> SyncNetRecipe:
    return SyncNetRecipe(**{**BASE, **settings})


def tiny_store(folder) -> CropStore:
    return CropStore(folder, network_from(TINY))


# ---- architectures and recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_presets_end_in_one_cell(name):
    config, recipe = syncnet_recipe(name)
    config.check()
    assert config == NETWORKS[name]
    assert recipe == SyncNetRecipe(**SYNCNET_PRESETS.get(name, {}))
    assert config.visual.in_channels == config.frames * (4 if config.space == "latent" else 3)


def test_small_gives_vectors_of_its_own_sizes():
    seen, heard = StableSyncNet(SMALL)(torch.zeros(2, 30, 24, 48), torch.zeros(2, 1, 80, 32))
    assert seen.shape == heard.shape == (2, 256)


def test_what_follows_is_filled_in():
    config = network_from(TINY)
    assert (config.visual.in_channels, config.audio.in_channels, config.mels) == (15, 1, (80, 16))
    assert config.audio.attention == (False, False, False)
    latent = {**TINY, "space": "latent", "visual": {**TINY["visual"], "attention": [0, 1, 0]}}
    assert network_from(latent).visual.in_channels == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"visual": {"widths": [32, 64], "factors": [2, 2]}}, r"16×32 → 8×16.*height 4 times and the width 8 times"),
        ({"visual": {"widths": [32, 32, 32], "factors": [[4, 4], [2, 4], [2, 2]]}}, "ends in 256 channels"),
        ({"images": 3}, "images"),
        ({"audio": {"widths": [32]}}, "factors"),
        ({"audio": 3}, "audio and for visual"),
    ],
)
def test_wrong_architectures_are_named(change, said):
    with pytest.raises(UserError, match=said):
        network_from({**TINY, **change})


def test_files_of_settings(tmp_path):
    ours, public, typo = (tmp_path / name for name in ("ours.json", "public.yaml", "typo.yaml"))
    ours.write_text(json.dumps({"network": TINY, "min_shift": 3}))
    config, recipe = syncnet_recipe("small", ours, min_shift=None, steps=7)
    assert (config.frames, recipe.min_shift, recipe.steps, recipe.windows) == (5, 3, 7, 8)
    facts = NETWORKS["16_latent"]
    encoders = {
        f"{name}_encoder": {
            "in_channels": part.in_channels,
            "block_out_channels": part.widths,
            "downsample_factors": part.factors,
        }
        for name, part in (("audio", facts.audio), ("visual", facts.visual))
    }
    public.write_text(json.dumps({"model": encoders, "data": {"batch_size": 256}, "ckpt": {}}))
    assert syncnet_recipe("small", public)[0] == facts
    typo.write_text("min_shifts: 2\n")
    with pytest.raises(UserError, match="did you mean min_shift"):
        syncnet_recipe("small", typo)
    with pytest.raises(UserError, match="16_pixel_attn, small"):
        syncnet_recipe("large")
    with pytest.raises(UserError, match="windows to 2"):
        tiny_recipe(windows=1)


# ---- pairs and losses ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(2, 60), st.integers(1, 6), st.integers(0, 2**32))
def test_pairs_stay_in_the_clip_and_are_shifted_enough(first, count, least, seed):
    starts = range(first, first + count)
    try:
        (seen,), (heard,) = draw_pair(np.random.default_rng(seed), starts, least)
    except UserError:
        assert count < 2 * least
        return
    assert seen in starts
    assert heard in starts
    assert seen == heard or abs(seen - heard) >= least


def test_half_of_the_pairs_are_shifted():
    random = np.random.default_rng(0)
    pairs = [draw_pair(random, range(60), 2) for _ in range(2000)]
    assert 0.46 < np.mean([a == b for a, b in pairs]) < 0.54


def test_relations():
    clip, start = torch.tensor([0, 0, 0, 1]), torch.tensor([4, 5, 7, 4])
    shifted, allowed = pair_masks(clip, start, 2)
    assert shifted.int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert allowed.int().tolist() == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_cross_entropy_counts_both_answers_half():
    likelihood, together = torch.tensor([0.9, 0.2, 0.4]), torch.tensor([True, False, False])
    same_share = torch.tensor([0.9, 0.9, 0.2, 0.4]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert torch.isclose(cross_entropy(likelihood, together), F.binary_cross_entropy(*same_share))
    certain = cross_entropy(torch.tensor([0.0, 1.0]), torch.tensor([True, False]))
    assert torch.isfinite(certain)
    assert certain > 9


def test_contrast_leaves_out_what_is_not_allowed():
    cosine = torch.tensor([[0.9, 0.8, 0.1], [0.8, 0.7, 0.3], [0.2, 0.1, 0.6]])
    allowed = torch.ones(3, 3, dtype=torch.bool)
    allowed[0, 1] = allowed[1, 0] = False
    wanted = [  # picture to sound, then sound to picture, by hand
        *(
            F.cross_entropy(10 * torch.tensor([row]), torch.tensor([i]))
            for i, row in ((0, [0.9, 0.1]), (0, [0.7, 0.3]))
        ),
        F.cross_entropy(10 * cosine[2:], torch.tensor([2])),
        *(
            F.cross_entropy(10 * torch.tensor([row]), torch.tensor([i]))
            for i, row in ((0, [0.9, 0.2]), (0, [0.7, 0.1]))
        ),
        F.cross_entropy(10 * cosine.T[2:], torch.tensor([2])),
    ]
    assert torch.isclose(contrastive_loss(cosine, allowed, torch.tensor([10.0])), sum(wanted) / 6)


# ---- crops and samples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("margin", "ring"), [(0, 3), (4, 3), (12, 3)])
def test_inside_the_ring_is_what_the_judge_sees(margin, ring):
    side, config = 64, network_from(TINY)
    wide = np.random.default_rng(1).integers(0, 256, (side + 2 * margin, side + 2 * margin, 3), dtype=np.uint8)
    stored = mouth(wide, margin, config.size, ring)
    judge = StableScorer(StableSyncNet(config), torch.zeros(16_000), None)
    seen = judge.frame(wide[margin : margin + side, margin : margin + side]).permute(1, 2, 0).numpy()
    assert stored.shape == (16 + 2 * ring, 32 + 2 * ring, 3)
    np.testing.assert_array_equal(stored[ring:-ring, ring:-ring], seen)
    if margin == 12:  # the ring is of the margin's pixels, not of repeated ones
        assert stored[0, ring:-ring].std() > 10
        assert np.abs(stored[ring:-ring, 0].astype(int) - stored[ring:-ring, ring].astype(int)).mean() > 5


def test_changes_of_a_picture():
    crop = np.random.default_rng(2).integers(0, 256, (22, 38, 3), dtype=np.uint8)
    inner = crop[3:-3, 3:-3]
    np.testing.assert_array_equal(draw_augmentation(np.random.default_rng(0), (16, 32), 3, 0.0, False)(crop), inner)
    made = [draw_augmentation(np.random.default_rng(i), (16, 32), 3, 0.0, True)(crop) for i in range(8)]
    mirrored = [np.array_equal(m, inner[:, ::-1]) for m in made]
    assert all(np.array_equal(m, inner) or flipped for m, flipped in zip(made, mirrored, strict=True))
    assert 0 < sum(mirrored) < 8
    strong = draw_augmentation(np.random.default_rng(3), (16, 32), 3, 1.0, False)
    assert not np.array_equal(strong(crop), inner)
    np.testing.assert_array_equal(strong(crop), strong(crop))


def test_a_sample_is_a_picture_with_its_sound(clips, tmp_path):
    store, clip = tiny_store(tmp_path), find_clips(clips)[0]
    make = SyncNetWindows(store, windows=3, min_shift=2)
    sample = make(clip, np.random.default_rng(4))
    picture, mel = read_windows(store, clip, sample["start"].tolist())
    torch.testing.assert_close(sample["images"].float() / 127.5 - 1, picture)
    torch.testing.assert_close(sample["mel"], mel)
    whole = sync_mel(load_audio(clip.path).waveform)
    for start, heard in zip(sample["start"].tolist(), mel, strict=True):
        first = start * 80 // 25
        torch.testing.assert_close(heard[0, :, 1:-1], whole[:, first + 1 : first + 15], atol=1e-4, rtol=0)
    assert store.starts(clip) == range(56)  # 60 frames, windows of 5
    again = SyncNetWindows(tiny_store(tmp_path), 3, 2)(clip, np.random.default_rng(4))
    torch.testing.assert_close(again["images"], sample["images"])


def test_a_shifted_pair_has_another_sound(clips, tmp_path):
    store, clip = tiny_store(tmp_path), find_clips(clips)[0]
    make = SyncNetWindows(store, windows=1, min_shift=3)
    seen = [make(clip, np.random.default_rng(i)) for i in range(12)]
    for sample in seen:
        own = store.mel(clip, int(sample["start"]), 5)
        assert torch.equal(sample["mel"][0], own) == bool(sample["in_sync"])
    assert 0 < sum(bool(s["in_sync"]) for s in seen) < 12


def test_latents_come_from_the_vae_and_their_size_is_checked(clips, tmp_path):
    class Halved:
        key = "halved"

        def __call__(self, pixels):
            return F.avg_pool2d(pixels, 4).mean(1, keepdim=True).repeat(1, 4, 1, 1)

    facts = {**TINY, "space": "latent", "size": [16, 16]}
    facts["visual"] = {"widths": [32, 32, 256], "factors": [4, 2, 2]}
    store, clip = CropStore(tmp_path, network_from(facts), Halved()), find_clips(clips)[0]
    sample = SyncNetWindows(store, 2, 2)(clip, np.random.default_rng(0))
    assert sample["images"].shape == (2, 20, 16, 16)
    assert sample["images"].dtype == torch.float32
    wrong = CropStore(tmp_path / "b", network_from({**facts, "size": [8, 8], "visual": {
        "widths": [32, 32, 256], "factors": [2, 2, 2]}}), Halved())  # fmt: skip
    with pytest.raises(UserError, match="another resolution"):
        wrong.crops(clip)
    with pytest.raises(UserError, match="--vae"):
        CropStore(tmp_path, network_from(facts))


@pytest.fixture
def plain(monkeypatch):
    """Runs without their pictures of curves, which take longer than these networks do."""
    monkeypatch.setattr("latentsync.training.trainer.draw_charts", lambda run: None)


# ---- learning --------------------------------------------------------------------------------------------------------


def with_openings(clips):
    for i, clip in enumerate(find_clips(clips)):
        np.savez(clip.path.with_suffix(".npz"), opening=1 + np.sin(np.arange(60) / 2 + i))


def test_every_loss_has_a_gradient_and_a_fixed_batch_is_learnt(clips, tmp_path):
    with_openings(clips)
    recipe = tiny_recipe(opening=1.0, windows=8, holdout_time=0.0, augment=0.0, flip=False)
    task = syncnet_task(clips, tiny_store(tmp_path), recipe)
    batch, net = default_collate([task.data[n] for n in range(2)]), task.network
    for name in ("bce", "contrast", "opening_visual", "opening_audio"):
        net.zero_grad()
        task.losses(net, batch)[name].backward()
        moved = {key for key, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        parts = {"opening_visual": ["visual"], "opening_audio": ["audio"]}.get(name, ["visual", "audio"])
        assert all(f"syncnet.{part}_encoder.conv_in.weight" in moved for part in parts)
        assert ("log_scale" in moved) == (name == "contrast")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    first = task.losses(net, batch)
    for _ in range(20):
        losses = task.losses(net, batch)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    assert losses["total"] < first["total"] / 2
    assert losses["accuracy"] > 0.8


def test_nothing_is_there_that_is_not_trained(clips, tmp_path):
    """What gets no gradient would stop a run on several GPUs."""
    recipe = tiny_recipe(windows=1, contrast=0.0)
    task = syncnet_task(clips, tiny_store(tmp_path), recipe)
    task.losses(task.network, default_collate([task.data[n] for n in range(8)]))["total"].backward()
    assert all(p.grad is not None for p in task.network.parameters())


def test_a_run_resumes_exactly_and_its_result_loads(clips, tmp_path, plain):
    with_openings(clips)
    recipe = tiny_recipe(opening=0.5, ema_decay=0.9, public_form=True)
    config, cache = network_from(TINY), tmp_path / "cache"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_syncnet(clips, whole, config, recipe, cache=cache, cpu=True)
    for steps in (2, 4):
        run_syncnet(clips, parts, config, dataclasses.replace(recipe, steps=steps), cache=cache, cpu=True)
    ours, theirs = ({line["step"]: line for line in read_log(run) if "loss/total" in line} for run in (whole, parts))
    assert [ours[n]["loss/total"] for n in range(1, 5)] == pytest.approx(
        [theirs[n]["loss/total"] for n in range(1, 5)], abs=1e-6
    )
    assert not (whole / "events.jsonl").read_text().count("clip replaced")
    net, other = (load_syncnet(run / "syncnet.safetensors") for run in (whole, parts))
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert net.config == config
    public = load_syncnet(whole / "syncnet.pt", config=config)
    torch.testing.assert_close(public.state_dict(), net.state_dict())
    assert (whole / "samples" / "time.png").is_file()
    assert {"time/accuracy", "time/auc", "validation/total"} <= set().union(*map(set, read_log(whole)))
    for line in read_log(whole):  # what shares a panel of the chart is one loss, in training and in validation
        for kind in ("loss", "validation"):
            if f"{kind}/total" in line:
                pairs = line[f"{kind}/bce"] + recipe.contrast * line[f"{kind}/contrast"]
                openings = line[f"{kind}/opening_visual"] + line[f"{kind}/opening_audio"]
                assert line[f"{kind}/total"] == pytest.approx(pairs + recipe.opening * openings, abs=1e-5)
    assert "frames: 5" in (whole / "recipe.yaml").read_text()
    changed = dataclasses.replace(recipe, opening=0.0, steps=6)
    with pytest.raises(UserError, match="another network or recipe"):
        run_syncnet(clips, parts, config, changed, cache=cache, cpu=True)


def test_the_best_weights_are_kept(clips, tmp_path, monkeypatch, plain):
    values = iter([0.5, 0.9, 0.8])

    def said(self):
        return {"bce": next(values)}

    monkeypatch.setattr(Score, "numbers", said)
    run_syncnet(clips, tmp_path / "run", network_from(TINY), tiny_recipe(steps=6), cache=tmp_path, cpu=True)
    from latentsync.weights.files import our_metadata

    assert our_metadata(tmp_path / "run" / "syncnet.safetensors")["step"] == "2"


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_score_by_hand():
    found = Score(
        likelihood=np.array([0.9, 0.4, 0.6, 0.1, 0.95]),
        shift=np.array([0, 0, 2, -3, 1]),
        clip=np.array([0, 1, 0, 1, 0]),
        min_shift=2,
        top1=0.5,
    )
    assert found.accuracy() == pytest.approx(0.5)  # one of two either way; the shift by 1 does not count
    assert found.auc() == pytest.approx(3 / 4)
    assert found.accuracy(0.2) == pytest.approx(0.75)
    assert found.bce() == pytest.approx(-(np.log(0.9) + np.log(0.4) + np.log(0.4) + np.log(0.9)) / 4)


def test_score_knows_a_perfect_judge(clips, tmp_path):
    """A network that sees the start and hears it: told by the first frame's mean, which differs."""

    class Perfect(torch.nn.Module):
        def forward(self, picture, mel):
            return torch.eye(len(picture)), torch.eye(len(picture))

    found = score(Perfect(), tiny_store(tmp_path), find_clips(clips), 24, min_shift=1)  # type: ignore[arg-type]
    assert found.accuracy() == found.auc() == found.top1 == found.tuned_accuracy() == 1
    assert {0, 1, -1} <= set(found.shift.tolist())


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(clips, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(BASE))
    command = [
        "train",
        "syncnet",
        str(clips),
        "--config",
        str(config),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    command += ["--steps", "2", "--cache", str(tmp_path / "cache"), "--holdout-people", "film2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip().endswith("syncnet.safetensors")
    assert any("people/accuracy" in line for line in read_log(tmp_path / "run"))
    assert (tmp_path / "run" / "charts.png").stat().st_size > 10_000
    wrong = CliRunner().invoke(app, [*command, "--preset", "huge"])
    assert wrong.exit_code != 0
