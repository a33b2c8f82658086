"""The command line: a thin client of the admin API, and the launcher's front door.

main.py      the commands, put together        options.py   options that many commands share
client.py    the admin API over HTTP           output.py    tables for people, JSON for programs
admin.py     tenants, keys, adapters, replicas serving.py   serve, up
doctor.py    checks with a hint each           archive.py   a folder as a tar stream
"""
