"""Decides whether a version may take traffic: a golden set run through the gateway, scored, compared and recorded.

    evaluate.py    the whole story; read `evaluate` first
    golden.py      what a golden set is: read, checked, named by its digest; standard library only
    plan.py        what to evaluate and how
    contenders.py  who is asked: the version, the stable one, the base model
    calls.py       one question through the gateway, streamed and timed
    run.py         all questions to all of them, repeated and at once; journal.py keeps what an interrupted run has
    scorers.py     an answer and what was expected → a score from 0 to 1
    judge.py       the same by another model's opinion; prompts/: how it is asked
    statistics.py  F1, quantiles, and how sure a difference is
    decide.py      figures → pass or fail, with every reason in words; pure
    report.py      what was found, as JSON and as tables
    service.py     the gate over HTTP: POST /evaluate answers 200 or 409
"""
