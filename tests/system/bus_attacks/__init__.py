"""Attacks on the bus by real processes: outsiders, apps, jailed agents and drivers, against a real kernel.

An attack is a function of the arena that returns what came of it. It *succeeds* when the attacker gains something: a right, a datum, or
the denial of service to somebody else. `battery.py` runs all of them and measures what the others feel of it meanwhile.
"""
