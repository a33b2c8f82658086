"""The commands, one file for each group of them; `adapters/__main__.py` puts them together.

    data.py, augment.py   data check, prepare, preview, augment
    train.py              train
    models.py             merge, compare
    evaluate.py           evaluate, evaluate-server
    make.py               base, demo, register
    terminal.py           how every command speaks
"""
