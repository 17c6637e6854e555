"""Turns a training run into one self-describing ONNX file, quantised and proven."""
