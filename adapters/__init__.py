"""Makes adapters: from rows of text to a version that has earned its traffic.

    data/         rows of anything → checked, split, deduplicated rows → tokens with labels
    augment/      more rows for the classes that lack them, through any model; teacher.py asks it
    recipe.py     how to train: a TOML file, read and checked;  recipes/: ready ones, each opens with its command
    train.py      recipe → artifact folder; read it top to bottom;  training/: its parts (they and the next two import
                  torch, nothing else does)
    merge.py      base + adapter → merged weights;  compare.py: their answers side by side, also through a gateway
    manifest.py   what an artifact is; standard library only, the gateway reads it too
    register.py   artifact folder → a version of `tenant/adapter`, through the admin API (gateway_client.py)
    evaluation/   golden set → scores, a decision, a record: may the version take traffic?
    base.py       a tiny base model made on the spot, to try everything without a download (words.txt: its vocabulary)
    demo.py       data to try everything with: two chats, and labelled tickets
    pages.py      HTML pages from templates/
    commands/     the commands;  __main__.py puts them together: `python -m adapters --help`

Nothing here imports the gateway.
"""
