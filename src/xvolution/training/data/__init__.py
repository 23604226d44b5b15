"""Images and labels by one argument: digits, folders, parquet files, Hugging Face and torchvision names."""

from xvolution.training.data.catalog import DataSplits, open_data
from xvolution.training.data.dataset import ClassificationDataset, evaluation_loader
from xvolution.training.data.module import ClassificationData
from xvolution.training.data.sampler import EpochBatches, EvaluationBatches
from xvolution.training.data.sources import ArrayImages, FolderImages, ImageSource, TableImages, TorchvisionImages

__all__ = [
    "ArrayImages",
    "ClassificationData",
    "ClassificationDataset",
    "DataSplits",
    "EpochBatches",
    "EvaluationBatches",
    "FolderImages",
    "ImageSource",
    "TableImages",
    "TorchvisionImages",
    "evaluation_loader",
    "open_data",
]
