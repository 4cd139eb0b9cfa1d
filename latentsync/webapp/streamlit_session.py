"""What the page needs to know of Streamlit's insides: who is asking, who is still there. And the one Studio."""

import atexit
from functools import cache
from typing import Any

from .config import AppSettings
from .service import Studio


@cache
def studio() -> Studio:
    """The one of this process, which lives as long as it does."""
    opened = Studio(AppSettings.handed_over(), is_here)
    atexit.register(opened.close)
    return opened


def session_id() -> str:
    """What Streamlit calls this browser tab."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    return "" if context is None else context.session_id


def is_here(session: str) -> bool:
    """Whether the tab is connected now."""
    from streamlit import runtime

    return runtime.exists() and runtime.get_instance().is_active_session(session)


def forget_upload(upload: Any) -> None:
    """The bytes are on disk now; Streamlit would hold them in memory until the session ends."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context, name = get_script_run_ctx(), getattr(upload, "file_id", None)
    remove = getattr(getattr(context, "uploaded_file_mgr", None), "remove_file", None)
    if context is not None and remove is not None and name is not None:
        remove(session_id=context.session_id, file_id=name)
