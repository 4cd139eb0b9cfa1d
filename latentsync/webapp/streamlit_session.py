"""What the page needs of Streamlit's internals, and the one AppService."""

import atexit
from functools import cache
from pathlib import Path
from typing import Any

from .config import AppSettings
from .service import AppService


@cache
def service() -> AppService:
    _remember_media_files()
    app = AppService(AppSettings.from_environment(), is_connected)
    atexit.register(app.close)
    return app


def session_id() -> str:
    """Streamlit's name for this browser tab."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    return "" if context is None else context.session_id


def is_connected(session: str) -> bool:
    from streamlit import runtime

    return runtime.exists() and runtime.get_instance().is_active_session(session)


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
