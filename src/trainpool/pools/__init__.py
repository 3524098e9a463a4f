"""Pools: where workers run. Each is a thin shell between the coordinator and one kind of machine."""
