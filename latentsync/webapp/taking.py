"""Files from a visitor: the widget, the check, and why one was refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .config import Limits
from .result import plain
from .sessions import Session
from .streamlit_session import discard_upload
from .uploads import Media, take_file, take_voice


class Taking:
    """st: Streamlit. "what" is the place of the file in the session: "face", "voice", or "other"."""

    def __init__(self, st: Any, session: Session, limits: Limits) -> None:
        self.st, self.session, self.limits = st, session, limits

    def upload(self, what: str, label: str, endings: Sequence[str], take: Callable[..., Media], **rest: Any) -> None:
        """rest: `keep`, see _take."""
        st, most = self.st, self.limits
        with st.container(key=f"{what}-box"):
            upload = st.file_uploader(label, type=endings, key=self._key(what))
            with st.container(key=f"{what}-too-large"):
                st.error(f"This file was not accepted: at most {most.megabytes} MB, and one of {', '.join(endings)}.")
        if upload is not None:
            self._take(what, lambda folder: take(upload, upload.name, folder, most), upload, **rest)
        if not self.error(what):
            st.caption(f"At most {most.seconds:.0f} seconds long.")

    def record(self, what: str, **rest: Any) -> None:
        recorded = self.st.audio_input("Press the microphone, speak, press again", key=self._key(f"{what}-recorded"))
        if recorded is not None:
            self._take(what, lambda to: take_voice(recorded, "your recording", to, self.limits), recorded, **rest)
        self.error(what)

    def choose(self, what: str, samples: dict[str, Path], take: Callable[..., Media]) -> None:
        st = self.st
        name = st.selectbox("Example", list(samples), key=f"{what}-sample", label_visibility="collapsed")
        if st.button("Take this one", key=f"{what}-take"):
            path = samples[name]
            self._take(what, lambda folder: take_file(path, take, folder, self.limits))
        self.error(what)

    def error(self, what: str) -> bool:
        if message := self.session.errors.get(what):
            self.st.error(plain(message))
        return bool(message)

    def _key(self, what: str) -> str:
        """Changes with every upload, which empties the widget."""
        return f"{what}-{self.st.session_state.get('taken', 0)}"

    def _take(
        self,
        what: str,
        take: Callable[[Path], Media],
        upload: Any = None,
        keep: Callable[[Media], None] | None = None,
    ) -> None:
        """Store an upload, or keep the reason for refusing it, and rerun with an empty widget. keep: what becomes of
        it; None puts it into its place in the session."""
        st, session = self.st, self.session
        session.errors.pop(what, None)
        try:
            with st.spinner("Checking the file …"):
                media = take(session.folder)
            keep(media) if keep else setattr(session, what, media)
        except UserError as error:
            session.errors[what] = str(error)
        discard_upload(upload)
        st.session_state["taken"] = st.session_state.get("taken", 0) + 1
        st.rerun()
