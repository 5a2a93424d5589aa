"""A small scoring run; the judge, the corpora and the output folder come from the command line."""

from dataclasses import replace

from configs import score


def get_config():
    base = score.get_config()
    agent = replace(base.agent, groupings=40, samples_per_grouping=6, criteria_sets=2, proposals=2, examples=2)
    return replace(base, agent=agent)
