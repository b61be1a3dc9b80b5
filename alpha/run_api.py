"""What there is to know about runs, as values that JSON can hold: for `alpha runs --json` and for dashboards."""

from typing import Any

from alpha.run_reader import RunSummary


def describe(summary: RunSummary) -> dict[str, Any]:
    """One run of a list."""
    return {
        "runId": summary.run_id,
        "name": summary.notes.name,
        "group": summary.notes.group,
        "notes": summary.notes.notes,
        "folder": str(summary.folder),
        "status": summary.status,
        "phase": summary.phase,
        "heard": summary.heard,
        "error": summary.error,
        "domain": summary.domain,
        "step": summary.step,
        "iters": summary.iters,
        "loss": summary.loss,
        "valLoss": summary.val_loss,
        "tokensPerSec": summary.tokens_per_sec,
        "secondsLeft": summary.seconds_left,
        "created": summary.created,
        "updated": summary.updated.isoformat(),
    }
