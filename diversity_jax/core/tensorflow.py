"""Importing TensorFlow, SeqIO and TFDS without their start-up noise and without taking the accelerator from JAX."""

import importlib
import logging
import os
import sys
from types import ModuleType
import warnings

from diversity_jax.core.errors import InputError


def import_quietly(name: str) -> ModuleType:
    """Imports `tensorflow`, or a package that imports it (`seqio`, `tensorflow_datasets`).

    TensorFlow only reads data here; its view of GPUs is emptied, or it would reserve the memory that JAX needs. Where
    it was imported before, its importer has made these choices, and they stay.

    Raises:
      InputError: the package is not installed.
    """
    is_ours = "tensorflow" not in sys.modules
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensorflow = importlib.import_module("tensorflow")
            if is_ours:
                tensorflow.config.set_visible_devices([], "GPU")
                tensorflow.get_logger().setLevel(logging.ERROR)
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or name).replace("_", "-")
        raise InputError(
            f"this source needs the package {package}, which is not installed; run pip install {package}"
        ) from None
