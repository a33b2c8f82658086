"""What can go wrong in training."""


class TrainingError(RuntimeError):
    """Training cannot start or has failed; the message says why and what to do."""
