"""The sections of the config that say what a run is, what it reads, and what it leaves behind.

`configs.schema` holds the whole; import from there.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from configs.model_sections import MAX_NAME_LENGTH, FileName, PathText, Section

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class RunSection(Section):
    """Name, place, length and seed of the run."""

    name: str = Field(
        "shapes_cpu",
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        pattern=NAME_PATTERN,
        description="of the run, and of its folder",
    )
    dir: PathText = Field("runs", description="the run directory is DIR/NAME")
    cache_dir: PathText = Field("~/.cache/bicot", description="warm-started models are kept here, by content")
    seed: int = Field(0, ge=0, description="decides prompts' order and every trajectory's tokens")
    steps: int = Field(100, ge=1, description="optimizer steps")
    deterministic: bool = Field(
        False, description="nothing depends on timing, not even rounding: two runs are equal bit for bit, and slower"
    )
    start_timeout_s: float = Field(600.0, gt=0, description="how long all actors together may take to start")
    max_restarts: int = Field(
        3, ge=0, description="times a dead learner is started again from the last checkpoint; 0 ends the run instead"
    )
    step_timeout_s: float = Field(1800.0, gt=0, description="how long one step may wait for its groups")


class BenchmarkConfig(Section):
    """A part of a public benchmark that is drawn and scored now and then during a run."""

    limit: int = Field(64, ge=1, description="prompts, of each category in turn: always the same ones")
    every_steps: int = Field(100, ge=1, description="after every so many steps; the learner waits")
    data: PathText | None = Field(None, description="your copy of the benchmark's official repository")
    scorer: dict[str, str] = Field(
        default_factory=dict, description="weights and settings of its scorer, as --scorer of rewards.benchmark"
    )
    judge_url: str | None = Field(None, description="an OpenAI-compatible server, up to and with /v1")
    judge_model: str | None = Field(None, description="the judge's name there; null: the official judge's")
    judge_key_env: str | None = Field(None, description="environment variable that holds the server's API key")
    replicas: int = Field(1, ge=1, description="of the scorer, with rewards.benchmark --config; during a run it is one")
    cpus: float = Field(1.0, ge=0, description="of each replica, which has as many threads; with --config only")
    gpus: float = Field(
        0.0,
        ge=0,
        description="of each replica; 0 scores on a CPU. During a run it is on the launcher's machine",
    )
    timeout_s: float = Field(900.0, gt=0, description="for drawing and scoring; what is late is told and left out")


class DataConfig(Section):
    """Where prompts come from: a .jsonl/.json/.csv/.parquet/.txt file, or `shapes:SPLIT`."""

    train: PathText = Field(..., min_length=1, description="prompts to train on")
    evaluation: dict[FileName, PathText] = Field(
        default_factory=dict, description="name -> source; each is scored before and after training"
    )
    num_evaluation_prompts: int = Field(192, ge=1, description="at most so many prompts of each evaluation source")
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="scores them after every so many steps, too, for metrics.jsonl; the learner waits"
    )
    benchmarks: dict[FileName, BenchmarkConfig] = Field(
        default_factory=dict, description="name of a public benchmark -> how much of it is scored, and when"
    )
    shuffle: bool = Field(True, description="a new random order each epoch; false keeps the file's")
    max_bad_lines: int = Field(100, ge=0, description="more bad lines than this end the run before it starts")

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.evaluate_every_steps is not None and not self.evaluation:
            raise ValueError(
                f"evaluate_every_steps is {self.evaluate_every_steps}, but evaluation names no prompts; "
                "name a source there, or leave evaluate_every_steps out"
            )
        return self


class QueueConfig(Section):
    """The bounded trajectory queue between rewards and learner."""

    max_groups: int | None = Field(None, ge=1, description="null: (max_staleness + 1) x groups_per_step")


class RegistryConfig(Section):
    """Redis: the run's registry."""

    redis_url: str | None = Field(None, description="redis://, rediss:// or unix://; null starts a private server")
    redis_port: int = Field(0, ge=0, le=65535, description="of the private server; 0 takes a free one")
    patience_s: float = Field(600.0, ge=0, description="a server that does not answer is waited for, while training")


class CheckpointConfig(Section):
    """What is kept for resuming and for use."""

    every_steps: int = Field(50, ge=1, description="steps between two checkpoints; the last step always has one")
    keep_last: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_every: int | None = Field(None, ge=1, description="those of steps that this divides are kept for good, too")
    max_failures: int = Field(
        10,
        ge=1,
        description="so many in a row that could not be written end the run; pauses between tries grow to a minute",
    )
    url: str | None = Field(
        None, description="copies go to URL/KEY (see RUN/run_key): s3://, gs://, file://, … (fsspec); null: none"
    )


class SamplesConfig(Section):
    """Pictures for people."""

    every_steps: int = Field(10, ge=1, description="steps between two pages of pictures")
    num_pictures: int = Field(16, ge=1, description="pictures on a page")


class WatchingConfig(Section):
    """What those who watch a run are told, while it lives and at its end. Nothing of it can end or stop a run."""

    metrics: bool = Field(True, description="tell Ray's dashboard and Prometheus, and write live.json")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        (), description="also tell these; all but tensorboard are extras of the same names: bicot[wandb]"
    )
    report: bool = Field(True, description="write report.html at the end: one file, for sending around")
    timeline: bool = Field(True, description="write timeline.json, a Chrome trace of every group's way")


class ScalingConfig(Section):
    """When elastic pools grow and shrink, see `cluster.pools.scaling`; those of a fixed size never do."""

    every_s: float = Field(2.0, gt=0, description="seconds between two looks at the pools")
    grow_after_s: float = Field(30.0, gt=0, description="a pool grows when it was the bottleneck for most of this time")
    shrink_after_s: float = Field(300.0, gt=0, description="and shrinks when it had idle workers all this time")

    @model_validator(mode="after")
    def _check(self) -> ScalingConfig:
        if not self.every_s <= self.grow_after_s <= self.shrink_after_s:
            raise ValueError(
                f"every_s {self.every_s:g}, grow_after_s {self.grow_after_s:g} and shrink_after_s "
                f"{self.shrink_after_s:g}: "
                "each must be at least as long as the one before; starting a worker costs more than an idle one does"
            )
        return self


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str | None = Field(None, description="null: the job's cluster, or a local Ray; 'auto' or host:port")
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local Ray; null: what the plan needs")
    dashboard: bool = Field(False, description="start the Ray dashboard with a local Ray")
    object_store_gib: float | None = Field(
        None,
        gt=0,
        description="of a local Ray; null: two versions of the weights and 1 GiB, where /dev/shm has room",
    )
    heartbeat_s: float = Field(5.0, gt=0, description="an answer that is later makes a worker SUSPECT: no new calls")
    heartbeat_timeout_s: float = Field(60.0, gt=0, description="a worker that is silent for so long is replaced")
    scaling: ScalingConfig = Field(ScalingConfig(), description="when elastic pools grow and shrink")
    autoscaling: bool = Field(False, description="the cluster adds nodes on demand: wait for what does not fit yet")

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        if self.heartbeat_timeout_s < self.heartbeat_s:
            raise ValueError(
                f"heartbeat_timeout_s {self.heartbeat_timeout_s:g} is shorter than heartbeat_s {self.heartbeat_s:g}, "
                "so a worker would be replaced before it is suspected; raise it"
            )
        return self
