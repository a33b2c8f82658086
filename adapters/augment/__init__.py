"""Makes training rows through another model: hard negatives, paraphrases and edge cases of rows that are there.

    run.py       the whole story: `augment`; read it first
    settings.py  how many rows of which kinds
    plan.py      rows → the texts to ask for; pure
    requests.py  what is asked, word for word (prompts/: the prompt files), and how replies are read
    desk.py      works on the plan, a few requests at a time
    journal.py   answers on disk at once, so that none is paid for twice
    check.py     made rows are checked as real ones are
    results.py   rows and faults
"""

from adapters.augment.journal import JournalError
from adapters.augment.run import Augmented, augment
from adapters.augment.settings import AugmentSettings

__all__ = ["AugmentSettings", "Augmented", "JournalError", "augment"]
