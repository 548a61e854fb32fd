"""The paper's layer-wise evidence from our own runs, on one page."""
