"""`make bench`: every benchmark of this folder, one after the other."""

from tests.bench import authority_overhead, boot, call_rtt, capability_check, egress, passthrough

for benchmark in (boot, call_rtt, capability_check, authority_overhead, passthrough, egress):
    benchmark.main()
