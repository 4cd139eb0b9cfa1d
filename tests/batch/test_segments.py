"""A clip in segments: cut as a single run's windows lie, joined to the very same file."""

from fractions import Fraction
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync.batch import segments as module
from latentsync.batch.parallel.processes import InProcessPool
from latentsync.batch.segments import Segment, lipsync_segments, plan_segments
from latentsync.batch.worker import LipSyncWorker
from latentsync.errors import UserError
from latentsync.pipeline import lipsync_file
from latentsync.rendering import grouped
from latentsync.settings import FITS, Settings
from latentsync.timeline import fit_timeline

from .parts import frames_of

QUICK = {"steps": 1, "guidance": 1}


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@st.composite
def clips(draw):
    """A timeline and shown segments in it that are disjoint and in order."""
    source, seconds = draw(st.integers(1, 90)), draw(st.fractions(Fraction(1, 5), 8, max_denominator=50))
    timeline = fit_timeline(Fraction(25), source, seconds, draw(st.sampled_from(FITS)))
    edges = draw(st.lists(st.integers(0, timeline.frames), max_size=8, unique=True).map(sorted))
    return timeline, list(zip(edges[::2], edges[1::2], strict=False))


@given(clips(), st.floats(0.05, 4), st.integers(1, 3))
def test_segments_are_the_single_runs_windows(clip, seconds, batch):
    timeline, shown = clip
    segments = plan_segments(shown, timeline.fps, seconds, batch)
    groups = {tuple(group): start for start, stop in shown for group in grouped(start, stop, batch)}
    assert [group for segment in segments for group in segment.groups] == list(groups)
    for segment in segments:
        assert segment.references == tuple(groups[group] for group in segment.groups)
    assert all(a.stop <= b.start for a, b in pairwise(segments))
    rendered = [sum(g[-1].stop - g[0].keep for g in s.groups) for s in segments]
    wanted = Fraction(str(seconds)) * 25  # 0.28 s are 7 frames, and 7.000000000000001 by floats
    assert all(frames >= wanted for frames in rendered[:-1])
    assert all(
        frames - (s.groups[-1][-1].stop - s.groups[-1][0].keep) < wanted
        for frames, s in zip(rendered, segments, strict=True)
    )


# ---- the same frames -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(spec):
    pool = InProcessPool(spec, LipSyncWorker)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def still_pool(still_spec):
    pool = InProcessPool(still_spec, LipSyncWorker)
    yield pool
    pool.close()


CASES = [
    # a moving or a held reference; the sound (None: the clip's own); settings
    ("pool", "long.wav", {"fit": "loop", "window_batch": 2, "guidance": 2.0}),
    ("still_pool", None, {"watermark": "visible"}),
    pytest.param("pool", "long.wav", {"fit": "hold"}, marks=pytest.mark.slow),
    pytest.param("still_pool", "long.wav", {}, marks=pytest.mark.slow),
]


@pytest.fixture
def cuts(monkeypatch):
    """The segments that were cut."""
    made: list[Segment] = []
    monkeypatch.setattr(module, "plan_segments", lambda *a, **k: made.extend(plan_segments(*a, **k)) or made)
    return made


@pytest.mark.parametrize(("kind", "audio", "settings"), CASES)
def test_the_same_file_as_a_single_run(request, material, tmp_path, cuts, kind, audio, settings):
    pool = request.getfixturevalue(kind)
    settings, audio = Settings(**QUICK | settings), audio and material / audio
    models = pool.worker.models
    single = lipsync_file(material / "scenes.mp4", audio, tmp_path / "single.mp4", models=models, settings=settings)
    steps = []
    joined = lipsync_segments(
        material / "scenes.mp4",
        audio,
        tmp_path / "split.mp4",
        pool=pool,
        seconds=0.7,
        settings=settings,
        on_step=steps.append,
    )
    assert len(single.segments) >= 3
    assert len(cuts) >= 3
    assert np.array_equal(frames_of(tmp_path / "single.mp4"), frames_of(tmp_path / "split.mp4"))
    assert (tmp_path / "single.mp4").read_bytes() == (tmp_path / "split.mp4").read_bytes()
    told = [joined.as_dict() | {"timings": 0, "out": 0}, single.as_dict() | {"timings": 0, "out": 0}]
    assert told[0] == told[1]
    assert {"track", "encode", "sample", "paste", "write", "other"} <= joined.timings.keys()
    assert [(s.done, s.total) for s in steps if s.stage == "sample"][-1] == (steps[-1].total, steps[-1].total)


def test_segments_do_not_know_what_was_painted_before(material, pool, cuts, tmp_path, monkeypatch):
    """Each segment by a worker that has painted nothing, and in another order than the clip's: the same patches."""
    plans = []
    monkeypatch.setattr(pool, "share", lambda plan: plans.append(plan) or plan)
    lipsync_segments(
        material / "scenes.mp4", None, tmp_path / "x.mp4", pool=pool, seconds=0.7, settings=Settings(**QUICK)
    )
    first = [pool.worker.render(plans[0], segment)[0] for segment in cuts]
    again = []
    for segment in reversed(cuts):
        pool.worker.release()
        again.insert(0, pool.worker.render(plans[0], segment)[0])
    for a, b in zip(chain(*first), chain(*again), strict=True):
        assert (a.top, a.left) == (b.top, b.left)
        assert np.array_equal(a.pixels, b.pixels)
        assert a.pixels.size < 112 * 128 * 3 * 0.6  # what changed, not the frame


def test_a_picture_in_segments(material, pool, cuts, tmp_path):
    settings, models = Settings(**QUICK), pool.worker.models
    arguments = material / "face.png", material / "long.wav"
    lipsync_file(*arguments, tmp_path / "single.mp4", models=models, settings=settings)
    lipsync_segments(*arguments, tmp_path / "split.mp4", pool=pool, seconds=1.2, settings=settings)
    assert len(cuts) >= 3
    assert (tmp_path / "single.mp4").read_bytes() == (tmp_path / "split.mp4").read_bytes()


def test_what_goes_wrong_leaves_no_file(material, pool, tmp_path, monkeypatch):
    out = tmp_path / "out.mp4"
    with pytest.raises(UserError, match="No face was found"):
        lipsync_segments(material / "gray.mp4", None, out, pool=pool, seconds=1, settings=Settings(**QUICK))
    with pytest.raises(UserError, match="cannot last 0 s"):
        lipsync_segments(material / "a.mp4", None, out, pool=pool, seconds=0, settings=Settings(**QUICK))
    monkeypatch.setattr(type(pool.worker), "render", lambda *_: 1 / 0)
    with pytest.raises(UserError, match="Segment 1 of 1 could not be rendered: ZeroDivisionError"):
        lipsync_segments(material / "a.mp4", None, out, pool=pool, seconds=1, settings=Settings(**QUICK))
    assert not list(tmp_path.iterdir())
