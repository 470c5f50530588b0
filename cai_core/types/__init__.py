"""The contracts, one file each. A plugin imports from here, ``cai_core.hookspecs`` and ``cai_core.errors`` only.

component   what a plugin registers           prompts     conversations to start from
context     what a component is handed        principles  constitution, principle, sampler
records     messages, failures, model input   critique    the prompts of critique and revision
backend     generate and score                labeler     comparisons -> P(A preferred)
trainer     SFT on conversations              reward      fit, score, save, load
rl          policy + prompts + reward -> policy
evaluator   models -> metrics and rows        reporter    results -> files
"""
