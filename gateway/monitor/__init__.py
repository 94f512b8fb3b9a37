"""The second process: reads the journal while it is written, tells of drift, and does the journal's chores.

Supervisor (in the gateway) ──starts, hears, restarts──▶ worker: Tail ─▶ Budget ─▶ StreamDrift ─▶ frames ─▶ Supervisor
"""
