"""A trace through a policy: in Python for any policy, in C++ for those of the box."""
