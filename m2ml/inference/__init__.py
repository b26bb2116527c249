"""Models of texts and images at work: load one, give it texts or pictures."""

from m2ml.inference.clip_model import CLIPModel as CLIPModel
from m2ml.inference.image_model import Guess as Guess
from m2ml.inference.image_model import ImageModel as ImageModel
from m2ml.inference.load import load as load
from m2ml.inference.preprocessing import Preprocessing as Preprocessing
from m2ml.inference.text_encoder import Pooling as Pooling
from m2ml.inference.text_encoder import TextEncoder as TextEncoder
