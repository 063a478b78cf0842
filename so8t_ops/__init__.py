"""The work: the seven steps and the model.  Knows no database, no retry and no rule.

The only thing of the machine that may be imported from here is :mod:`so8t_fsm.step`.
"""
