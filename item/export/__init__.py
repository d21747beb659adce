"""From a model to the ONNX graphs of its variants: what `deploy.export` writes and `item.engine` runs."""
