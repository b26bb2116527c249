"""Faults of MLX, JAX and NumPy that m2ml met, each as the smallest program that shows it.

Every test says what should be and is a strict expected failure: its reason names the release that has the fault and
what it does instead. When a release mends it, the test passes, which fails the suite: then the mark goes, and with it
whatever m2ml does around the fault. A test imports m2ml only where nothing else shows the fault; one that would end
the process runs it in another one. Files are named ``test_upstream_<topic>.py``.
"""
