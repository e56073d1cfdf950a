"""The one error class for what a user can mend."""


class UserError(ValueError):
    """Something the user gave is wrong; the message names it, the cause and the remedy.

    The tools print it as one line and exit with code 2. Every other exception is a defect of ours
    and keeps its traceback.
    """


def user_message(error: UserError) -> str:
    """The message alone, also of an error that a loader's worker raised.

    torch re-raises those with the worker's whole traceback as their text.
    """
    text, name = str(error), type(error).__name__
    if text.startswith(f"Caught {name} in DataLoader worker"):
        text = text.rsplit(f"{name}: ", 1)[-1]
    return " ".join(text.split())
