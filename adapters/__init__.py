"""Makes adapters: from rows of text to a folder that a gateway can serve.

    recipe.py     how to train: a TOML file, read and checked
    data.py       rows of text → tokens with labels; every bad row is reported
    train.py      recipe → artifact folder; read it top to bottom (the one module that imports torch)
    manifest.py   what an artifact is; standard library only, the gateway reads it too
    register.py   artifact folder → a version of `tenant/adapter`, through the admin API
    base.py       a tiny base model made on the spot, to try everything without a download (words.txt: its vocabulary)
    demo.py       two small data sets whose adapters answer visibly differently
    __main__.py   the commands: `python -m adapters --help`
    recipes/      ready recipes; each opens with the command that runs it

Nothing here imports the gateway.
"""
