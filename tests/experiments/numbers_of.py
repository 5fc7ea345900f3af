"""What of a study's results a rerun must repeat."""


def numbers(results):
    """Everything of the trials that a rerun must repeat: all but times and memory."""
    timed = (
        "latency_ms",
        "latency_dense_ms",
        "peak_memory_mb",
        "peak_memory_dense_mb",
        "average_memory_mb",
        "average_memory_dense_mb",
    )
    rows = []
    for row in results["trials"]:
        metrics = {k: v for k, v in row["metrics"].items() if k not in timed}
        curves = {
            step: [[e["train_loss"], e["validation_score"]] for e in rows]
            for step, rows in row["curves"].items()
        }
        rows.append((row["id"], row["point"], row["seed"], metrics, row["layers"], curves))
    return rows
