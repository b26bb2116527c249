"""Language models at work: load one, let it write."""

from m2ml.generation.language_model import ConversionWarning as ConversionWarning
from m2ml.generation.language_model import LanguageModel as LanguageModel
from m2ml.generation.language_model import load as load
