"""The board's panels as data: what each shows, and by which queries."""

from __future__ import annotations

from typing import Final

from cluster.boards.queries import NODE, RUN, Panel, Query, Row, counted, gauge, quantile, rate

_EVALUATED = "data.evaluate_every_steps"
_VLLM = "rollout.engine vllm"
_TWO = "two rewards"
_GPU = "a GPU"

GLANCE: Final = Row(
    "At a glance",
    (
        Panel("Step", "Optimizer steps made.", (gauge("step", "{{run}}"),), kind="stat", width=4),
        Panel(
            "Since the last step",
            "Grows without end when a run is stuck.",
            (Query(f"time() - max by (run) (ray_bicot_last_step_unixtime{{{RUN}}})", "{{run}}"),),
            "s",
            "stat",
            4,
        ),
        Panel("Reward", "Mean over the step's pictures.", (gauge("reward_mean", "{{run}}"),), kind="stat", width=4),
        Panel("Pictures a second", "Learned from.", (gauge("images_per_s", "{{run}}"),), kind="stat", width=4),
        Panel(
            "Workers ready",
            "Of all pools.",
            (
                Query(
                    f'sum by (run) (ray_bicot_workers{{{RUN},state="READY"}}) '
                    f"/ sum by (run) (ray_bicot_pool_size{{{RUN}}})",
                    "{{run}}",
                ),
            ),
            "percentunit",
            "stat",
            4,
        ),
        Panel(
            "Time left",
            "Steps that are left at the pace of the last one.",
            (
                Query(
                    f"(max by (run) (ray_bicot_steps_planned{{{RUN}}}) - max by (run) (ray_bicot_step{{{RUN}}})) "
                    f"* max by (run) (ray_bicot_time_step_s{{{RUN}}})",
                    "{{run}}",
                ),
            ),
            "s",
            "stat",
            4,
        ),
    ),
)
LEARNING: Final = Row(
    "Learning",
    (
        Panel(
            "Reward",
            "Combined reward of the step's pictures: mean, and the tenth and ninetieth hundredth.",
            (
                gauge("reward_mean", "{{run}} mean"),
                quantile(0.1, "reward", "{{run}} 10 %"),
                quantile(0.9, "reward", "{{run}} 90 %"),
            ),
        ),
        Panel(
            "Evaluation sets",
            "Mean reward on prompts that are not trained on.",
            (gauge("evaluation", "{{run}} {{set}}", "set", _EVALUATED),),
        ),
        Panel(
            "Spread within groups",
            "Standard deviation of the reward within a group, and the share of groups without any: they teach nothing.",
            (gauge("reward_std_in_group", "{{run}} std"), gauge("groups_without_spread", "{{run}} groups without")),
        ),
        Panel(
            "KL to the reference policy",
            "Nats a token; CoT and picture apart.",
            (gauge("kl", "{{run}}"), gauge("kl_cot", "{{run}} CoT"), gauge("kl_image", "{{run}} image")),
        ),
        Panel(
            "Entropy",
            "Of the policy, nats a token. A CoT's that falls to 0 has collapsed.",
            (gauge("entropy_cot", "{{run}} CoT"), gauge("entropy_image", "{{run}} image")),
        ),
        Panel(
            "Parity of engine and learner",
            "Mean difference of their log-probabilities under the same weights, nats a token; at steps that compare.",
            (
                gauge("parity_mean_abs_cot", "{{run}} CoT"),
                gauge("parity_mean_abs_image", "{{run}} image"),
            ),
        ),
        Panel(
            "Ratio",
            "Probability under the learner over that when sampled: smallest, mean and largest of all tokens.",
            (
                gauge("ratio_min", "{{run}} min"),
                gauge("ratio_mean", "{{run}} mean"),
                gauge("ratio_max", "{{run}} max"),
                gauge("clip_fraction", "{{run}} clipped"),
            ),
        ),
        Panel(
            "Gradient",
            "L2 norm before clipping, and the learning rate.",
            (gauge("grad_norm", "{{run}} norm"), gauge("lr", "{{run}} learning rate")),
        ),
        Panel(
            "Length of the semantic CoT",
            "Tokens. At rollout.max_cot_tokens, plans are cut.",
            (gauge("cot_length", "{{run}} mean"), quantile(0.9, "cot_tokens", "{{run}} 90 %")),
        ),
    ),
)
SPEED: Final = Row(
    "Speed",
    (
        Panel(
            "Pictures learned from",
            "A second: of the last step, and over the time shown.",
            (gauge("images_per_s", "{{run}} last step"), rate("images_learned", "{{run}} in all")),
        ),
        Panel(
            "Where the time goes",
            "Seconds a second that the run is in each phase. Waiting for groups at most: rollout or rewards bound it.",
            (rate("phase_seconds", "{{phase}}", "phase"),),
            "percentunit",
            "stacked",
        ),
        Panel(
            "What a step waits for",
            "Seconds of the last step's critical path: the longest bounds the run.",
            tuple(
                gauge(f"critical_{part}_s", f"{{{{run}}}} {part}")
                for part in ("rollout", "rewards", "queue", "learn", "sync", "other")
            ),
            "s",
            "stacked",
        ),
        Panel(
            "Stages at work",
            "Share of a step's time in which each stage is at work; their greatest is the pipeline's efficiency.",
            (
                gauge("pipeline_efficiency", "{{run}} efficiency"),
                *(gauge(f"busy_{stage}", f"{{{{run}}}} {stage}") for stage in ("rollout", "rewards", "learner")),
            ),
            "percentunit",
        ),
        Panel("Phase", "What the run is at.", (gauge("phase", "{{phase}}", "phase"),), kind="states"),
        Panel(
            "Stages of a group and a step",
            "Medians. Rollout and rewards of groups overlap with each other and with learning.",
            tuple(quantile(0.5, f"{stage}_seconds", stage) for stage in ("rollout", "reward", "learn", "sync")),
            "s",
        ),
        Panel(
            "Groups under way",
            "By what they wait for.",
            (gauge("groups_in_flight", "{{waiting_for}}", "waiting_for"),),
            kind="stacked",
        ),
        Panel(
            "Staleness",
            "Weight versions between what sampled a trajectory and what learns from it.",
            (gauge("staleness_mean", "{{run}} mean"), gauge("staleness_max", "{{run}} largest")),
        ),
        Panel(
            "Tokens sampled by the engines",
            "A second, of all rollout workers.",
            (rate("engine_generated_tokens", "{{run}} sampled", needs=_VLLM),
             rate("engine_prompt_tokens", "{{run}} prefilled", needs=_VLLM)),
        ),
        Panel(
            "Sequences in the engines",
            "Running and waiting, and how full the KV cache of the fullest is.",
            (
                Query(f"sum by (run) (ray_bicot_engine_running{{{RUN}}})", "running", _VLLM),
                Query(f"sum by (run) (ray_bicot_engine_waiting{{{RUN}}})", "waiting", _VLLM),
                gauge("engine_kv_cache_usage", "fullest KV cache", needs=_VLLM),
            ),
        ),
        Panel(
            "GPUs",
            "Utilisation of each node's GPUs, per cent; of the learner's while it waits it is low by design.",
            (Query(f"ray_node_gpus_utilization{{{NODE}}}", "{{instance}} {{GpuIndex}}", _GPU),),
            "percent",
        ),
    ),
)  # fmt: skip
HEALTH: Final = Row(
    "Health",
    (
        Panel(
            "Workers",
            "By pool and health. Only READY ones get work.",
            (gauge("workers", "{{pool}} {{state}}", "pool, state"),),
            kind="stacked",
        ),
        Panel(
            "Wanted and missing",
            "Size that each pool is to have, and workers that are not READY.",
            (
                gauge("pool_size", "{{pool}} wanted", "pool"),
                Query(
                    f"max by (run, pool) (ray_bicot_pool_size{{{RUN}}}) "
                    f'- sum by (run, pool) (ray_bicot_workers{{{RUN},state="READY"}})',
                    "{{pool}} missing",
                ),
            ),
        ),
        Panel(
            "Faults and recoveries",
            "In the last hour.",
            (
                counted("worker_deaths", "workers lost"),
                counted("restarts", "learner restarts"),
                counted("groups", "groups rolled again", 'event="failed"'),
                counted("groups", "prompts given up", 'event="given_up"'),
                counted("checkpoints", "checkpoints that failed", 'outcome="failed"'),
            ),
        ),
        Panel(
            "Ledger",
            "Groups a second that come to each state. In a healthy run all lines but that of the failed ones are one.",
            (rate("groups", "{{event}}", "event"),),
        ),
        Panel(
            "Calls that wait",
            "For a worker with room, by pool.",
            (gauge("pool_calls_waiting", "{{pool}}", "pool"), gauge("pool_calls", "{{pool}} at work", "pool")),
        ),
        Panel(
            "Disk of the run directory",
            "Free share.",
            (
                Query(
                    f"min by (run) (ray_bicot_disk_free_bytes{{{RUN}}} / ray_bicot_disk_size_bytes{{{RUN}}})",
                    "{{run}} free",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Nodes' CPUs",
            "Per cent in use.",
            (Query(f"ray_node_cpu_utilization{{{NODE}}}", "{{instance}}"),),
            "percent",
        ),
        Panel(
            "Memory",
            "GB that processes hold each for itself; of workers the largest. One that grows without end leaks.",
            (gauge("memory_gb", "{{run}} {{process}}", "process"),),
            "decgbytes",
        ),
        Panel(
            "Nodes' memory",
            "Share in use.",
            (Query(f"ray_node_mem_used{{{NODE}}} / ray_node_mem_total{{{NODE}}}", "{{instance}}"),),
            "percentunit",
        ),
        Panel(
            "Nodes' object stores",
            "Bytes in use, of pictures and weights on their way.",
            (Query(f"sum by (instance) (ray_object_store_memory{{{NODE}}})", "{{instance}}"),),
            "bytes",
        ),
    ),
)
REWARDS: Final = Row(
    "Rewards",
    (
        Panel("Score of each reward", "Mean, as given.", (gauge("reward_score", "{{reward}}", "reward"),)),
        Panel(
            "Spread of each reward",
            "Standard deviation within a group: what the advantages are made of.",
            (gauge("reward_score_std_in_group", "{{reward}}", "reward"),),
        ),
        Panel(
            "Saturation",
            "Share of scores at the step's greatest, of full marks, and of groups without spread. Near 1, a reward has "
            "nothing left to say.",
            (
                gauge("reward_score_at_max", "{{reward}} at greatest", "reward"),
                gauge("reward_score_perfect", "{{reward}} full marks", "reward"),
                gauge("reward_score_no_spread", "{{reward}} without spread", "reward"),
            ),
            "percentunit",
        ),
        Panel(
            "Wait for a batch",
            "Milliseconds that a picture waits in a replica. Grows when a reward bounds the run.",
            (gauge("reward_score_queue_ms", "{{reward}}", "reward"),),
            "ms",
        ),
        Panel(
            "Time of a batch",
            "Milliseconds.",
            (gauge("reward_score_batch_ms", "{{reward}}", "reward"),),
            "ms",
        ),
        Panel(
            "Correlation of rewards",
            "Pearson's r within groups. Below 0, one grows at the other's cost.",
            (gauge("reward_correlation", "{{reward}}", "reward", _TWO),),
        ),
    ),
)
ROWS: Final = (GLANCE, LEARNING, SPEED, HEALTH, REWARDS)
