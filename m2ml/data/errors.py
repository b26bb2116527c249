"""Why data could not be had: each message is one sentence that says what to do."""

from m2ml.errors import M2mlError


class DataError(M2mlError, ValueError):
    """Data is missing, damaged or not of the form that was asked for."""


class RegistryError(M2mlError, ConnectionError):
    """No package registry gave a package: there is none in reach, or it does not carry it."""
