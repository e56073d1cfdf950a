"""The one error class for what a user can mend."""


class UserError(ValueError):
    """Something the user gave is wrong; the message names it, the cause and the remedy.

    The tools print it as one line and exit with code 2. Every other exception is a defect of ours
    and keeps its traceback.
    """
