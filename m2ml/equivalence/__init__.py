"""Proof that backends agree: bounds from the arithmetic, and comparison against the reference."""

from m2ml.equivalence.bounds import Bound as Bound
from m2ml.equivalence.bounds import bound_of as bound_of
from m2ml.equivalence.compare import compare as compare
from m2ml.equivalence.measure import measured_bounds as measured_bounds
from m2ml.equivalence.perturbation import Perturbation as Perturbation
from m2ml.equivalence.report import BackendReport as BackendReport
from m2ml.equivalence.report import ClassReport as ClassReport
from m2ml.equivalence.report import Divergence as Divergence
from m2ml.equivalence.report import OutputReport as OutputReport
from m2ml.equivalence.report import Report as Report
from m2ml.equivalence.rounding import unit as unit
from m2ml.equivalence.scales import error_scale as error_scale
