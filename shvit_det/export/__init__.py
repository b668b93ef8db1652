"""Models as files for other runtimes: whole detectors for ONNX Runtime and OpenVINO, parts of a model for phones."""
