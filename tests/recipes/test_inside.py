"""What puppets show between their lips: upper teeth that stay with the head, others' where the picture shows none."""

from dataclasses import replace

import numpy as np
import pytest

from recipes.nano import mesh as geometry
from recipes.nano.inside import SMILE, teeth_of
from recipes.nano.mesh import inner_mask
from recipes.nano.puppets import TEETH, Puppet, Speakers, Speech, plain_look, random_look

from .people import GREEN, in_crop, painted, portrait, speaker

OPENINGS = np.array([0.0] * 4 + [0.06, 0.12, 0.2, 0.26, 0.5] * 4)
WHITE = (230, 228, 215)


@pytest.fixture(scope="module")
def smiling(face):
    """A person with a closed mouth in the first picture and green teeth in the second."""
    wide = replace(face, mesh=face.opened(SMILE * 2))
    still = portrait(wide)
    return replace(still, crops=np.stack([face.crop, painted(face.crop, wide.mesh, GREEN)]))


@pytest.fixture(scope="module")
def speakers(face, smiling):
    donor = replace(smiling, name=TEETH, crops=np.stack([face.crop, painted(face.crop, smiling.mesh[1], WHITE)]))
    return Speakers([speaker(face, OPENINGS), smiling, donor])


def puppet(person, frame, speakers, look=None):
    return Puppet(person, frame, speakers, None, look or plain_look(), np.random.default_rng(0))


def between(doll, frame):
    """What lies between the lips, (N, 2) rows and columns, and the picture's colors there."""
    speech = Speech(0, frame)
    mask = inner_mask(doll._in_crop(doll._moved(speech)), doll.look.side)[..., 0] > 0.99
    return np.argwhere(mask), doll.says(speech)[mask].astype(int)


def green(colors):
    return colors[:, 1] > np.maximum(colors[:, 0], colors[:, 2]) + 40


@pytest.mark.parametrize("seed", [None, 1, 4])
def test_own_teeth_stay_where_they_are(smiling, speakers, seed):
    """Under any look, mirrored or not. Below their edges it is dark, in the mouth's own colors."""
    look = plain_look()
    if seed is not None:
        look = replace(look, matrix=random_look(np.random.default_rng(seed)).matrix)
    doll = puppet(smiling, 1, speakers, look)
    own = inner_mask(doll.still, look.side)[..., 0]
    for frame in (5, 6, 8):
        places, colors = between(doll, frame)
        shown, there = green(colors), own[tuple(places.T)]
        assert shown[there > 0.99].mean() > 0.9
        assert not shown[there == 0].any()
        below = colors[(there == 0) & (places[:, 0] > np.median(places[:, 0]))]
        if frame == 8:
            assert len(below) > 20
            assert below.max() < 0.65 * doll.skin.max()


def test_who_shows_no_teeth_gets_those_of_another(smiling, speakers):
    """White, of the person who is chosen for it, at the lips' line however far the jaw goes down."""
    doll = puppet(smiling, 0, speakers)
    line = doll._in_crop(doll.closed)[geometry.UPPER, 1]
    width = geometry.mouth_width(doll.closed)
    tops, bottoms = [], []
    for frame in (6, 7, 8):
        places, colors = between(doll, frame)
        middle = np.abs(places[:, 1] - np.median(places[:, 1])) < 4
        white = colors.min(1) > 0.6 * np.min(WHITE)
        assert not green(colors).any()
        tops.append(places[middle & white, 0].min())
        bottoms.append(places[middle & white, 0].max())
    assert tops == pytest.approx([line] * 3, abs=0.1 * width)
    assert max(bottoms) - min(bottoms) <= 2
    assert bottoms[2] < places[:, 0].max() - 5, "below them it is dark"


def test_teeth_take_the_light_of_the_face(face, smiling, speakers):
    dark = replace(smiling, crops=smiling.crops // 2)
    shown = [between(puppet(person, 0, speakers), 6)[1].max() for person in (smiling, dark)]
    assert shown[1] / shown[0] == pytest.approx(0.5**0.5, abs=0.05)


def test_teeth_go_on_above_the_lip_that_hid_them(smiling):
    teeth = teeth_of(smiling, 1)
    inner = inner_mask(in_crop(smiling.mesh[1]), len(teeth.crop))[..., 0] > 0.99
    column = int(np.median(np.argwhere(inner)[:, 1]))
    top = int(np.argmax(inner[:, column]))
    assert (teeth.mask[top - 6 : top, column] > 0.99).all()
    assert np.abs(teeth.crop[top - 6 : top, column] - np.array(GREEN)).max() < 40
    assert teeth_of(smiling, 0) is None


def test_without_any_smile_a_speaker_must_be_named(face, smiling):
    closed = replace(smiling, crops=smiling.crops[:1], mesh=smiling.mesh[:1])
    doll = puppet(closed, 0, Speakers([speaker(face, OPENINGS), closed]))
    with pytest.raises(ValueError, match="smile"):
        doll.says(Speech(0, 8))
