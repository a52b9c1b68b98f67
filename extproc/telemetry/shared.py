"""A directory in which processes share their metrics; prometheus_client looks for it when it is imported."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def metrics_directory() -> Iterator[Path]:
    """Enter before anything imports `telemetry.metrics`; child processes inherit it."""
    directory = Path(tempfile.mkdtemp(prefix="extproc-metrics-"))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
