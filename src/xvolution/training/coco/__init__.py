"""Detection data in COCO's format: reading and checking them, batches for training, COCO's metrics."""

from xvolution.training.coco.catalog import open_detection
from xvolution.training.coco.check import DataReport, check_folder
from xvolution.training.coco.data import DetectionData
from xvolution.training.coco.metrics import CocoMetrics
from xvolution.training.coco.source import DetectionSource, DetectionSplits
from xvolution.training.data.problems import Problem, Severity

__all__ = [
    "CocoMetrics",
    "DataReport",
    "DetectionData",
    "DetectionSource",
    "DetectionSplits",
    "Problem",
    "Severity",
    "check_folder",
    "open_detection",
]
