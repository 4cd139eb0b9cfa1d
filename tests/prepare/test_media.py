"""Real and awkward files: each ends with the reason that is true of it."""

import json
import shutil
from pathlib import Path

import pytest

from latentsync.media.probe import probe
from latentsync.prepare.settings import PrepareSettings

from ..tiny import face_model
from .scenes import inline
from .test_run import heard, manifest

pytest.importorskip("scenedetect", reason="PySceneDetect, of the extra `prepare`")

pytestmark = [pytest.mark.slow, pytest.mark.media]

REAL = {
    "clips/grid/pA_brbk7n.mpg": "kept",  # interlaced-looking MPEG-1
    "edge/mpegts_start_time_not_zero.ts": "kept",  # times begin at 1.48 s
    "edge/rotation_metadata_portrait.mp4": "kept",
    "edge/vfr_dropped_frames.mp4": "kept",
    "edge/fps_60.mp4": "kept",
    "edge/two_faces_big_and_small.mp4": "several_faces",
    "edge/noface_cartoon_4s.mp4": "no_face",
    "edge/tiny_face_270x480.mp4": "small_face",
    "edge/no_audio_stream.mp4": "no_sound",
    "edge/silent_audio_stereo48k.mp4": "silent",
    "edge/five_frames.mp4": "short",
    "broken.mp4": "unreadable",
    "sound.mp4": "unreadable",
    "text.mp4": "unreadable",
}


@pytest.fixture(scope="module")
def prepared(media, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    for name in REAL:
        if (media / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(media / name)
    whole = (media / "edge" / "fps_24.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "sound.mp4").write_bytes((media / "clips" / "hdtf_wda_aoc.mp4").read_bytes()[100_000:200_000])
    (folder / "text.mp4").write_text("words", encoding="utf-8")
    (folder / "cut.mp4").symlink_to(media / "edge" / "cut_at_4s_two_people.mp4")
    (folder / "gone.mp4").symlink_to(media / "edge" / "face_slides_out_3s_to_7s_and_back.mp4")
    return folder


@pytest.fixture(scope="module")
def out(prepared, tmp_path_factory) -> Path:
    from latentsync.prepare.runner import prepare

    out = tmp_path_factory.mktemp("out")
    settings = PrepareSettings(min_seconds=2.0, max_seconds=10.0, resolution=128, skip=("sync", "quality"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTSYNC_MODELS", str(face_model().parent))
        prepare(prepared, out, settings, inline)
    return out


def test_each_file_has_its_true_reason(out):
    found = {r["source"]: r["reason"] or r["status"] for r in manifest(out) if r["source"] in REAL}
    assert found == REAL


def test_two_people_one_after_the_other_are_two_clips(out):
    pieces = [(r["start"], r["stop"], r["status"]) for r in manifest(out) if r["source"] == "cut.mp4"]
    assert pieces == [(0.0, 4.0, "kept"), (4.0, 8.0, "kept")]


def test_a_face_that_leaves_is_lost(out):
    assert {r["reason"] for r in manifest(out) if r["source"] == "gone.mp4"} == {"face_lost"}


def test_clips_of_any_source_run_at_25_with_sound_of_the_same_length(out):
    kept = [r for r in manifest(out) if r["status"] == "kept"]
    for record in kept:
        info = probe(out / record["path"])
        assert (info.fps, info.width, info.height, info.frames) == (25, 128, 128, record["frames"]), record["source"]
        assert len(heard(out / record["path"])) == record["frames"] * 640, record["source"]
    facts = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert facts["kept"]["clips"] == len(kept)


def test_report_draws(out, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra `prepare`")
    from latentsync.prepare.report import draw_report
    from latentsync.prepare.runner import Report

    report = Report(Path(shutil.copytree(out, tmp_path / "copy")), PrepareSettings(), manifest(out))
    assert draw_report(report).stat().st_size > 10_000
