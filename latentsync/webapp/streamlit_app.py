"""What Streamlit runs, at every click of every visitor. The page is in app_page.py, all behind it in app_studio.py."""


def main() -> None:
    """One run of the page for one visitor."""
    import streamlit as st

    from .page import Page
    from .streamlit_session import session_id, studio

    hall = studio()
    Page(st, hall, hall.visitors.get(session_id())).show()


if __name__ == "__main__":  # Streamlit runs this file by itself, outside its package
    __package__ = "latentsync.webapp"
    main()
