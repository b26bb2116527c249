"""The errors m2ml raises. Each message is one sentence: what, where, which values, what to do."""


class M2mlError(Exception):
    """Base class of every error raised on purpose by m2ml."""


class BackendNotFound(M2mlError, LookupError):
    """A backend was named that is not registered, or that failed to load."""


class BackendUnavailable(M2mlError, RuntimeError):
    """A registered backend cannot run on this machine."""


class UnsupportedPrimitive(M2mlError, NotImplementedError):
    """A backend has no rule for a primitive of the program."""


class UnsupportedDtype(M2mlError, TypeError):
    """A program uses a dtype that the device does not have."""


class ExecutionError(M2mlError, RuntimeError):
    """An equation failed while the program ran."""


class OutOfMemory(ExecutionError, MemoryError):
    """The device could not hold the program's arrays."""


class NotANumber(M2mlError, FloatingPointError):
    """With ``debug=True``: an equation produced the first NaN of the run."""


class Disagreement(M2mlError, AssertionError):
    """A backend's result lies outside the measured bound around the reference."""


def in_one_line(error: BaseException) -> str:
    """The text of a stranger's error on one line; of a traceback inside it only the last line, which says what."""
    text = str(error).strip()
    return " ".join((text.splitlines()[-1] if "Traceback (most recent call last)" in text else text).split())


class FallbackWarning(UserWarning):
    """An equation, one of ``primitive``, runs elsewhere than on the backend asked for; said once per program."""

    def __init__(self, message: str, primitive: str = "") -> None:
        super().__init__(message)
        self.primitive = primitive
