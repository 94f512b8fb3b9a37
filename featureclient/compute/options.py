"""The settings of computed rows that belong to the process. Those of a view are in the catalogue, beside it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """Bounds of the worker processes and of what waits for them."""

    compute_modules: tuple[str, ...] = ()
    """Modules in which `python: "module:function"` may be found. Configuration names code, it does not bring it."""
    compute_path: tuple[str, ...] = ()
    """Folders in which the worker processes look for modules first, before those of the server itself."""
    workers: int = 2
    """Worker processes. Each runs one batch at a time; with two or more, one view never takes the last of them."""
    waiting_ids_max: int = 8192
    """Ids of one view that wait for a run. A call beyond it is refused as a whole."""
    isolating_runs_max: int = 16
    """When a run fails because of what it was asked, how many more are made with halves of its ids, to find the id
    that is to blame, so that the others get their rows."""
    breaker_failures: int = 3
    """Runs of a view that fail in a row before it is left alone."""
    breaker_open_s: float = 1.0
    """How long it is left alone; then one run at a time tries it again."""
    kill_grace_s: float = 0.05
    """What a worker has, past a run's timeout, to stop it by itself (as a query on PostgreSQL can); then it is killed
    and replaced. The callers have their answer already."""
    start_timeout_s: float = 30.0
    """How long a worker process may take until it has imported and tried out everything."""
    restart_wait_max_s: float = 5.0
    """A worker that ends before it was ready is started again after 0.1 s, then after twice as long each time, up to
    this."""
    answer_bytes_max: int = 64 * 1024 * 1024
    """The largest answer of one run, as it comes through the pipe."""
    duckdb_threads: int = 1
    """Threads of one DuckDB query. The cores are the server's first of all."""
    duckdb_memory_mb: int = 512
    """Memory of DuckDB in each worker process."""

    def __post_init__(self) -> None:
        counts = (self.workers, self.waiting_ids_max, self.breaker_failures, self.answer_bytes_max)
        if min(*counts, self.duckdb_threads, self.duckdb_memory_mb) < 1 or self.isolating_runs_max < 0:
            raise ValueError("every count and *_max must be at least 1, isolating_runs_max at least 0")
        if min(self.breaker_open_s, self.kill_grace_s) < 0 or min(self.start_timeout_s, self.restart_wait_max_s) <= 0:
            raise ValueError("times must not be negative, start_timeout_s and restart_wait_max_s above 0")
