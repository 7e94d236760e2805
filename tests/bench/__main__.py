"""`make bench`: every benchmark of this folder, one after the other."""

from tests.bench import authority_overhead, boot, call_rtt, capability_check, code_runs, egress, jail, passthrough

for benchmark in (boot, call_rtt, capability_check, authority_overhead, passthrough, jail, egress, code_runs):
    benchmark.main()
