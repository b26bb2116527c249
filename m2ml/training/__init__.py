"""Training that runs the same on every backend: state, step, loop, checkpoints, and proof of agreement."""

from m2ml.training.agreement import Agreement as Agreement
from m2ml.training.agreement import measure as measure
from m2ml.training.agreement import perturbed_step as perturbed_step
from m2ml.training.checkpoint import CheckpointError as CheckpointError
from m2ml.training.loop import Chunk as Chunk
from m2ml.training.loop import Diverged as Diverged
from m2ml.training.loop import Speed as Speed
from m2ml.training.loop import run as run
from m2ml.training.session import Session as Session
from m2ml.training.state import OptimizerConfig as OptimizerConfig
from m2ml.training.state import TrainState as TrainState
from m2ml.training.state import make_init as make_init
from m2ml.training.state import make_train_step as make_train_step
from m2ml.training.tasks import Task as Task
from m2ml.training.tasks import cnn_task as cnn_task
from m2ml.training.tasks import gpt_task as gpt_task
