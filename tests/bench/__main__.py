"""`make bench`: every benchmark of this folder, one after the other."""

from tests.bench import boot, call_rtt, capability_check, passthrough

for benchmark in (boot, call_rtt, capability_check, passthrough):
    benchmark.main()
