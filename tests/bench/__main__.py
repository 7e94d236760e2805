"""`make bench`: every benchmark of this folder, one after the other."""

from tests.bench import (
    agent_workload,
    authority_overhead,
    batching,
    boot,
    call_rtt,
    capability_check,
    code_runs,
    context_memory,
    egress,
    eviction,
    forced_tokens,
    jail,
    passthrough,
    preemption,
    prefix,
    scheduler_trace,
    single_stream,
)

system = (boot, call_rtt, capability_check, authority_overhead, passthrough, jail, egress, code_runs)
model = (scheduler_trace, batching, forced_tokens, eviction, prefix, preemption, context_memory)
for benchmark in (*system, *model):
    benchmark.main()
for against in (single_stream, agent_workload):
    if trouble := against.missing():
        print(f"\n{against.__name__.rpartition('.')[2]} is skipped: {trouble}")
    else:
        against.main()
