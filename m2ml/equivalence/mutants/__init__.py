"""Tests of the tests: wrong rules planted in a copy of a backend's table, and how many of them are caught.

Needs hypothesis (the extra ``m2ml[kit]``).
"""

from m2ml.equivalence.mutants.fault import Fault as Fault
from m2ml.equivalence.mutants.fault import planted as planted
from m2ml.equivalence.mutants.verdicts import Verdict as Verdict
from m2ml.equivalence.mutants.verdicts import verdicts as verdicts
