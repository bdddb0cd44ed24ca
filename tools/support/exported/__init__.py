"""Running a file of tools/export_onnx.py: neither mmdet nor mmseg, nor the model in PyTorch."""

from support.exported.model import Detections, ExportedModel

__all__ = ['Detections', 'ExportedModel']
