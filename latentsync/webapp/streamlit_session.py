"""What the page needs of Streamlit's internals, and the one AppService."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .config import LOCAL_HOSTS, AppSettings
from .service import AppService

if TYPE_CHECKING:
    from .sessions import Session, Sessions

KEY = "s"
"""Of a session's key in the address, and in Streamlit's state of a tab."""
LOST = "lost"
"""Key in the state of a tab whose address named a session that is gone."""
KEPT = (
    "quality", "model", "backend", "steps", "guidance", "seed", "silence", "solver", "by-hand", "part", "spans", "fit",
    "track", "codec", "encoder", "encoding-quality", "strip", "watermark", "face-from", "voice-from", "other-from",
    "points", "strength",
)  # fmt: skip
"""Widgets whose values a session keeps, by what their keys begin with."""
PASSED_ON = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers, in small letters, that a proxy or a tunnel adds."""


@cache
def service() -> AppService:
    _remember_media_files()
    app = AppService(AppSettings.from_environment(), is_connected)
    atexit.register(app.close)
    return app


def current_session(st: Any, sessions: "Sessions") -> "Session":
    """This tab's session: the one it had, else that of the key in its address, else a new one.

    A key that is not known is never taken over: whoever made it up could look in later.
    """
    key, asked = st.session_state.get(KEY, ""), str(st.query_params.get(KEY, ""))
    if not sessions.has(key):
        known = sessions.has(asked)
        key = asked if known else sessions.new_key()
        st.session_state[KEY], st.session_state[LOST] = key, bool(asked) and not known
        st.session_state.update(sessions.get(key).form)
    if asked != key:
        st.query_params[KEY] = key
    return sessions.get(key, tab_id())


@contextmanager
def form_kept(st: Any, session: "Session") -> Iterator[None]:
    """What widgets say goes into session.form, however a run of the page ends."""
    try:
        yield
    finally:
        session.form = {key: value for key, value in st.session_state.items() if _is_kept(str(key), value)}


def _is_kept(key: str, value: Any) -> bool:
    return isinstance(value, (str, int, float, tuple)) and any(f"{key}-".startswith(f"{name}-") for name in KEPT)


def tab_id() -> str:
    """Streamlit's name for this browser tab; a reload gives another."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    return "" if context is None else context.session_id


def is_dark(st: Any) -> bool:
    return getattr(getattr(st.context, "theme", None), "type", None) == "dark"


def is_owner(st: Any, settings: AppSettings) -> bool:
    """Whether the page is shown to somebody at the computer on which it runs, as far as can be known.

    The address that a proxy or a tunnel connects from is this computer's too, so what it adds to a request counts.
    """
    if not settings.private:
        return False
    headers = {str(name).lower(): str(value) for name, value in st.context.headers.items()}
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    here = getattr(st.context, "ip_address", None) is None  # Streamlit's word for a loopback address
    return here and host in LOCAL_HOSTS and not set(PASSED_ON).intersection(headers)


def is_connected(tab: str) -> bool:
    from streamlit import runtime

    return runtime.exists() and runtime.get_instance().is_active_session(tab)


def discard_upload(upload: Any) -> None:
    """Drop the bytes, which are on disk now; Streamlit would hold them in memory until the session ends."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context, name = get_script_run_ctx(), getattr(upload, "file_id", None)
    remove = getattr(getattr(context, "uploaded_file_mgr", None), "remove_file", None)
    if context is not None and remove is not None and name is not None:
        remove(session_id=context.session_id, file_id=name)


def _remember_media_files() -> None:
    """Keep Streamlit from reading a video file again at every rerun, only to find that it has it."""
    from streamlit import runtime

    if runtime.exists():
        storage = getattr(getattr(runtime.get_instance(), "media_file_mgr", None), "_storage", None)
        if hasattr(storage, "load_and_get_id") and hasattr(storage, "get_file"):
            remember_files(storage)


def remember_files(storage: Any) -> None:
    """Wrap storage.load_and_get_id: a file that did not change since has the id that it had."""
    load, ids = storage.load_and_get_id, {}

    def load_and_get_id(path_or_data: Any, *args: Any, **options: Any) -> str:
        if not isinstance(path_or_data, str):
            return load(path_or_data, *args, **options)
        status = Path(path_or_data).stat()
        key = (path_or_data, status.st_size, status.st_mtime_ns, args, *sorted(options.items()))
        try:
            storage.get_file(ids[key])
        except Exception:  # unknown, or Streamlit has dropped it: each storage has an error of its own
            ids.pop(key, None)
            ids[key] = load(path_or_data, *args, **options)
        return ids[key]

    storage.load_and_get_id = load_and_get_id
