"""The dashboard: ``streamlit run app/dashboard/main.py``, or ``safeneuron serve``."""

from pathlib import Path

import streamlit as st

from app.dashboard.components.gate import admit, visitor_menu

# Not "pages": Streamlit would make a menu of its own of such a folder.
PAGES = Path(__file__).parent / "views"

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
        st.Page(
            PAGES / "prune_lab.py", title="Prune lab", icon=":material/forum:", url_path="prune-lab"
        ),
        st.Page(PAGES / "attack.py", title="Attack", icon=":material/bolt:", url_path="attack"),
        st.Page(PAGES / "align.py", title="Align", icon=":material/shield:", url_path="align"),
        st.Page(PAGES / "jobs.py", title="Jobs", icon=":material/list:", url_path="jobs"),
        st.Page(
            PAGES / "settings.py", title="Settings", icon=":material/tune:", url_path="settings"
        ),
    ]
).run()
