"""How many networks secateur makes smaller and still equal to themselves, beside Torch-Pruning.

Every network loses half of each group of coupled channels, in float64 where it can run in it, with
weights that hide no error. It passes when at least a tenth of its parameters is gone and all outputs
equal the masked network's, on two draws of inputs. Each is measured in a process of its own with a
time limit (the wall's seconds); what is printed are seconds of the processor, on one thread.

    python benchmarks/tracing.py --set small             # ours on the small networks
    python benchmarks/tracing.py --peer --json out.json  # all, beside Torch-Pruning
    python benchmarks/tracing.py --only llama --verbose  # with tracebacks
    python benchmarks/tracing.py --large                 # seconds of sc.trace on deep networks
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.fx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from networks.hf import HF
from networks.judged import Outcome, prepare, relative_error, verdict
from networks.packages import NETWORKS as PACKAGES
from networks.peer import BY_SCALE, peer
from networks.small import SMALL
from networks.small.deep import CONSTRUCTED_LARGE
from networks.zoo import Network, Unavailable

SETS = {"small": SMALL, "hf": HF, "packages": PACKAGES, "all": (*SMALL, *HF, *PACKAGES)}
AS_GRAPH = "not its own forward, an exported graph"
STATUSES = ("pass", "refused", "wrong", "fails", "hangs", "skipped")


def ours(network: Network) -> Outcome:
    """Out of its modules; where these must keep something, out of its graph."""
    outcome = removed(network, "modules")
    if outcome.status != "refused":
        return outcome
    graph = removed(network, "graph")
    graph = replace(graph, seconds=graph.seconds + outcome.seconds)
    return replace(graph, reason=AS_GRAPH) if graph.status == "pass" else outcome


def removed(network: Network, form: str) -> Outcome:
    """Trace, prune half of every group, compact, and compare with the masked network."""
    import secateur as sc
    from secateur.errors import SecateurError

    case = prepare(network)
    model = case.model
    before = sum(p.numel() for p in model.parameters())
    args, kwargs = case.draws[0]
    start = time.process_time()
    try:
        structure = sc.trace(model, args, kwargs=kwargs, form=form)
        sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
        with torch.no_grad():
            masked = [model(*a, **k) for a, k in case.draws]
        small, _ = sc.compact(model, args, kwargs=kwargs, structure=structure, form=form)
    except SecateurError as error:
        return Outcome("refused", seconds=time.process_time() - start, reason=first_line(error))
    seconds = time.process_time() - start
    with torch.no_grad():
        outs = [small(*a, **k) for a, k in case.draws]
    error = max(relative_error(m, s) for m, s in zip(masked, outs, strict=True))
    gone = 1 - sum(p.numel() for p in small.parameters()) / before
    return verdict(gone, error, case.tolerance, seconds)


def tracing(network: Network) -> Outcome:
    """Seconds of ``sc.trace`` alone."""
    import secateur as sc

    case = prepare(network)
    args, kwargs = case.draws[0]
    start = time.process_time()
    sc.trace(case.model, args, kwargs=kwargs)
    return Outcome("pass", seconds=time.process_time() - start)


SIDES: dict[str, Callable[[Network], Outcome]] = {"ours": ours, "peer": peer, "tracing": tracing}


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def child(side: str, name: str, verbose: bool, answer: Connection) -> None:
    torch.set_num_threads(1)
    if not verbose:  # by descriptor, since exporting also complains from C++
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    warnings.simplefilter("ignore")
    network = next(n for n in (*SETS["all"], *CONSTRUCTED_LARGE) if n.name == name)
    try:
        outcome = SIDES[side](network)
    except Unavailable as error:
        outcome = Outcome("skipped", reason=first_line(error))
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome("fails", reason=f"{type(error).__name__}: {first_line(error)}")
    answer.send(outcome)


def measure(side: str, name: str, limit: float, verbose: bool) -> Outcome:
    """One network in a process of its own, killed when its time is over."""
    # forked where that is possible: importing transformers anew would take longer than most networks
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(side, name, verbose, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return Outcome("hangs", seconds=limit, reason=f"not done in {limit:.0f} s")
        return receiver.recv()
    except EOFError:
        process.join()
        return Outcome("fails", reason=f"its process died with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def preload() -> None:
    """Import once, before processes are forked, what each of them needs."""
    torch.set_num_threads(1)
    for package in ("secateur", "transformers", "torch_pruning"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            print(f"{package}: {first_line(error)}", flush=True)


def line(network: Network, outcomes: dict[str, Outcome]) -> str:
    cells = [f"{network.name:32}"]
    for side, o in outcomes.items():
        numbers = f"{o.gone:4.0%} {o.error:7.0e} {o.seconds:6.2f} s"
        cells.append(f"{side} {o.status:8}{numbers if o.status in ('pass', 'wrong', 'refused') else '':21}")
    cells += [f"{side}: {o.reason}" for side, o in outcomes.items() if o.reason]
    return "  ".join(cells)


def summary(results: dict[str, dict[str, Outcome]]) -> str:
    """Counts and seconds of each side, in columns beside each other."""
    sides = {side: [o[side] for o in results.values()] for side in next(iter(results.values()))}
    rows = [("", *sides)]
    rows += [(s, *(str(sum(o.status == s for o in os)) for os in sides.values())) for s in STATUSES]
    for label, reason in (("(pass, as a graph)", AS_GRAPH), ("(wrong by scale alone)", BY_SCALE)):
        rows.append((label, *(str(sum(o.reason.endswith(reason) for o in os)) for os in sides.values())))
    ran = {side: [o.seconds for o in os if o.seconds and o.status != "hangs"] for side, os in sides.items()}
    for label, pick in (("median seconds", statistics.median), ("worst seconds", max)):
        rows.append((label, *(f"{pick(times):.2f}" if times else "-" for times in ran.values())))
    return "\n".join("".join([f"{row[0]:24}", *(f"{cell:>10}" for cell in row[1:])]) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="SUBSTRING", help="parts of networks' names")
    parser.add_argument("--set", choices=SETS, default="all")
    parser.add_argument("--peer", action="store_true", help="Torch-Pruning beside ours")
    parser.add_argument("--peer-alone", action="store_true", help="Torch-Pruning without ours")
    parser.add_argument("--large", action="store_true", help="time sc.trace on deep networks")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all outcomes")
    parser.add_argument("--verbose", action="store_true", help="show warnings and tracebacks")
    args = parser.parse_args()
    sides = ["peer"] if args.peer_alone else ["ours", "peer"] if args.peer else ["ours"]
    networks, sides = (CONSTRUCTED_LARGE, ["tracing"]) if args.large else (SETS[args.set], sides)
    chosen = [n for n in networks if not args.only or any(part in n.name for part in args.only)]
    if not chosen:
        sys.exit("no network has such a name")
    preload()
    results: dict[str, dict[str, Outcome]] = {}
    for network in chosen:
        outcomes = {side: measure(side, network.name, args.timeout, args.verbose) for side in sides}
        results[network.name] = outcomes
        print(line(network, outcomes), flush=True)
        if args.json:
            done = {name: {s: asdict(o) for s, o in each.items()} for name, each in results.items()}
            args.json.write_text(json.dumps(done, indent=1))
    print(f"\n{len(chosen)} networks\n{summary(results)}")


if __name__ == "__main__":
    main()
