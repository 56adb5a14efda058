"""Machines: devices, processes, memory and compilation.

hosts: several processes as one.
sharding: parameters and batches over devices.
ceiling: the arithmetic that a device can do.
compilation: the cache of compiled programs.
"""
