"""A test set of pairs, several runs side by side, and image quality without a reference."""

import csv
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentsync.batch.jobs import read_jobs
from latentsync.cli.main import app
from latentsync.errors import UserError
from latentsync.evaluation.networks import Quality
from latentsync.evaluation.pairs import draw_pairs, speeches, write_pairs
from latentsync.evaluation.runs import draw_side_by_side, read_report, run_names, side_by_side

from ..tiny import face_model, pan, write_clip, write_speech


def command(*words):
    return CliRunner().invoke(app, ["eval", *map(str, words)])


@pytest.fixture
def places(tmp_path):
    """Five videos and three speeches, of which two are of videos. What is in them does not matter yet."""
    for name in ("videos/a.mp4", "videos/b.mp4", "videos/c.mp4", "videos/d.mkv", "videos/e.mp4",
                 "speech/a.wav", "speech/b.flac", "speech/x.m4a"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path / "videos", tmp_path / "speech"


# ---- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 9, 13])
def test_pairs_are_spread_evenly_and_never_a_clip_and_its_own_speech(places, count):
    videos, speech = sorted(places[0].iterdir()), speeches(places[1])
    for seed in range(20):
        pairs = draw_pairs(videos, speech, seed, count)
        assert len({(pair.video, pair.audio) for pair in pairs}) == len(pairs) == (count or 5)
        assert all(pair.video.stem != pair.audio.stem for pair in pairs)
        uses = [sum(pair.video == video for pair in pairs) for video in videos]
        assert count == 13 or max(uses) - min(uses) <= 1  # 13 are all that there are
        if not count:
            assert uses == [1] * 5
    draws = [draw_pairs(videos, speech, seed, 5) for seed in range(20)]
    assert draws[3] == draw_pairs(list(reversed(videos)), list(reversed(speech)), 3, 5)
    assert len({tuple(pair.out for pair in pairs) for pairs in draws}) > 5


def test_too_few_pairs_and_two_of_one_name(places):
    videos, speech = sorted(places[0].iterdir()), speeches(places[1])
    with pytest.raises(UserError, match=r"13 pairs .* and 14 are wanted"):
        draw_pairs(videos, speech, 0, 14)
    with pytest.raises(UserError, match="names of their own"):
        draw_pairs([places[0] / "one" / "a.mp4", places[0] / "two" / "a.mp4"], speech, 0, 4)


def test_a_list_is_for_batch_and_is_not_overwritten(places, tmp_path):
    out = tmp_path / "pairs.csv"
    done = command("pairs", *places, "-o", out, "--count", 4)
    assert done.exit_code == 0, done.output
    jobs = read_jobs(out, tmp_path / "results")
    assert len(jobs) == 4
    assert all(job.out == tmp_path / "results" / f"{job.video.stem}--{job.audio.stem}.mp4" for job in jobs)
    before = out.stat().st_mtime_ns
    again = command("pairs", *places, "-o", out, "--count", 4)
    assert "already there" in again.output
    other = command("pairs", *places, "-o", out, "--count", 4, "--seed", 5)
    assert other.exit_code == 2
    assert "holds other pairs" in other.output
    assert out.stat().st_mtime_ns == before


def test_videos_are_speech_where_there_are_no_sounds(places):
    assert [path.name for path in speeches(places[0])] == ["a.mp4", "b.mp4", "c.mp4", "d.mkv", "e.mp4"]
    with pytest.raises(UserError, match="no folder"):
        speeches(places[0] / "gone")
    assert not write_pairs(places[0] / "new.csv", [])


# ---- side by side ----------------------------------------------------------------------------------------------------

RUNS = {
    "old": {"a": {"ssim_mouth": 0.5, "opening_error": 0.02, "sharpness": 10.0}, "b": {"ssim_mouth": 0.7}, "c": {}},
    "new": {"a": {"ssim_mouth": 0.9, "opening_error": 0.03, "sharpness": 12.0},
            "b": {"ssim_mouth": 0.7, "opening_error": 0.01}, "d": {"ssim_mouth": 1.0}},
}  # fmt: skip


def test_means_are_over_what_all_runs_have():
    found = side_by_side(RUNS, {"new: e": "no face"})
    assert found.clips == ["a", "b"]
    assert found.metrics() == ["opening_error", "ssim_mouth", "sharpness"]
    assert found.values("opening_error") == {"old": np.array([0.02]), "new": np.array([0.03])}  # b has it in one only
    assert [float(found.values("ssim_mouth")[name].mean()) for name in RUNS] == pytest.approx([0.6, 0.8])
    assert (found.best("ssim_mouth"), found.best("opening_error"), found.best("sharpness")) == ("new", "old", None)
    assert found.skipped == {"new: e": "no face", "old: c": "not in every run", "new: d": "not in every run"}
    rows = {row[0]: row[1:] for row in found.rows()}
    assert rows["SSIM, mouth"] == ("higher", "0.600 ± 0.141", "0.800 ± 0.141 *", "2")
    lines = list(csv.DictReader(found.as_csv().splitlines()))
    assert [(line["run"], line["clip"], line["ssim_mouth"]) for line in lines] == [
        ("old", "a", "0.5"), ("old", "b", "0.7"), ("new", "a", "0.9"), ("new", "b", "0.7"),
    ]  # fmt: skip
    facts = json.loads(json.dumps(found.as_dict()))
    assert facts["means"]["ssim_mouth"]["new"] == {"mean": 0.8, "sd": 0.141421, "clips": 2}
    assert facts["best"] == {"opening_error": "old", "ssim_mouth": "new", "sharpness": None}


def test_equal_means_have_no_best_and_other_clips_nothing_in_common():
    same = {"a": {"ssim_mouth": 0.5}}
    assert side_by_side({"x": same, "y": same}).best("ssim_mouth") is None
    with pytest.raises(UserError, match="no clip of the same name"):
        side_by_side({"x": same, "y": {"b": {"ssim_mouth": 0.5}}})


def test_the_chart_marks_the_best():
    picture = draw_side_by_side(side_by_side(RUNS))
    assert picture.dtype == np.uint8
    blue = (np.abs(picture.astype(int) - (31, 119, 180)).max(2) < 12).sum()
    same = draw_side_by_side(side_by_side({name: {"a": {"ssim_mouth": 0.5}} for name in RUNS}))
    assert blue > 1000
    assert (np.abs(same.astype(int) - (31, 119, 180)).max(2) < 12).sum() == 0


def test_names_of_runs(tmp_path):
    assert run_names([tmp_path / "a" / "out", tmp_path / "b" / "out"]) == ["a/out", "b/out"]
    (tmp_path / "x.json").touch()
    assert run_names([tmp_path / "x.json", tmp_path / "y"]) == ["x", "y"]
    with pytest.raises(UserError, match="twice"):
        run_names([tmp_path, tmp_path])


@pytest.mark.parametrize("content", ["", "[]", '{"clips": [{"name": 1}]}', '{"clips": 3}'])
def test_no_report(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is not a report"):
        read_report(path)


def test_folders_and_reports_from_the_command_line(tmp_path):
    """A folder and the report of one; a clip without a face is listed, and the rest is compared."""
    face_model()
    frames, sound = pan(30, 192, 160), write_speech(tmp_path / "speech.wav", 1.2)
    for name, shown in (("a", frames), ("b", frames // 2)):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "clip.mp4", shown, Fraction(25), audio=sound)
    write_clip(tmp_path / "b" / "nobody.mp4", frames * 0, Fraction(25), audio=sound)
    report, out = tmp_path / "a.json", [tmp_path / name for name in ("runs.png", "runs.json", "runs.csv")]
    quality = tmp_path / "bright.pt"
    torch.jit.script(Bright()).save(quality)
    done = command("measure", tmp_path / "a", "--json", report, "--quality-network", quality)
    assert done.exit_code == 0, done.output
    done = command("runs", report, tmp_path / "b", "--quality-network", quality, "--picture", out[0], "--json", out[1],
                   "--csv", out[2])  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(out[1].read_text())
    assert facts["clips"] == ["clip"]
    assert facts["best"]["quality"] == "a"
    means = {name: found["mean"] for name, found in facts["means"]["quality"].items()}
    assert means["a"] == pytest.approx(2 * means["b"], rel=0.05)
    assert "b: nobody" in done.output
    assert all(path.stat().st_size > 50 for path in out)
    assert command("runs", tmp_path / "a").exit_code == 2


# ---- quality ---------------------------------------------------------------------------------------------------------


class Bright(torch.nn.Module):
    """Scores images by their mean."""

    def forward(self, x):
        return x.mean(dim=(1, 2, 3))


class Wrong(torch.nn.Module):
    def forward(self, x):
        return x


def test_a_network_of_the_users_own(tmp_path):
    for module in (Bright(), Wrong()):
        torch.jit.script(module).save(tmp_path / f"{type(module).__name__}.pt")
    picture = np.full((8, 8, 3), 51, np.uint8)
    assert Quality(str(tmp_path / "Bright.pt"))(picture) == pytest.approx(0.2)
    with pytest.raises(UserError, match="one score"):
        Quality(str(tmp_path / "Wrong.pt"))(picture)


def test_arniqa_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"ARNIQA needs the file ARNIQA\.pth in .*--quality-network"):
        Quality("arniqa")


def test_arniqa_by_torchmetrics(tmp_path, monkeypatch):
    """With random weights under the names that torchmetrics loads: a number, the same for the same image."""
    pytest.importorskip("torchmetrics")
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*list(models.resnet50().children())[:-1])
    torch.save({f"model.{key}": tensor for key, tensor in layers.state_dict().items()}, folder / "ARNIQA.pth")
    torch.jit.script(Regressor()).save(folder / "regressor_koniq10k.pth")
    net, picture = Quality("arniqa"), np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    value = net(picture)
    assert np.isfinite(value)
    assert net(picture) == value
    assert net(255 - picture) != value


class Regressor(torch.nn.Module):
    """As the authors' file: weights (1, 4096), biases ()."""

    def __init__(self):
        super().__init__()
        self.weights, self.biases = torch.nn.Parameter(torch.randn(1, 4096)), torch.nn.Parameter(torch.tensor(50.0))

    def forward(self, x):
        return x @ self.weights.T + self.biases
