"""What can go wrong in training."""


class TrainingError(RuntimeError):
    """Training cannot start or has failed; the message says why and what to do."""


class StartAgain(TrainingError):
    """This process must end, but the next start of the same run goes on in another way."""
