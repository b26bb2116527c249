"""Generated cases of every primitive, and a check that holds each equation of a program against the reference.

Needs hypothesis (the extra ``m2ml[kit]``).
"""

from m2ml.equivalence.primitives.cases import CASES as CASES
from m2ml.equivalence.primitives.cases import Case as Case
from m2ml.equivalence.primitives.cases import covers as covers
from m2ml.equivalence.primitives.cases import examples as examples
from m2ml.equivalence.primitives.cases import load as load
from m2ml.equivalence.primitives.check import check as check
from m2ml.equivalence.primitives.check import primitives as primitives
from m2ml.equivalence.primitives.check import traced as traced
