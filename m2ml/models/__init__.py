"""Models written once in Flax NNX, their checkpoints, and the bridge from a module to pure functions."""

from m2ml.models.cnn import CNN as CNN
from m2ml.models.cnn import CNNConfig as CNNConfig
from m2ml.models.decoder import Decoder as Decoder
from m2ml.models.decoder_config import DecoderConfig as DecoderConfig
from m2ml.models.decoder_config import ExpertsConfig as ExpertsConfig
from m2ml.models.decoder_config import LayerConfig as LayerConfig
from m2ml.models.decoder_config import Rope as Rope
from m2ml.models.functional import Functional as Functional
from m2ml.models.functional import functional as functional
from m2ml.models.functional import parameter_count as parameter_count
from m2ml.models.gpt import GPT as GPT
from m2ml.models.gpt import GPTConfig as GPTConfig
from m2ml.models.settings import CheckpointError as CheckpointError
from m2ml.models.tokenizer import Tokenizer as Tokenizer
