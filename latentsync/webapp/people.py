"""More people who speak, each with a face and a voice of their own."""

from fractions import Fraction
from typing import Any

from .components import face_names
from .config import Limits
from .sessions import OtherVoice, Session
from .taking import Taking
from .uploads import VOICE_ENDINGS, Media, take_voice
from .words import plain

MOST = 6
"""Voices of one result, as the node for several people has them."""
UPLOAD, RECORD = "Upload", "Record"


class MorePeople:
    """st: Streamlit."""

    def __init__(self, st: Any, session: Session, limits: Limits, files: Taking) -> None:
        self.st, self.session, self.limits, self.files = st, session, limits, files

    def show(self, own_sound: bool) -> None:
        st, session = self.st, self.session
        for other in session.others:
            self._row(other)
        if obstacle := self._obstacle(own_sound):
            st.caption(obstacle)
            return
        st.caption(
            "Each voice moves the mouth of its own face, starting at its second. A mouth is unchanged while its voice"
            " is silent."
        )
        where = st.radio("Another voice", [UPLOAD, RECORD], horizontal=True, key="other-from", disabled=session.busy)
        if where == RECORD:
            self.files.record("other", keep=self._add)
        else:
            self.files.upload("other", "A recording for another face", VOICE_ENDINGS, take_voice, keep=self._add)

    def _obstacle(self, own_sound: bool) -> str:
        """Why there can be no other voice, as a sentence; "" where there can."""
        session = self.session
        if session.face is None or session.voice is None:
            from_the_clip = own_sound and session.face is not None
            first = "a recording instead of the video's own audio" if from_the_clip else "a face and a voice"
            return f"For several speakers in one clip: add {first} first."
        if session.busy:
            return ""
        if session.shot is None or len(session.shot.boxes) < 2 or session.points:
            return "For several speakers in one clip: no second face was found in this picture."
        return "" if len(session.others) < MOST - 1 else f"There are {MOST} voices, the most that one clip can have."

    def _add(self, media: Media) -> None:
        """For the first face that has no voice yet, when the last one has ended."""
        session = self.session
        if (shot := session.shot) is None or session.voice is None:
            return
        taken = {session.picked, *(one.picked for one in session.others if one.shot is shot)}
        free = (i for i in range(len(shot.boxes)) if i not in taken)
        end = max([session.voice.seconds, *(one.end for one in session.others)])
        session.others.append(OtherVoice(media, shot, next(free, 0), min(round(end, 2), Fraction(self.limits.seconds))))

    def _row(self, other: OtherVoice) -> None:
        st, busy, key = self.st, self.session.busy, other.media.path.stem
        name, button = st.columns([3, 2], vertical_alignment="center")
        name.markdown(f"**{plain(other.media.name)}** · {other.media.summary}")
        who, when = st.columns(2, vertical_alignment="bottom")
        names = face_names(len(other.shot.boxes))
        moment = "" if other.shot is self.session.shot or self.session.face is None else self._moment(other)
        other.picked = who.selectbox(
            f"Speaker{moment}", range(len(names)), other.picked, format_func=names.__getitem__,
            key=f"who-{key}", disabled=busy,
        )  # fmt: skip
        start = when.number_input(
            "Begins at second", 0.0, float(self.limits.seconds), float(other.start), 0.1, key=f"begins-{key}",
            disabled=busy, help="Of the result.",
        )  # fmt: skip
        other.start = Fraction(str(round(start, 3)))
        if button.button(f"Remove {plain(other.media.name)}", key=f"remove-{key}", disabled=busy, width="stretch"):
            self.session.remove_other(other)
            st.rerun()

    def _moment(self, other: OtherVoice) -> str:
        fps = self.session.face.fps if self.session.face is not None else Fraction(1)
        return f" (in the picture at {float(other.shot.frame / fps):.2f} s)"
