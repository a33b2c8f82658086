"""The command line: a thin client of the admin API, and the launcher's front door.

main.py      the commands, put together        options.py   options that many commands share
client.py    the admin API over HTTP           output.py    tables for people, JSON for programs
admin.py     tenants, keys, replicas           serving.py   serve, up
adapters.py  adapters and versions             operators.py operators and their roles
release.py   rollouts; release_view.py: how    audit.py     the audit's hash chain
             they look
trainer.py   data, train, evaluate, … of `adapters`, in a python that has its libraries
quality.py   production answers' quality
doctor.py    checks with a hint each           archive.py   a folder as a tar stream
"""
