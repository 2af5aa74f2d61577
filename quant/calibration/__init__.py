"""Calibration: recording a model's activations, the file they are kept in, and finding a layer's record."""

from .file import CalibrationData, save
from .influence import Calls, influences
from .names import MatchReport, NothingMatched
from .record import Recorder, calibrate

__all__ = [
    "CalibrationData",
    "Calls",
    "MatchReport",
    "NothingMatched",
    "Recorder",
    "calibrate",
    "influences",
    "save",
]
