"""The dashboard: ``streamlit run app/dashboard/main.py``, or ``safeneuron serve``."""

from pathlib import Path

import streamlit as st

from app.dashboard.components.gate import admit, visitor_menu

PAGES = Path(__file__).parent / "pages"

st.set_page_config(page_title="SafeNeuron", page_icon=":material/hub:", layout="wide")
admit()
visitor_menu()
st.navigation(
    [
        st.Page(PAGES / "home.py", title="Home", icon=":material/home:", default=True),
        st.Page(
            PAGES / "safety_map.py", title="Safety map", icon=":material/grid_on:", url_path="map"
        ),
        st.Page(PAGES / "neuron.py", title="Neuron", icon=":material/adjust:", url_path="neuron"),
        st.Page(
            PAGES / "overlap.py",
            title="Overlap",
            icon=":material/join_inner:",
            url_path="overlap",
        ),
        st.Page(PAGES / "masks.py", title="Masks", icon=":material/category:", url_path="masks"),
        st.Page(PAGES / "attack.py", title="Attack", icon=":material/bolt:", url_path="attack"),
        st.Page(PAGES / "align.py", title="Align", icon=":material/shield:", url_path="align"),
        st.Page(PAGES / "runs.py", title="Runs", icon=":material/list:", url_path="runs"),
    ]
).run()
