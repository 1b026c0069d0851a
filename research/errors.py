"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in settings, files or commands; its message is one sentence: what, its value, what to change.

    The command line prints the sentence alone and exits with status 2. Anything else that is raised is a defect of
    the program and keeps its traceback.
    """
