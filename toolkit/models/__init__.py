"""Model sources, layouts of architectures, and loading."""
