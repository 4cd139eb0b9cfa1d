"""`latentsync eval` on files: what is measured, what is said to be missing, and what a folder survives."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentsync.cli.main import app
from latentsync.dataset import clip_files, find_clips, holdout_part
from latentsync.errors import UserError
from latentsync.evaluation.charts import draw_accuracy, draw_comparison, draw_many, draw_sync
from latentsync.evaluation.clips import sync_aligned, track_clip
from latentsync.evaluation.image_metrics import Frechet
from latentsync.evaluation.measure import METRICS, Networks, compare, measure
from latentsync.evaluation.networks import Network
from latentsync.evaluation.report import summarize, summary_rows
from latentsync.evaluation.syncnet_accuracy import best_threshold, syncnet_accuracy
from latentsync.face.detect import FaceFinder
from latentsync.models.syncnet import ChungSyncNet
from latentsync.weights.registry import get
from latentsync.weights.syncnet_files import save_syncnet

from ..tiny import face_model, pan, write_clip, write_speech
from .talking import RATE, faces, learnt, opening, voice

FPS = Fraction(25)


@pytest.fixture(scope="module")
def finder():
    with FaceFinder(face_model()) as finder:
        yield finder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A swaying portrait (true), the same with a blurred mouth (soft), at half the size (small), twice the rate."""
    folder = tmp_path_factory.mktemp("clips")
    frames = pan(30, 192, 160)
    sound = write_speech(folder / "speech.wav", 1.2)
    soft = frames.copy()
    soft[:, 84:] = np.stack([cv2.GaussianBlur(f, (0, 0), 2.5) for f in frames])[:, 84:]
    small = np.stack([cv2.resize(f, (96, 80), interpolation=cv2.INTER_AREA) for f in frames])
    write_clip(folder / "true.mp4", frames, FPS, audio=sound)
    write_clip(folder / "soft.mp4", soft, FPS, audio=sound)
    write_clip(folder / "small.mp4", small, FPS)
    write_clip(folder / "fast.mp4", np.repeat(frames, 2, 0), 2 * FPS)
    write_clip(folder / "square.mp4", frames[:, :, :160], FPS)
    return folder


@pytest.fixture(scope="module")
def clips(folder, finder):
    names = ("true", "soft", "small", "fast", "square")
    return {name: track_clip(folder / f"{name}.mp4", finder) for name in names}


def test_a_clip_equals_itself(clips):
    found = compare(clips["true"], clips["true"], Networks())
    assert found.values["psnr_mouth"] == 100
    assert found.values["ssim_face"] == pytest.approx(1)
    assert found.values["lip_distance"] == 0
    assert found.values["face_likeness"] == 1
    assert found.values["sharpness_ratio"] == 1
    assert found.values["flicker_skin"] == found.values["flicker_skin_true"]
    assert found.frames == 30
    assert set(found.skipped) >= {"lse_c", "lpips", "identity", "fid", "fvd"}
    assert found.skipped["lpips"] == "give --lpips"
    assert set(found.values) | set(found.skipped) <= set(METRICS)
    assert not set(found.values) & set(found.skipped)


def test_a_soft_mouth_is_told(clips):
    found = compare(clips["soft"], clips["true"], Networks()).values
    assert found["sharpness_ratio"] < 0.5
    assert found["psnr_mouth"] < found["psnr_face"]
    assert found["ssim_mouth"] < 0.97 < 1
    assert found["gradient_similarity"] < 0.98


def test_other_sizes_and_rates_are_held_against_the_same_moments(clips):
    small = compare(clips["small"], clips["true"], Networks())
    assert 0.6 < small.values["face_likeness"] < 1
    assert small.values["psnr_face"] > 22  # half a pixel off it is 3 dB less
    fast = compare(clips["fast"], clips["true"], Networks())
    assert fast.fps == 25
    assert fast.frames == 30
    assert fast.values["psnr_face"] > 35
    with pytest.raises(UserError, match=r"160 × 160 and .*192 × 160"):
        compare(clips["square"], clips["true"], Networks())


def test_half_a_pixel_matters(clips, monkeypatch):
    """The crop of a smaller picture lies where the true one's does."""
    from latentsync.evaluation import measure as module

    plain = compare(clips["small"], clips["true"], Networks()).values["psnr_face"]
    scale = module._scale
    monkeypatch.setattr(module, "_scale", lambda a, b: scale(a, b) * 1.02)
    assert compare(clips["small"], clips["true"], Networks()).values["psnr_face"] < plain - 1


def test_one_clip_alone(clips):
    found = measure(clips["soft"], Networks(syncnet=learnt()))
    sharp = measure(clips["true"], Networks()).values
    assert found.values["sharpness"] < 0.5 * sharp["sharpness"]
    assert found.sync is not None
    assert found.values["sync_offset"] == found.sync.offset
    assert "lse_c" not in found.skipped
    silent = measure(clips["small"], Networks(syncnet=learnt()))
    assert "has no sound" in silent.skipped["lse_c"]
    assert "has no sound" in silent.skipped["landmark_offset"]


class Means(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def test_frechet_distances_over_clips(clips, tmp_path):
    torch.jit.script(Means()).save(str(tmp_path / "net.pt"))
    networks = Networks(fid=Frechet(Network(tmp_path / "net.pt")))
    results = [compare(clips[name], clips["true"], networks, name=name) for name in ("soft", "fast")]
    summary = summarize(results, {}, networks.frechets)
    assert summary.frechet["fid"][1] == 60
    assert summary.values["psnr_face"][2] == 2
    mean = np.mean([r.values["psnr_face"] for r in results])
    assert summary.values["psnr_face"][0] == pytest.approx(mean)
    assert any(row[0] == "FID" and "60 samples" in row[3] for row in summary_rows(summary))
    assert "fid" not in results[0].skipped


def test_pictures_are_drawn(clips):
    result = compare(clips["soft"], clips["true"], Networks(syncnet=learnt()))
    assert draw_comparison(result).shape[1:] == (960, 3)
    for picture in (draw_many([result]), draw_many([result, measure(clips["true"], Networks())])):
        assert picture.dtype == np.uint8
        assert picture.std() > 10
    green = np.abs(draw_sync(result.sync).astype(int) - (24, 128, 84)).sum(-1) < 12
    assert green.sum() > 200


# ---- a SyncNet's accuracy


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """As `latentsync prepare` leaves it: crops with a margin of 4 px, a record for each."""
    import wave

    out = tmp_path_factory.mktemp("prepared")
    (out / "clips").mkdir()
    lines = []
    for n in range(6):
        curve = opening(75, n)
        wide = np.pad(faces(curve, n), ((0, 0), (4, 4), (4, 4), (0, 0)))
        with wave.open(str(out / "sound.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((voice(curve, n).clamp(-1, 1) * 32767).short().numpy().tobytes())
        write_clip(out / "clips" / f"c{n}.mp4", wide, FPS, audio=out / "sound.wav")
        lines.append({"id": f"c{n}", "source": f"{n}.mp4", "status": "kept", "path": f"clips/c{n}.mp4", "margin": 4})
    lines.append({"id": "c9", "source": "9.mp4", "status": "dropped", "reason": "no_face"})
    (out / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    save_syncnet(out / "net.safetensors", learnt(), {})
    return out


def test_accuracy_is_far_above_chance_and_repeats(prepared):
    paths = find_clips(prepared)
    found = syncnet_accuracy(learnt(), paths, min_shift=3, pairs=12)
    assert found.pairs == 72
    assert found.in_sync.sum() == 36
    assert found.auc > 0.85
    assert found.at_threshold > 0.75
    assert found.likelihood[0] > found.likelihood[1] + 0.1
    again = syncnet_accuracy(learnt(), paths, min_shift=3, pairs=12)
    assert np.array_equal(found.likelihoods, again.likelihoods)
    other = syncnet_accuracy(learnt(), paths, min_shift=3, pairs=12, seed=1)
    assert not np.array_equal(found.likelihoods, other.likelihoods)
    assert draw_accuracy(found).std() > 5


def test_the_margin_of_prepared_clips_is_cut_off(prepared, tmp_path):
    import shutil

    (clip,) = clip_files([prepared / "clips" / "c1.mp4"])
    inside = sync_aligned(learnt(), clip)
    outside = sync_aligned(learnt(), clip_files([Path(shutil.copy(clip.path, tmp_path))])[0])
    assert inside.offset == 0
    assert inside.confidence > outside.confidence
    with pytest.raises(UserError, match="too narrow"):
        sync_aligned(ChungSyncNet().eval(), clip)


def test_accuracy_is_measured_on_the_part_of_each_clip(prepared):
    def measured(share, at=0.5):
        clips = [replace(clip, part=holdout_part(share, at)) for clip in find_clips(prepared)]
        return syncnet_accuracy(learnt(), clips).likelihoods

    assert len(measured(0.25)) == 48
    assert not np.array_equal(measured(0.25, 0), measured(0.25, 1))
    with pytest.raises(UserError, match=r"c0.mp4 has 0 windows to draw from; at least 2"):
        measured(0.05)
    with pytest.raises(UserError, match="Chung"):
        syncnet_accuracy(ChungSyncNet().eval(), find_clips(prepared))


def test_the_best_threshold_parts_the_two():
    likely, truth = np.array([0.1, 0.2, 0.6, 0.8, 0.9]), np.array([False, False, False, True, True])
    assert 0.6 < best_threshold(likely, truth) < 0.8
    assert best_threshold(np.array([0.3]), np.array([True])) < 0.3


# ---- the command line


@pytest.fixture
def run(monkeypatch):
    model = face_model()
    from latentsync.weights import registry

    find = registry.find
    monkeypatch.setattr(registry, "find", lambda n, *a: model if get(n).name == "face-landmarker" else find(n, *a))

    def call(*arguments):
        return CliRunner().invoke(app, ["eval", *map(str, arguments)])

    return call


def test_compare_on_the_screen_as_json_and_as_a_picture(run, folder, tmp_path):
    done = run("compare", folder / "soft.mp4", folder / "true.mp4", "--json", tmp_path / "r.json",
               "--picture", tmp_path / "p.png")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "PSNR, mouth" in done.output
    assert "not measured" in done.output
    assert "give --identity-network" in done.output
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["clips"][0]["values"]["psnr_mouth"] > 20
    assert facts["clips"][0]["skipped"]["fvd"] == "give --fvd-network"
    assert cv2.imread(str(tmp_path / "p.png")).shape[1] == 960


def test_two_folders_by_name(run, folder, tmp_path):
    made, true = tmp_path / "made", tmp_path / "true"
    for place, names in ((made, {"a": "soft", "b": "true", "c": "soft"}), (true, {"a": "true", "b": "true"})):
        place.mkdir()
        for name, source in names.items():
            (place / f"{name}.mp4").write_bytes((folder / f"{source}.mp4").read_bytes())
    (made / "d.mp4").write_text("no video")
    (true / "d.mp4").write_bytes((folder / "true.mp4").read_bytes())
    done = run("compare", made, true, "--json", "-")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert [c["name"] for c in facts["clips"]] == ["a", "b"]
    assert facts["summary"]["values"]["psnr_face"]["clips"] == 2
    assert set(facts["summary"]["skipped"]) == {"c", "d"}
    assert run("compare", made, folder / "true.mp4").exit_code == 2


def test_a_folder_or_one_clip_without_a_truth(run, folder, tmp_path):
    for name in ("soft", "true"):
        (tmp_path / f"{name}.mp4").write_bytes((folder / f"{name}.mp4").read_bytes())
    done = run("measure", tmp_path, "--picture", tmp_path / "p.png")
    assert done.exit_code == 0, done.output
    assert "2 clips" in done.output
    assert "flicker outside the lips" in done.output
    assert "within 1 frame" in done.output
    alone = run("measure", tmp_path / "soft.mp4", "--json", "-")
    assert json.loads(alone.stdout)["clips"][0]["values"]["flicker_skin"] > 0
    assert run("measure", tmp_path / "none").exit_code == 2


def test_sync_of_a_video_and_of_an_aligned_crop(run, folder, prepared, tmp_path):
    net = prepared / "net.safetensors"
    done = run("sync", prepared / "clips" / "c2.mp4", "--aligned", "--syncnet", net, "--json", "-")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)["sync"]
    assert (facts["offset"], facts["network"]) == (0, "stable")
    assert facts["lse_c"] == pytest.approx(np.median(facts["distances"]) - min(facts["distances"]), abs=2e-4)
    done = run("sync", folder / "true.mp4", "--syncnet", net, "--picture", tmp_path / "s.png")
    assert done.exit_code == 0, done.output
    assert "LSE-D" in done.output
    assert "by landmarks" in done.output
    plain = run("sync", folder / "true.mp4")
    assert "give --syncnet" in plain.output
    for wrong in (("--aligned",), ("--syncnet", folder / "true.mp4"), ("--picture", tmp_path / "s.gif")):
        bad = run("sync", folder / "true.mp4", *wrong)
        assert bad.exit_code == 2, wrong
        assert "Traceback" not in bad.output


def test_accuracy_on_the_screen(run, prepared, tmp_path):
    done = run("syncnet-accuracy", prepared / "net.safetensors", prepared, "--min-shift", 3, "--picture",
               tmp_path / "a.png", "--json", tmp_path / "a.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "accuracy at threshold 0.5" in done.output
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["pairs"] == 48
    assert facts["clips"] == 6
    assert facts["auc"] > 0.8


def test_accuracy_of_some_recordings(run, prepared):
    """The recordings are 0.mp4 …, their clips c0.mp4 …."""

    def clips(*options):
        done = run("syncnet-accuracy", prepared / "net.safetensors", prepared, "--json", "-", *options)
        return json.loads(done.stdout)["clips"] if done.exit_code == 0 else done.output

    assert clips("--only", "1,3,7") == 2
    assert clips("--only", "1,3", "--holdout-people", "3") == 1
    assert clips("--holdout-people", "1, 2.mp4, 5", "--holdout-time", "0.5") == 3
    assert "no recording that --only" in clips("--only", "c1")
