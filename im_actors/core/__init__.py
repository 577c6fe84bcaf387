"""The protocol as pure state machines.

Nothing in here waits, reads a clock, draws a random number of its own or touches a socket or file.
Every machine has one door, ``handle(event, now_ms) -> effects``; the caller carries out the
effects in order and feeds the outcomes back as events.
"""
