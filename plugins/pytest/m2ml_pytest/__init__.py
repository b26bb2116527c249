"""The door of the pytest plugin: the option ``--m2ml-backend``.

pytest loads this module in every run on a machine where m2ml is installed, so it imports nothing. The plugin itself,
`m2ml.equivalence.pytest_plugin`, comes in when the option is given.
"""

from typing import Any


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("m2ml")
    group.addoption("--m2ml-backend", metavar="NAME", help="run m2ml's conformance suite on this backend")
    group.addoption("--m2ml-examples", metavar="N", type=int, default=20, help="examples per primitive (20)")
    group.addoption("--m2ml-timeout", metavar="SECONDS", type=float, default=60.0, help="when a call hangs (60)")


def pytest_configure(config: Any) -> None:
    if config.getoption("--m2ml-backend"):
        from m2ml.equivalence import pytest_plugin

        config.pluginmanager.register(pytest_plugin.Plugin(config), "m2ml conformance")
