"""Device room: store, engines, runtime. Imports neither torch nor onnx."""
