"""The errors a user can mend: one sentence each, with the remedy."""


class SafeNeuronError(Exception):
    """Bad input or a missing resource. Its text is one line that names the remedy.

    The command line prints it and exits with code 2; a page shows it in place.
    """
