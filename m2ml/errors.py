"""The errors m2ml raises. Each message is one sentence: what, where, which values, what to do."""

import signal


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


def how_it_ended(code: int | None) -> str:
    """How a process ended that gave no result, from the exit code that `subprocess` and `multiprocessing` give.

    >>> how_it_ended(-11)
    'died of SIGSEGV'
    """
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:
        return f"died of signal {-code}"


def last_words(output: str) -> str:
    """The last line that a process wrote, at most 400 characters of it, to be added to what became of it.

    >>> last_words("loading weights\\nout of range\\n")
    '; its last words: out of range'
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"; its last words: {lines[-1][:400]}" if lines else ""


def in_one_line(error: BaseException) -> str:
    """The text of a stranger's error on one line; of a traceback inside it only the last line, which says what."""
    text = str(error).strip()
    return " ".join((text.splitlines()[-1] if "Traceback (most recent call last)" in text else text).split())


def reason(error: BaseException) -> str:
    """Why something failed, on one line: m2ml's own errors say it whole, a stranger's after its type.

    >>> reason(KeyError("a"))
    "KeyError: 'a'"
    """
    text = in_one_line(error)
    return text if isinstance(error, M2mlError) else f"{type(error).__name__}: {text}"


class FallbackWarning(UserWarning):
    """An equation, one of ``primitive``, runs elsewhere than on the backend asked for; said once per program."""

    def __init__(self, message: str, primitive: str = "") -> None:
        super().__init__(message)
        self.primitive = primitive
