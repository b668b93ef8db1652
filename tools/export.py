"""Write a model for another runtime: python tools/export.py CONFIG CHECKPOINT --to onnx|openvino|coreml|executorch"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('export')
