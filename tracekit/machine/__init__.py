"""The simulated machine: a trace → the operations the kernel performed, replayed once, on facts.

timeline → walks → entries → episodes; calls beside them. The only place where kernel state is known; policies see
the operations table and nothing else.
"""
