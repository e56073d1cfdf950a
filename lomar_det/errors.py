"""The one error class for what a user can mend."""

import errno

# The end of a remedy. Not every tool has --resume.
AGAIN = "then run the same command again, with --resume if it has that option"


class UserError(ValueError):
    """Something the user gave is wrong; the message names it, the cause and the remedy.

    The tools print it as one line and exit with code 2. Every other exception is a defect of ours
    and keeps its traceback.
    """


def user_message(error: UserError) -> str:
    """The message of an error in one line, also if a worker of a loader raised it.

    torch re-raises a worker's error with the worker's whole traceback as its text.
    """
    text, name = str(error), type(error).__name__
    if text.startswith(f"Caught {name} in DataLoader worker"):
        text = text.rsplit(f"{name}: ", 1)[-1]
    return " ".join(text.split())


def as_user_error(error: BaseException | None) -> UserError | None:
    """The error as a `UserError` if the user can mend its cause; None for a defect of ours."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"{error}; free disk space, {AGAIN}")
    if not isinstance(error, RuntimeError):
        return None
    if str(error).startswith("DataLoader worker (pid"):  # torch's words for a killed worker
        return UserError(
            f"{str(error).strip(' .')}. Most often the machine ran out of memory: lower "
            f"data.num_workers (or dataloader.train.num_workers), or free memory, {AGAIN}"
        )
    # torch.save hides a full disk behind an error of its zip writer.
    cause = error.__context__
    return as_user_error(cause) if isinstance(cause, OSError) else None
