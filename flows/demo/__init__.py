"""`leitstand demo`: the closed loop on real data, with real processes, in a home folder of its own."""
