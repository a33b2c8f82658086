"""The parts of a training run; adapters/train.py tells the story.

    run.py           one run: attempt after attempt, each going on from the newest checkpoint; read it first
    trainer.py       transformers' Trainer with what it lacks
    watch.py         says when lines, validations and checkpoints are due; lets the guards judge
    guards.py        may the run go on? ladder.py: what to change when memory runs out; both decide and do nothing
    model.py         base model + LoRA weights, by transformers or unsloth
    sharding.py      what is particular where several GPUs share the base model
    fast.py          attention, layers, kernels and loss that compute the same in less time
    packing.py       which rows go into which pack, and packs into which step; batches.py makes tensors of them
    checkpoints.py   whole or not there
    work.py          the folder that a killed run goes on from
    suspects.py      which rows may have led a loss astray
    progress.py      what a run tells while it goes; shown.py has who listens
    artifact.py      the adapter's folder; parity.py what it should answer; report.py, charts.py a page about the run
    answers.py       what a model answers
"""
