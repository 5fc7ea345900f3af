"""The formats of a network: each file written, or the reason why there is none."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.deploy.folder import PACKAGE, check_free, write_folder
from secateur.deploy.onnx import export_onnx
from secateur.errors import MissingExtraError, ModelError, SecateurError
from secateur.experiments.commands.inference import Format
from secateur.experiments.commands.private import PrivateFolder
from secateur.experiments.commands.sources import Source
from secateur.structure.compact import compact
from secateur.structure.proof import Proof
from secateur.structure.saved import save

OnStep = Callable[[str], None]
COMPACTED = "compacted.safetensors"


@dataclass
class Making:
    """The formats of one network so far: those that were made, and of the others why not, in order.

    ``folder``: where they are made and run, in ``private``; ``target``: where they go in the end.
    """

    source: Source
    private: PrivateFolder
    target: Path
    on_step: OnStep
    formats: dict[str, Format | str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.private.path / "made"

    def add(
        self, name: str, engine: str, make: Callable[[], Path], options: Mapping[str, Any] | None = None
    ) -> None:
        """Make a file, and take it as a format; an error of secateur's is its row instead."""
        self.on_step(f"making {name}")
        try:
            path = make()
        except SecateurError as error:
            self.formats[name] = str(error)
            return
        built = options is not None
        self.formats[name] = Format(
            name,
            engine,
            str(path),
            self.source.model if built else "",
            options or {},
            self.source.needs if built else (),
        )
        self.on_step(f"  {self.shown(path)}")

    def shown(self, path: Path) -> Path:
        """Return where a file is in the end."""
        return self.target / path.relative_to(self.folder) if path.is_relative_to(self.folder) else path


def make_formats(making: Making) -> None:
    """Write every file, dense first."""
    source, folder, example = making.source, making.folder, making.source.example
    if (dense := source.dense) is not None:

        def write(name: str, writer: Callable[[nn.Module, Path], object]) -> Path:
            writer(dense.load(), folder / name)
            return folder / name

        making.add("dense, PyTorch", "torch", lambda: write("dense.safetensors", save), dense.options)
        making.add(
            "dense, ONNX",
            "onnxruntime",
            lambda: write("dense.onnx", lambda network, path: export_onnx(network, example, path)),
        )
    small = pruned = source.network
    options, file = source.options, source.file or folder / "network.safetensors"

    def given() -> Path:
        if source.file is None:
            save(pruned, file)
        return file

    making.add(source.reference, "torch", given, options)
    compacted = folder / COMPACTED

    def removed() -> Path:
        nonlocal small, file
        network, proof = compact(pruned, example)
        if (graph := smaller_graph(pruned, example, proof)) is not None:
            small, left = graph
            making.notes["packed, numpy"] = making.notes["ONNX"] = (
                f"{left:,} parameters, by the graph: the network's forward has sizes written into it"
            )
        if not proof.removed:
            raise ModelError(f"nothing can be removed from {file.name}: no unit in it is dead")
        save(network, compacted)
        small, file = small if graph else network, compacted
        before, after = proof.parameters
        making.notes["compacted, PyTorch"] = (
            f"{after:,} of {before:,} parameters, proved equal to the network given to "
            f"{max(proof.max_error, proof.max_error_randomised):.1e}; sparse, packed and ONNX are made of it"
        )
        return compacted

    making.add("compacted, PyTorch", "torch", removed, options)
    making.add("sparse, PyTorch", "sparse", lambda: file, options)
    making.notes["sparse, PyTorch"] = (
        f"has no file of its own: sparsify makes it from {file.name} at every start, for the batch size that "
        "it runs, and the load time is mostly that of timing each layer's engines"
    )

    def packed() -> Path:
        check_free(making.target / "packed")
        return write_folder(small, example, folder / "packed") / "model.secateur"

    making.add("packed, numpy", "numpy", packed)
    made = making.formats["packed, numpy"]
    if isinstance(made, Format):
        beside = Path(made.file).parent
        code = sum(path.stat().st_size for path in (beside / "run.py", *beside.glob(f"{PACKAGE}/*.py")))
        code_note = f"run.py and {PACKAGE} beside it are {code:,} bytes more"
        making.notes["packed, numpy"] = "; ".join(
            filter(None, (making.notes.get("packed, numpy"), code_note))
        )
    making.add("packed, compiled", "compiled", lambda: _compilable(made))

    def onnx(name: str, **int8: Any) -> Path:
        done = export_onnx(small, example, folder / name, **int8)
        if done.layers:
            making.notes["ONNX int8"] = f"int8 in {done.layers[0]} of {done.layers[1]} layers"
        return folder / name

    def int8() -> dict[str, Any]:
        if not source.calibration:
            raise ModelError("int8 reads examples for the ranges of its activations: give --data or --inputs")
        return {"int8": True, "data": source.calibration}

    making.add("ONNX", "onnxruntime", lambda: onnx("model.onnx"))
    making.add("ONNX int8", "onnxruntime", lambda: onnx("model-int8.onnx", **int8()))


def smaller_graph(pruned: nn.Module, example: Any, modules: Proof) -> tuple[nn.Module, int] | None:
    """Return a graph of a pruned network, with how many parameters it has, where it loses more than its
    modules can: formats that need no Python forward are made of it."""
    if not modules.kept:
        return None
    try:
        graph, proof = compact(pruned, example, form="graph")
    except ModelError:  # it has none: what its modules lose is all that goes
        return None
    return (graph, proof.parameters[1]) if proof.parameters[1] < modules.parameters[1] else None


def _compilable(packed: Format | str) -> Path:
    if isinstance(packed, str):
        raise ModelError(packed)
    if importlib.util.find_spec("numba") is None:
        raise MissingExtraError("numba", "fast")
    return Path(packed.file)
