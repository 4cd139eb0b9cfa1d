"""Whole runs over small talking videos: reasons, resuming, changed options, sync, quality, dying workers, the door."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentsync.audio.load import load_audio
from latentsync.cli import main as cli
from latentsync.errors import UserError
from latentsync.evaluation import syncnet_sync
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.prepare import clip_steps, io, source_steps
from latentsync.prepare.local import run_local
from latentsync.prepare.report import REASONS
from latentsync.prepare.runner import prepare
from latentsync.prepare.settings import STEPS, PrepareSettings

from ..tiny import face_model
from .deadly import buggy, deadly
from .scenes import UNMEASURED, WORDS, footage, results, run

pytest.importorskip("scenedetect", reason="PySceneDetect, of the extra `prepare`")


@pytest.fixture(scope="module", autouse=True)
def models(request):
    """The face model, found by the product itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTSYNC_MODELS", str(face_model().parent))
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return footage(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory, models) -> Path:
    """An uninterrupted run, which leaves its sources as they were."""
    out = tmp_path_factory.mktemp("whole")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in videos.rglob("*") if p.is_file()}
    run(videos, out)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in videos.rglob("*") if p.is_file()} == before
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    """That run, to go on from."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def heard(path: Path) -> np.ndarray:
    return io.as_pcm(load_audio(path).waveform.numpy())


def manifest(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_file_ends_with_its_reason(videos, whole):
    records = manifest(whole)
    found = {(r["source"], r["start"], r["stop"]): (r["status"], r["step"], r["reason"]) for r in records}
    assert found == {
        ("a/x.mp4", 0.0, 0.8): ("kept", None, None),
        ("b/face then none.mp4", 0.0, 0.8): ("kept", None, None),
        ("b/face then none.mp4", 0.8, 1.6): ("dropped", "face", "no_face"),
        ("b/x.mp4", 0.0, 0.72): ("kept", None, None),
        ("brief.mp4", 0.0, 0.36): ("dropped", "clips", "short"),
        ("long.mp4", 0.0, 0.88): ("kept", None, None),
        ("long.mp4", 0.88, 1.8): ("kept", None, None),
        ("mute.mp4", 0.0, 0.8): ("dropped", "rate", "no_sound"),
        ("text.mp4", 0.0, None): ("dropped", "readable", "unreadable"),
    }
    assert [list(r) for r in records] == [list(records[0])] * len(records)
    assert len({r["id"] for r in records}) == len(records)
    assert str(videos) not in (whole / "manifest.jsonl").read_text(encoding="utf-8")
    facts = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    assert facts["kept"]["clips"] == 5
    assert facts["dropped"]["no_face"] == {"clips": 1, "seconds": 0.8}
    assert facts["skipped"] == ["quality", "sync"]
    assert facts["sources"] == 7
    assert facts["other_files"] == 2


def test_clips_are_aligned_crops_with_their_sound_and_landmarks(whole):
    for record in (r for r in manifest(whole) if r["status"] == "kept"):
        path = whole / record["path"]
        info = probe(path)
        assert (info.fps, info.frames, info.width, info.height) == (25, record["frames"], 64, 64)
        assert record["frames"] == round((record["stop"] - record["start"]) * 25)
        known = io.read_arrays(path.with_suffix(".npz"))
        assert known["landmarks"].shape == (info.frames, 68, 2)
        assert known["opening"].shape == (info.frames,)
        nose = known["landmarks"][:, 27:36].mean(1)
        assert np.abs(nose - [32, 27.5]).max() < 4, "the template puts the nose there at 64 pixels"
        assert record["face_px"] >= 40
        assert record["offset"] is None
        assert record["skipped"] == ["quality", "sync"]


def test_the_sound_is_the_sources_own_to_the_sample(whole):
    records = {(r["source"], r["start"]): r for r in manifest(whole)}
    late, early = records["long.mp4", 0.88], records["long.mp4", 0.0]
    wav = next((whole / "work" / "audio").glob("long-*.wav"))
    assert np.array_equal(heard(whole / early["path"]), io.read_wav(wav, 0, 22 * 640))
    assert np.array_equal(heard(whole / late["path"]), io.read_wav(wav, 22 * 640, 45 * 640))


def test_a_second_run_does_nothing_and_says_the_same(videos, out):
    """No process is started for it and no face model loaded."""
    before, times = results(out), {p: p.stat().st_mtime_ns for p in (out / "clips").iterdir()}

    def idle(plan, kind, items):
        return run_local(plan, kind, items, 2, build=unwanted)

    def unwanted(plan, kind):
        raise AssertionError

    report = prepare(videos, out, PrepareSettings(**UNMEASURED), idle)
    assert results(out) == before
    assert not report.timings
    assert not report.orphans
    assert {p: p.stat().st_mtime_ns for p in (out / "clips").iterdir()} == times


@pytest.fixture(scope="module")
def one(videos, tmp_path_factory, models) -> dict[str, bytes]:
    """What an uninterrupted run over the folder `a` gives."""
    out = tmp_path_factory.mktemp("one")
    run(videos / "a", out)
    return results(out)


@pytest.mark.parametrize("step", STEPS)
def test_interrupted_at_any_step_it_goes_on(videos, one, tmp_path, step):
    """Its files are written, but not yet that it was done. test_killed.py does so by force, at every write."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (source_steps, clip_steps):
            steps = tuple(_interrupted(s) if s.name == step else s for s in module.STEPS)
            patch.setattr(module, "STEPS", steps)
        with pytest.raises(KeyboardInterrupt):
            run(videos / "a", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    run(videos / "a", tmp_path / "out")
    assert results(tmp_path / "out") == one
    assert not list((tmp_path / "out").rglob(".*.part"))


def _interrupted(step):
    def stop(run):
        def broken(workspace, item, data):
            run(workspace, item, data)
            raise KeyboardInterrupt

        return broken

    return replace(step, run=stop(step.run), skipped=stop(step.skipped))


def test_changed_options_do_again_what_hangs_on_them(videos, out):
    assert set(run(videos, out, resolution=128).timings) == {"crops", "sync", "quality"}
    assert probe(out / next(r["path"] for r in manifest(out) if r["path"])).width == 128
    assert set(run(videos, out, resolution=128, min_face=2000.0).timings) == {"face"}
    assert {r["reason"] for r in manifest(out) if r["step"] == "face"} == {"small_face", "no_face"}
    assert not list((out / "clips").iterdir()), "nothing that was dropped stays"
    assert set(run(videos, out, max_seconds=2.0).timings) == {"clips", "face", "crops", "sync", "quality"}
    assert ("long.mp4", 0.0, 1.8) in {(r["source"], r["start"], r["stop"]) for r in manifest(out)}


def test_a_margin_is_kept_around_the_crop(videos, out, whole):
    run(videos, out, margin=0.125)
    record = next(r for r in manifest(out) if r["source"] == "a/x.mp4")
    assert (record["resolution"], record["margin"]) == (64, 8)
    with VideoReader(probe(out / record["path"])) as wide, VideoReader(probe(whole / record["path"])) as plain:
        a, b = next(wide.read([5])), next(plain.read([5]))
    assert a.shape == (80, 80, 3)
    assert np.abs(a[8:-8, 8:-8].astype(int) - b).mean() < 3
    shift = io.read_arrays((out / record["path"]).with_suffix(".npz"))["landmarks"]
    assert np.allclose(shift - io.read_arrays((whole / record["path"]).with_suffix(".npz"))["landmarks"], 8, atol=1e-3)


def test_a_changed_source_is_done_again(videos, out, tmp_path):
    copy = Path(shutil.copytree(videos, tmp_path / "copy"))
    run(copy, out)
    shutil.copy(copy / "b" / "x.mp4", copy / "a" / "x.mp4")
    report = run(copy, out)
    assert set(report.timings) == set(STEPS)
    by_source = {r["source"]: r for r in manifest(out)}
    assert by_source["a/x.mp4"]["frames"] == by_source["b/x.mp4"]["frames"] == 18


# ------------------------------------------------------------------------------------------------------ sync, quality


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """prepare() with a real small StableSyncNet, whose verdict is replaced by the one wanted."""
    from latentsync.models.syncnet import EncoderConfig, StableSyncNet, SyncNetConfig
    from latentsync.weights.syncnet_files import save_syncnet

    audio = EncoderConfig(1, (32, 32, 32), ((5, 4), (4, 4), (4, 4)), (False,) * 3)
    visual = EncoderConfig(48, (32, 32, 32), ((4, 4), (4, 8), (8, 8)), (False,) * 3)
    net = StableSyncNet(SyncNetConfig(audio, visual, size=(128, 256), mels=(80, 52)))
    path = save_syncnet(tmp_path / "net.safetensors", net, {})

    def judge(offset, confidence, **more):
        def verdict(net, faces, waveform, **options):
            shape = {face.shape for face in faces}
            assert shape == {(64, 64, 3)}
            assert np.abs(waveform).max() <= 1
            return syncnet_sync.SyncScore(
                "stable", 1, 1, np.arange(1), np.zeros(1), offset, confidence, 0.0, 0.0, np.zeros(1)
            )

        monkeypatch.setattr(syncnet_sync, "sync_offset", verdict)
        return {"skip": ("quality",), "syncnet": path, "min_confidence": 0.5} | more

    return judge


def test_late_sound_is_put_right_from_the_sources_own(videos, out, judged):
    for offset in (3, -3, 0):  # one after the other: a moved sound must not be moved again
        run(videos, out, **judged(offset, 1.0))
        record = next(r for r in manifest(out) if (r["source"], r["start"]) == ("long.mp4", 0.88))
        assert (record["offset"], record["confidence"]) == (offset, 1.0)
        wav = next((out / "work" / "audio").glob("long-*.wav"))
        wanted = io.read_wav(wav, (22 + offset) * 640, (45 + offset) * 640)
        assert np.array_equal(heard(out / record["path"]), wanted), offset
        (out / "work" / "clip" / f"{record['id']}.json").unlink()
    run(videos, out, **judged(3, 1.0))
    run(videos, out)
    assert np.array_equal(heard(out / record["path"]), io.read_wav(wav, 22 * 640, 45 * 640))


def test_what_is_out_of_sync_is_dropped_and_comes_back_with_other_limits(videos, out, judged, whole):
    run(videos, out, **judged(0, 0.4))
    dropped = [r for r in manifest(out) if r["step"] == "sync"]
    assert len(dropped) == 5
    assert {r["reason"] for r in dropped} == {"low_confidence"}
    assert {r["confidence"] for r in dropped} == {0.4}
    assert not list((out / "clips").iterdir())
    assert set(run(videos, out, **judged(0, 0.4, min_confidence=0.3)).timings) == {"crops", "sync", "quality"}
    assert sum(r["status"] == "kept" for r in manifest(out)) == 5
    run(videos, out, **judged(7, 1.0, max_offset=6, min_confidence=0.6))
    assert {r["reason"] for r in manifest(out) if r["step"] == "sync"} == {"far_offset"}


def test_a_real_syncnet_judges(videos, tmp_path, judged, monkeypatch):
    options = judged(0, 0.0)
    monkeypatch.undo()
    monkeypatch.setenv("LATENTSYNC_MODELS", str(face_model().parent))
    report = run(
        videos / "long.mp4",
        tmp_path / "out",
        **options | {"min_confidence": -9.0, "min_seconds": 1.7, "max_seconds": 2.0, "max_offset": 15},
    )
    assert [r["status"] for r in report.records] == ["kept"]
    assert isinstance(report.records[0]["offset"], int)
    assert np.isfinite(report.records[0]["confidence"])


class Brightness(torch.nn.Module):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return 100 * pictures.mean([1, 2, 3])


def test_quality_is_a_networks_mean_score(videos, out, tmp_path):
    path = tmp_path / "quality.pt"
    torch.jit.script(Brightness()).save(str(path))
    run(videos, out, skip=("sync",), quality=path, min_quality=0.0)
    kept = [r for r in manifest(out) if r["status"] == "kept"]
    assert len(kept) == 5
    for record in kept:
        with VideoReader(probe(out / record["path"])) as reader:
            frames = np.stack(list(reader.read(range(record["frames"]))))
        assert record["quality"] == pytest.approx(frames.mean() / 2.55, abs=0.5)
    run(videos, out, skip=("sync",), quality=path, min_quality=99.0)
    assert {r["reason"] for r in manifest(out) if r["step"] == "quality"} == {"low_quality"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"skip": ()}, "The steps sync and quality .* --syncnet .* --quality .* add --skip sync --skip quality"),
        ({"skip": ("quality",)}, r"The step sync .* add --skip sync\."),
        ({"skip": ("sync",)}, "--skip quality"),
        ({"skip": ("sync",), "quality": Path("none.pt")}, "There is no file none.pt"),
        ({"skip": ("sync",), "quality": Path(__file__)}, "not a TorchScript"),
    ],
)
def test_a_missing_model_stops_before_any_work(videos, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        run(videos, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_stable_syncnet_needs_a_limit_of_its_own(videos, tmp_path, judged):
    with pytest.raises(UserError, match="--min-confidence"):
        run(videos, tmp_path / "out", **judged(0, 1.0, min_confidence=None))


# -------------------------------------------------------------------------------------------------------- processes


def test_dying_workers_lose_nothing(videos, whole, out):
    shutil.rmtree(out / "work" / "clip")
    (out / "once").touch()
    report = prepare(videos, out, PrepareSettings(**UNMEASURED), deadly(2))
    failed = [r for r in report.records if r["reason"] == "error"]
    assert [r["source"] for r in failed] == ["b/x.mp4"]
    assert "its worker died 2 times (exit code -9)" in failed[0]["detail"]
    assert report.errors == 1
    assert not (out / "once").exists()
    others = [r for r in manifest(out) if r["source"] != "b/x.mp4"]
    assert others == [r for r in manifest(whole) if r["source"] != "b/x.mp4"]
    run(videos, out)  # what failed is tried again
    assert results(out) == results(whole)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["source", "clip"])
def test_a_bug_is_not_a_bad_input(videos, tmp_path, kind, workers, caplog):
    """It keeps its traceback, in the log and in errors.log, does not end the rest, and is tried again; a bad input is
    a dropped record and nothing else."""
    videos = Path(shutil.copytree(videos / "a", tmp_path / "videos"))
    shutil.copy(videos / "x.mp4", videos / "y.mp4")
    (videos / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    with caplog.at_level("DEBUG", "latentsync.prepare"):
        report = run(videos, out, buggy(kind, workers))
    assert [(r["source"], r["detail"]) for r in report.records if r["reason"] == "error"] == [
        ("y.mp4", "TypeError: wrong")
    ]
    assert {r["source"]: r["status"] for r in report.records if r["reason"] != "error"} == {
        "x.mp4": "kept",
        "text.mp4": "dropped",
    }
    for text in ((out / "errors.log").read_text(), caplog.text):
        assert text.count("Traceback") == 1
        assert "in bug\n" in text
        assert "TypeError: wrong" in text
    assert run(videos, out).errors == 0
    assert not (out / "errors.log").exists()


def test_a_full_disk_stops_the_run(videos, tmp_path, monkeypatch):
    def full(workspace, item, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source_steps, "STEPS", (replace(source_steps.STEPS[0], run=full),))
    with pytest.raises(UserError, match="No space left"):
        run(videos, tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------- door


def call(*words: object):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_the_command_shows_what_it_did(videos, out, whole):
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra `prepare`")
    done = call("prepare", videos, out, *WORDS, "--workers", "1")
    assert done.exit_code == 0, done.output
    assert results(out).keys() == results(whole).keys()
    assert results(out)["manifest.jsonl"] == results(whole)["manifest.jsonl"]
    for said in ("kept", "no_face", REASONS["no_sound"], "skipped with --skip: quality, sync", "report.png"):
        assert said in done.output
    picture = (out / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    facts = json.loads(call("prepare", videos, out, *WORDS, "--workers", "1", "--no-chart", "--json", "-").stdout)
    assert (facts["kept"]["clips"], facts["errors"], facts["timings"]) == (5, 0, {})
    listed = call("filelist", out)
    assert listed.stdout.splitlines() == [str((out / r["path"]).resolve()) for r in manifest(out) if r["path"]]
    assert call("filelist", out, "--holdout-sources", "*", "-o", out / "l.txt").exit_code == 2
    rest = call("filelist", out, "--holdout-sources", "long*").stdout.splitlines()
    assert [path for path in listed.stdout.splitlines() if "long-" not in path] == rest
    assert call("filelist", videos).exit_code == 2
    assert call("filelist", out, "--only", "long*", "-o", out / "l.txt").stdout.endswith("l.txt: 2 clips\n")


def test_the_command_says_what_is_missing(videos, tmp_path):
    done = call("prepare", videos, tmp_path / "out", "--skip", "quality")
    assert done.exit_code == 2
    assert "--skip sync" in done.output
    assert call("prepare", videos, tmp_path / "out", "--skip", "crops").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_defaults_are_the_settings():
    import typer

    command = typer.main.get_command(cli.app).commands["prepare"]  # type: ignore[attr-defined]
    defaults = {p.name: p.default for p in command.params}
    for name, value in vars(PrepareSettings()).items():
        if name != "skip":
            assert defaults[name] == value, name
