"""The main job in one command: a convolutional network and its X-volution twin, from training to ONNX Runtime, on one page."""

from xvolution.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
