"""`alpha train`: train a model."""

from alpha.config import ModelConfig, TrainingConfig

OPTIONS = (TrainingConfig, ModelConfig)
DETAILS = """
What is not given comes from the file of --config, then the preset of --domain,
then --arch.

Examples:
  alpha train --data=corpus.txt --tokenizer=char --layers=4 --dim=128 --heads=4
  alpha train --data=novels/ --domain=novels --iters=5000
  alpha train --resume=runs/20261123-101500-3f2a1b --iters=10000
"""
