"""``pytest --m2ml-backend NAME``: every check of the conformance kit as a test of its own, in any project.

The tests come from the installed package, so an empty folder will do; ``-k``, ``-x``, ``--lf`` and ``-n`` work as
with any other test. A declared gap is an expected failure. At the end stands the support table.
"""

from __future__ import annotations

from typing import Any

import pytest

from m2ml.equivalence.conformance import Check, Result, Subject, run_check, suite, support_table
from m2ml.errors import M2mlError
from m2ml.plugins import registry

#: Where a test report carries the outcome of its check, also from a worker to the main process.
_RESULT = "m2ml_result"


class CheckFailed(Exception):
    """A check of the kit failed; the message says how."""


class CheckItem(pytest.Item):
    """One check as a test. Reports carry its result as a user property."""

    def __init__(self, *, check: Check, subject: Subject, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check, self.subject = check, subject

    def runtest(self) -> None:
        result = run_check(self.check, self.subject)
        self.user_properties.append((_RESULT, (result.part, result.name, result.outcome, result.message)))
        if result.outcome == "gap":
            pytest.xfail(f"declared gap: {result.message}")
        if result.outcome == "not run":
            pytest.skip(result.message)
        if result.outcome == "failed":
            raise CheckFailed(result.message) from result.error

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if not isinstance(excinfo.value, CheckFailed):
            return super().repr_failure(excinfo, style)
        cause = excinfo.value.__cause__
        if cause is None or isinstance(cause, AssertionError):
            return str(excinfo.value)
        return super().repr_failure(pytest.ExceptionInfo.from_exception(cause), style)

    def reportinfo(self) -> tuple[str, None, str]:
        return "m2ml", None, self.name


class Plugin:
    """Adds the checks to what pytest collected and prints the table. Raises UsageError for an unknown backend."""

    def __init__(self, config: pytest.Config) -> None:
        try:
            backend = registry.get(config.getoption("--m2ml-backend"))
        except M2mlError as error:
            raise pytest.UsageError(str(error)) from error
        self.subject = Subject(backend, config.getoption("--m2ml-examples"), config.getoption("--m2ml-timeout"))
        self.results: list[Result] = []
        self.collected = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        checks = suite(self.subject)
        self.collected = len(checks)
        items += [self.item(session, check) for check in checks]

    def item(self, session: pytest.Session, check: Check) -> CheckItem:
        nodeid = f"m2ml::{self.subject.backend.name}::{check.id}"
        item: CheckItem = CheckItem.from_parent(
            session, name=check.id, nodeid=nodeid, check=check, subject=self.subject
        )
        return item

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            properties: list[tuple[str, Any]] = list(report.user_properties)
            self.results += [Result(*value) for name, value in properties if name == _RESULT]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.results:
            terminalreporter.section("m2ml conformance")
            complete = not self.collected or len(self.results) == self.collected
            terminalreporter.write_line(support_table(self.subject.backend, self.results, complete=complete))
