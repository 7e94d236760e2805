"""`make bench`: every benchmark of this folder, one after the other."""

from tests.bench import (
    agent_workload,
    authority_overhead,
    boot,
    call_rtt,
    capability_check,
    code_runs,
    egress,
    jail,
    passthrough,
    single_stream,
)

for benchmark in (boot, call_rtt, capability_check, authority_overhead, passthrough, jail, egress, code_runs):
    benchmark.main()
for against in (single_stream, agent_workload):
    if trouble := against.missing():
        print(f"\n{against.__name__.rpartition('.')[2]} is skipped: {trouble}")
    else:
        against.main()
