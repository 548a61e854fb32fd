"""The door: a page behind it is drawn for those alone who may see it."""

from collections.abc import Mapping
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAuthError

from app.dashboard.components.text import failure, plain
from app.sign_in import configured
from toolkit.errors import SafeNeuronError


def claims() -> Mapping[str, Any]:
    """What the provider says of the visitor; empty before the sign-in."""
    return st.user


def admit() -> None:
    """Go on for a visitor who may enter, else draw the sign-in and end the page.

    Every page asks, not the entrance alone: Streamlit runs the files of a folder named
    ``pages`` by their address before the entrance has run once.
    """
    try:
        sign_in = configured()
    except SafeNeuronError as error:
        # Settings that cannot be read may be those that say who may enter.
        failure(error)
        st.stop()
    if sign_in is None:
        return
    visitor = claims()
    if sign_in.admits(visitor):
        return
    st.title("SafeNeuron")
    if not visitor.get("is_logged_in"):
        st.write("This dashboard is shared: sign in to see it.")
        if st.button("Sign in", type="primary", icon=":material/login:"):
            _log_in()
    else:
        named = str(visitor.get("email") or "This account")
        st.error(f"{plain(named)} may not see this dashboard; ask whoever runs it.")
        st.button("Sign out", icon=":material/logout:", on_click=st.logout)
    st.stop()


def visitor_menu() -> None:
    """Who is signed in, and the way out, in the side bar; nothing where sign-in is off."""
    if configured() is not None:
        with st.sidebar:
            st.caption(plain(str(claims().get("email") or "signed in")))
            st.button("Sign out", icon=":material/logout:", on_click=st.logout)


def _log_in() -> None:
    try:
        st.login()
    except StreamlitAuthError:
        failure(
            SafeNeuronError(
                "sign-in is on but this server has no provider; start it with 'safeneuron serve'"
            )
        )
