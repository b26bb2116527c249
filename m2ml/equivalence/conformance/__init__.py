"""The conformance kit: one suite that every backend passes, a stranger's as well as our own.

``pytest --m2ml-backend NAME`` and ``m2ml conformance NAME`` run the same checks. A check passes, fails, meets a
declared gap, or is not run for a reason it gives. The rule of gaps is strict both ways: the backend either agrees or
refuses with `m2ml.UnsupportedPrimitive` or `m2ml.UnsupportedDtype`; it may refuse only what it declares, and what it
declares it must refuse. Needs hypothesis (the extra ``m2ml[kit]``).
"""

from m2ml.equivalence.conformance.report import as_json as as_json
from m2ml.equivalence.conformance.report import support_table as support_table
from m2ml.equivalence.conformance.suite import Check as Check
from m2ml.equivalence.conformance.suite import Result as Result
from m2ml.equivalence.conformance.suite import Subject as Subject
from m2ml.equivalence.conformance.suite import run_check as run_check
from m2ml.equivalence.conformance.suite import suite as suite
