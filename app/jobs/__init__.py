"""Jobs: work that outlives the page or the terminal that asked for it."""
