"""One rule per primitive; importing this package fills the table."""

from m2ml_torch.rules import contractions, elementwise, indexing, integers, random, reductions, structure, windows
from m2ml_torch.rules.table import rules

__all__ = [
    "contractions",
    "elementwise",
    "indexing",
    "integers",
    "random",
    "reductions",
    "rules",
    "structure",
    "windows",
]
