"""Files of weights, read where they lie: Hugging Face folders, MLX's quantised ones, GGUF."""

from m2ml.models.checkpoints.checkpoint import Checkpoint as Checkpoint
from m2ml.models.checkpoints.checkpoint import open_checkpoint as open_checkpoint
