"""Programs that an exported mask becomes: copied out with its neurons filled in."""
