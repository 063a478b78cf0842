"""Recovery rules: YAML in, a decision out.  Pure, apart from reading the files.

``load_rules`` reads the layers into a :class:`RuleSet`; ``heard`` finds the rule of an event;
:func:`so8t_fsm.incidents.arbitrate` makes one incident of an attempt's events; ``decide`` says what is done about it.
"""

from so8t_fsm.rules.load import RulesError, layers_of, load_rules
from so8t_fsm.rules.match import Match, heard, matches
from so8t_fsm.rules.model import Action, Limits, Rule, RuleSet

__all__ = ["Action", "Limits", "Match", "Rule", "RuleSet", "RulesError", "heard", "layers_of", "load_rules", "matches"]
