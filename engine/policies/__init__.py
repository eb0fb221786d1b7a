"""Which experts lie in a fast memory, decided while a model runs: a policy is one object, the same in a replay of a
recorded trace and in the engine.

    protocol    what a policy is asked, and what it may answer
    residents   what is resident: carries answers out, refuses what cannot be, and counts
    fixed       policies that never move anything
    recency     those that go by what was used lately
    frequency   those that go by how often
    ahead       those that fetch before, or only a part of what is missing
    second_gpu  experts in a second GPU's memory too
    optimum     the best that can be, for who knows the future
    registry    policies by name, those of others too
    slotted     what those share that have slots in every layer
    replay/     a trace through a policy: counts, bytes, seconds
"""
