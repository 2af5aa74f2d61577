"""The nodes of the pack."""

from .calibration_nodes import CalibrationControl, CalibrationRecorder, SaveCalibration
from .checkpoint_nodes import SaveInt8Checkpoint
from .compare_node import CompareModels
from .convert_node import ConvertCheckpoint
from .kernel_node import Int8Kernel
from .quantize_node import QuantizeModel

NODES: dict[str, tuple[type, str]] = {
    "CTQCalibrationRecorder": (CalibrationRecorder, "Calibration recorder"),
    "CTQSaveCalibration": (SaveCalibration, "Save calibration"),
    "CTQCalibrationControl": (CalibrationControl, "Calibration control"),
    "CTQSaveInt8Checkpoint": (SaveInt8Checkpoint, "Save INT8 checkpoint"),
    "CTQQuantizeModel": (QuantizeModel, "Quantize model"),
    "CTQConvertCheckpoint": (ConvertCheckpoint, "Convert checkpoint"),
    "CTQCompareModels": (CompareModels, "Compare models"),
    "CTQInt8Kernel": (Int8Kernel, "INT8 kernel"),
}
"""Node class name -> (class, title)."""
