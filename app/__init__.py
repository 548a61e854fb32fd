"""What a person touches: the command line, the dashboard, the jobs behind its buttons."""
