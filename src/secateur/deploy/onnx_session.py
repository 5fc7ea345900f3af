"""A session of onnxruntime, without PyTorch: what runs an ONNX file needs no more."""

from __future__ import annotations

from typing import Any

from secateur.errors import ModelError
from secateur.factories import need
from secateur.text import first_line


def session_of(content: bytes | str, name: str, threads: int = 1) -> Any:
    """Return an ``onnxruntime.InferenceSession`` for a file's bytes or path: on the CPU, operators one after
    another, each on ``threads`` threads.

    Args:
        content: the bytes of a file, or its path.
        name: what an error calls it.
        threads: one is the caller's own.

    Raises:
        MissingExtraError: without onnxruntime.
        ModelError: for what onnxruntime cannot load.
    """
    onnxruntime = need("onnxruntime", extra="onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, one class a status
        raise ModelError(f"{name}: onnxruntime cannot load its graph: {first_line(error)}") from error
