"""The nodes of the pack."""

from .calibration_nodes import CalibrationControl, CalibrationRecorder, SaveCalibration
from .checkpoint_nodes import SaveInt8Checkpoint
from .kernel_node import Int8Kernel

NODES: dict[str, tuple[type, str]] = {
    "CTQCalibrationRecorder": (CalibrationRecorder, "Calibration recorder"),
    "CTQSaveCalibration": (SaveCalibration, "Save calibration"),
    "CTQCalibrationControl": (CalibrationControl, "Calibration control"),
    "CTQSaveInt8Checkpoint": (SaveInt8Checkpoint, "Save INT8 checkpoint"),
    "CTQInt8Kernel": (Int8Kernel, "INT8 kernel"),
}
"""Node class name -> (class, title)."""
