"""Where models come from, and where their neurons are."""
