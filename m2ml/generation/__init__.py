"""Language models at work: load one, let it write."""

from m2ml.generation.generate import Generation as Generation
from m2ml.generation.generate import Piece as Piece
from m2ml.generation.generate import generate as generate
from m2ml.generation.language_model import ConversionWarning as ConversionWarning
from m2ml.generation.language_model import LanguageModel as LanguageModel
from m2ml.generation.language_model import load as load
from m2ml.generation.perplexity import perplexity as perplexity
from m2ml.generation.prompt_cache import load_session as load_session
from m2ml.generation.prompt_cache import save_session as save_session
from m2ml.generation.sampling import Sampling as Sampling
from m2ml.generation.session import Session as Session
from m2ml.generation.statistics import Statistics as Statistics
