"""The fake's /metrics: the names of vLLM's that a router reads, in its labels."""

from tests.fakes.vllm.engine import Engine


def render(engine: Engine) -> str:
    """The text format."""
    if engine.seen.in_flight:
        engine.note()
    labels = f'engine="0",model_name="{engine.base_model}"'
    seen, started_at = engine.seen, engine.started_at
    running, waiting = engine.slots.running.total(), engine.slots.waiting.total()
    gauge, counter = "gauge", "counter"
    families = [
        ("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", gauge,
         [f"process_start_time_seconds {started_at!r}"]),
        ("vllm:num_requests_running", "Number of requests in model execution batches.", gauge,
         [f"vllm:num_requests_running{{{labels}}} {float(running)}"]),
        ("vllm:num_requests_waiting", "Number of requests waiting to be processed.", gauge,
         [f"vllm:num_requests_waiting{{{labels}}} {float(waiting)}"]),
        ("vllm:num_requests_waiting_by_reason", "Number of waiting requests by reason.", gauge,
         [f'vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} 0.0',
          f'vllm:num_requests_waiting_by_reason{{{labels},reason="deferred"}} {float(waiting)}']),
        ("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", gauge,
         [f"vllm:kv_cache_usage_perc{{{labels}}} 0.0"]),
        ("vllm:prompt_tokens_total", "Number of prefill tokens processed.", counter,
         [f"vllm:prompt_tokens_total{{{labels}}} {float(seen.prompt_tokens)}"]),
        ("vllm:generation_tokens_total", "Number of generation tokens processed.", counter,
         [f"vllm:generation_tokens_total{{{labels}}} {float(seen.tokens)}"]),
        ("vllm:lora_requests_info", "Running stats on lora requests.", gauge, engine.info.lines()),
    ]
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n" + "".join(f"{line}\n" for line in lines)
        for name, text, kind, lines in families
    )
