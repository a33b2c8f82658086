"""Switchyard's gateway: every request to the right adapter version on a replica that has it loaded.

domain/  decides      clients/  does      dataplane/  one request      controlplane/  one change      api/  doors
launch/  processes    cli/      commands    app.py  builds every object once
settings.py  every knob      telemetry.py  record, metrics, log      system.py  time and randomness
"""
