"""Calibration and evaluation without PyTorch: a forward pass in NumPy over model folders.

`calibrate` runs text through a model and writes statistics of every matrix' inputs, which
``convert`` weighs errors with; `evaluate` says what a quantized model lost;
`calibrated_layers` gives a quantizer statistics of the stream that is quantized already. All
need the packages of the ``calibrate`` extra.

The way through this package: ``config`` reads what the model is and ``sources`` its weights,
``text`` cuts windows of tokens, ``forward`` runs them through a layer; ``collect``, ``sequential``
and ``evaluate`` do the three jobs above with it, ``command`` declares them for the command line.
"""

from q43nl_numba.calibrate.architectures import ARCHITECTURES
from q43nl_numba.calibrate.collect import CalibrationReport, calibrate
from q43nl_numba.calibrate.config import ModelConfig, read_config
from q43nl_numba.calibrate.converting import convert_calibrated, convert_with_hessians
from q43nl_numba.calibrate.errors import CalibrationError
from q43nl_numba.calibrate.evaluate import EvaluationReport, Figure, LayerError, evaluate
from q43nl_numba.calibrate.sequential import Matrix, calibrated_layers
from q43nl_numba.calibrate.statistics import Statistics
from q43nl_numba.calibrate.text import Text, Windows, built_in_text, cut_windows, read_text

__all__ = [
    "ARCHITECTURES",
    "CalibrationError",
    "CalibrationReport",
    "EvaluationReport",
    "Figure",
    "LayerError",
    "Matrix",
    "ModelConfig",
    "Statistics",
    "Text",
    "Windows",
    "built_in_text",
    "calibrate",
    "calibrated_layers",
    "convert_calibrated",
    "convert_with_hessians",
    "cut_windows",
    "evaluate",
    "read_config",
    "read_text",
]
