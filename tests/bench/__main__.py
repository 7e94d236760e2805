"""`make bench`: every benchmark of this folder, one after the other."""

from tests.bench import boot, call_rtt, passthrough

for benchmark in (boot, call_rtt, passthrough):
    benchmark.main()
