"""Puppets of a real portrait, moved by speakers of whom every movement is known."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from latentsync.face.detect import mouth_opening
from recipes.nano import mesh as geometry
from recipes.nano.data import MARGIN, RESOLUTION, held_out_portraits
from recipes.nano.mesh import inner_mask
from recipes.nano.puppets import Puppet, Speakers, Speech, plain_look, random_look, upright_look

from .people import GREEN, RED, a_crowd, in_crop, portrait, speaker

CENTER = RESOLUTION // MARGIN
OPENINGS = np.array([0.0] * 4 + [0.06, 0.12, 0.2, 0.26, 0.32] * 4)  # 18 of the 24 are trained on
SILENT, NATURAL = Speech(Speech.SILENT), Speech(Speech.NATURAL)


def puppet(face, *speakers, look=None, frame=1):
    random = np.random.default_rng(0)
    return Puppet(portrait(face), frame, Speakers(speakers), 0, look or plain_look(), random)


@pytest.fixture(scope="module")
def green(face):
    return speaker(face, OPENINGS, inside=GREEN)


@pytest.mark.parametrize("turn", [0, 15])
def test_a_mouth_opens_as_far_as_the_speakers(face, turn):
    """Over its width, wherever the speaker's head turns meanwhile."""
    random = np.random.default_rng(1)
    turns = random.uniform(-turn, turn, (len(OPENINGS), 3))
    turns[:4] = turns[0]
    doll = puppet(face, speaker(face, OPENINGS, turns=turns))
    made = [doll.opening(Speech(0, f)) for f in range(len(OPENINGS))]
    assert made == pytest.approx(OPENINGS, abs=0.004)
    movement = doll._moved(Speech(0, 8)) - doll._moved(Speech(0, 0))
    assert np.allclose(movement, face.opened(0.32) - face.closed, atol=0.5)


@pytest.mark.parametrize(("loudest", "gain"), [(0.32, 1.0), (0.25, 1.28), (0.1, 1.35), (0.6, 0.8)])
def test_a_speaker_is_made_about_as_lively_as_others(face, loudest, gain):
    doll = puppet(face, speaker(face, OPENINGS * (loudest / 0.32)))
    assert doll.opening(Speech(0, 8)) == pytest.approx(loudest * gain, rel=0.01)


def test_silence_closes_and_nature_is_left_alone(face, green):
    doll = puppet(face, green)
    assert doll.opening(SILENT) == pytest.approx(0, abs=1e-6)
    assert doll.opening(NATURAL) == pytest.approx(geometry.opening(face.mesh), rel=1e-3)
    inner = slice(CENTER, CENTER + RESOLUTION)
    assert np.array_equal(doll.says(NATURAL), face.crop[inner, inner])
    tilted = puppet(face, green, look=replace(plain_look(), matrix=np.array([[0.9, 0.2, -20], [-0.2, 0.9, 10]])))
    shown = cv2.warpAffine(face.crop, tilted.look.matrix, (RESOLUTION,) * 2, flags=cv2.INTER_CUBIC, borderMode=1)
    assert np.array_equal(tilted.says(NATURAL), shown)


@pytest.mark.parametrize("seed", [1, 4])
def test_a_mouth_that_does_not_move_leaves_the_picture_as_it_is(face, green, seed):
    """Under any look, mirrored or not: what is warped meets what is not."""
    doll = puppet(face, green, look=random_look(np.random.default_rng(seed)), frame=0)
    apart = np.abs(doll.says(SILENT).astype(int) - doll.natural())
    assert apart.mean() < 1
    assert np.percentile(apart, 99.9) < 12


def test_looks_are_mirrored_or_not():
    signs = {np.sign(np.linalg.det(random_look(np.random.default_rng(seed)).matrix[:, :2])) for seed in range(8)}
    assert signs == {-1.0, 1.0}


def test_lipstick_is_on_both_lips_and_nowhere_else(face, green):
    plain = puppet(face, green)
    painted = puppet(face, green, look=replace(plain_look(), lips=np.array([1, 0.5, 0.6], np.float32)))
    for speech in (NATURAL, SILENT, Speech(0, 8)):
        lips = geometry.lips_mask(plain._in_crop(plain._moved(speech)), RESOLUTION)[..., 0]
        before, after = plain.says(speech).astype(float), painted.says(speech).astype(float)
        on = cv2.erode((lips > 0.99).astype(np.uint8), np.ones((3, 3))) > 0
        assert np.median(after[on] / before[on], 0) == pytest.approx([1, 0.5, 0.6], abs=0.03)
        above = np.arange(RESOLUTION)[:, None] < _middle(plain, speech)
        assert min(np.count_nonzero(on & above), np.count_nonzero(on & ~above)) > 20
        off = cv2.dilate(lips, np.ones((5, 5))) == 0
        assert np.abs(after - before)[off].max() <= 2


def _middle(doll, speech):
    """Row between the inner lips."""
    points = doll._in_crop(doll._moved(speech))
    return points[[geometry.UPPER, geometry.LOWER], 1].mean()


def is_green(picture):
    r, g, b = np.moveaxis(picture.astype(int), -1, 0)
    return g > np.maximum(r, b) + 50


@pytest.mark.parametrize("seed", [None, 1, 4])
def test_between_the_lips_is_the_speakers_mouth_and_around_them_the_own_skin(face, green, seed):
    look = plain_look()
    if seed is not None:
        look = replace(look, matrix=random_look(np.random.default_rng(seed)).matrix)
    doll = puppet(face, green, look=look)
    moment = Speech(0, 8)
    shown, target = doll.says(moment), doll._in_crop(doll._moved(moment))
    between = inner_mask(target, RESOLUTION)[..., 0]
    found = is_green(shown)
    assert not found[between == 0].any()
    assert found[between > 0.99].mean() > 0.8
    outside = between == 0
    own, made = doll.natural()[outside].mean(0), shown[outside].mean(0)
    assert np.abs(own - made).max() < 2
    assert not is_green(doll.says(SILENT)).any()


def test_a_mouth_takes_the_light_of_the_face(face):
    """Bright skin, bright mouth; and a speaker's redder skin does not make the teeth red."""
    shown = {}
    for name, light in (("same", 1.0), ("dark", 0.5)):
        crop = (face.crop * light).astype(np.uint8)
        speaks = speaker(replace(face, crop=crop), OPENINGS, inside=(90, 90, 90))
        doll = puppet(face, speaks)
        target = doll._in_crop(doll._moved(Speech(0, 8)))
        shown[name] = doll.says(Speech(0, 8))[inner_mask(target, RESOLUTION)[..., 0] > 0.99].mean()
    assert shown["same"] == pytest.approx(90, abs=4)
    assert shown["dark"] == pytest.approx(90 * 1.3, abs=6)


def test_the_mouth_that_is_shown_has_the_shape_that_is_made(face, speakers_two):
    speakers = Speakers(speakers_two)
    for moment in (5, 9, 13):
        opening, width = speakers._shapes(0)[moment]
        like = speakers.like(0, opening, width)
        assert like.person == 0
        assert speakers._shapes(0)[like.frame] == pytest.approx([opening, width], abs=1e-4)


def test_speakers_keep_to_their_part_of_the_time(speakers_two):
    openings = np.linspace(0, 0.6, 20)
    for held_out in (False, True):
        speakers = Speakers([*speakers_two], held_out=held_out)
        for who, person in enumerate(speakers_two):
            kept = range(person.train_frames, len(person.mesh)) if held_out else range(person.train_frames)
            assert speakers.frames[who] == kept
            assert all(speakers.like(who, opening, 1.0).frame in kept for opening in openings)
    assert speakers.sharp == [0]


def test_held_out_portraits_are_every_eighth(face, speakers_two):
    assert [p.name for p in held_out_portraits(a_crowd(face, speakers_two))] == ["p0", "p8"]


def test_meshes_lie_on_the_prepared_pictures(face, finder):
    points = in_crop(face.mesh)
    again = finder.mesh(face.crop, (*points.min(0).tolist(), *points.max(0).tolist()))[: geometry.POINTS, :2]
    assert np.abs(again - points).mean() < 2


def test_the_landmarker_finds_the_openings_that_were_asked_for(face, finder):
    """On a real portrait, in its natural proportions; its own opening lies amid them."""
    openings = OPENINGS.copy()
    openings[13] = 0.45
    doll = puppet(face, speaker(face, openings, inside=RED), look=upright_look())
    said = [SILENT, NATURAL, *(Speech(0, f) for f in (4, 5, 6, 7, 8, 13))]
    box = (*doll.still.min(0).tolist(), *doll.still.max(0).tolist())
    found = [finder.refine(doll.says(speech), box).points68 for speech in said]
    asked = np.array([doll.opening(speech) for speech in said])
    assert np.corrcoef(asked, mouth_opening(np.stack(found)))[0, 1] > 0.95


def test_an_upright_look_keeps_the_proportions(face, green):
    """A circle around the nose stays one."""
    doll = puppet(face, green, look=upright_look(360))
    turn = doll.to_crop[:, :2]
    assert turn[0, 0] == pytest.approx(turn[1, 1])
    assert np.abs([turn[0, 1], turn[1, 0]]).max() == 0
    assert np.allclose(doll._in_crop(face.mesh)[geometry.LEFT], _scaled(face.mesh[geometry.LEFT, :2], doll))


def _scaled(point, doll):
    return point * doll.to_crop[0, 0] + doll.to_crop[:, 2]


def test_a_worse_camera_takes_the_same_picture(face):
    blurred = replace(plain_look(), blur=1.6).taken(face.crop, np.random.default_rng(0))
    packed = replace(plain_look(), quality=60).taken(face.crop, np.random.default_rng(0))
    grainy = replace(plain_look(), noise=5.0).taken(face.crop, np.random.default_rng(0))
    edges = [cv2.Laplacian(crop, cv2.CV_32F).var() for crop in (blurred, face.crop, grainy)]
    assert edges[0] < 0.8 * edges[1] < edges[1] < 0.8 * edges[2]
    for crop in (blurred, packed, grainy):
        assert not np.array_equal(crop, face.crop)
        assert np.abs(crop.astype(int) - face.crop).mean() < 6
