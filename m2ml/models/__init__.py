"""Models written once in Flax NNX and plain ``jnp``, and the bridge from a module to pure functions."""

from m2ml.models.cnn import CNN as CNN
from m2ml.models.cnn import CNNConfig as CNNConfig
from m2ml.models.functional import Functional as Functional
from m2ml.models.functional import functional as functional
from m2ml.models.functional import parameter_count as parameter_count
from m2ml.models.gpt import GPT as GPT
from m2ml.models.gpt import GPTConfig as GPTConfig
