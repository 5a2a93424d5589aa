"""Importing TensorFlow, SeqIO and TFDS without their start-up noise and without taking the accelerator from JAX.

This module loads at once; `from diversity_jax.core.tensorflow import tf, seqio` imports what it names, which takes
seconds, so only modules that always need it do so at their top.
"""

import importlib
import logging
import os
import sys
from types import ModuleType
from typing import Any
import warnings

from diversity_jax.core.errors import InputError

_PACKAGES = {"tf": "tensorflow", "seqio": "seqio"}


def __getattr__(name: str) -> Any:
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_quietly(_PACKAGES[name])


def import_quietly(name: str) -> ModuleType:
    """Imports `tensorflow`, or a package that imports it (`seqio`, `tensorflow_datasets`).

    TensorFlow only reads data here, so it gets no GPU, whose memory it would reserve. If TensorFlow was imported
    before, its settings are left as they are.

    Raises:
      InputError: the package is not installed.
    """
    is_first_import = "tensorflow" not in sys.modules
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # 2.21 announces oneDNN whatever the log level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensorflow = importlib.import_module("tensorflow")
            if is_first_import:
                tensorflow.config.set_visible_devices([], "GPU")
                tensorflow.get_logger().setLevel(logging.ERROR)
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or name).replace("_", "-")
        raise InputError(f"this source needs a package that is not there: pip install {package}") from None
