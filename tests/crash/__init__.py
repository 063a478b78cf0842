"""Instruments that break the machine on purpose: kill it at every write, fail every write, cut the power.

``program`` what is broken (the real command line, in one thread) · ``server`` starts it under strace · ``trace`` reads
what strace saw · ``killsweep`` dies or fails at each call · ``powercut`` rebuilds the disks a power cut may leave ·
``checker`` the judge, which shares no code with the machine.
"""
