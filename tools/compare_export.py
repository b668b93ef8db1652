"""Compare exported files with PyTorch: python tools/compare_export.py CONFIG CHECKPOINT FILE.onnx FILE.xml"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('compare-export')
