"""Source of `peak()`, the most resident memory in bytes that a process of a test's own has had.

Not getrusage: its maximum outlives exec, so that a child begins with what its parent, the test run, has in memory.
"""

PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""
