"""Real text and real images to train on, fetched by package name and pinned hash, or the user's own."""

from m2ml.data.errors import DataError as DataError
from m2ml.data.images import Images as Images
from m2ml.data.images import load_images as load_images
from m2ml.data.images import read_images as read_images
from m2ml.data.smollm2 import smollm2 as smollm2
from m2ml.data.text import Text as Text
from m2ml.data.text import load_text as load_text
from m2ml.data.text import read_text as read_text
