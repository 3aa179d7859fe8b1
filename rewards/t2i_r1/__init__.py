"""T2I-R1's own reward rules, defects and all, for runs that must be comparable with its published numbers.

`options: {t2i_r1_compat: true}` of hps, grounding_dino, git_vqa and orm chooses them, one module a reward; what is
right instead, and the default, is in those rewards' own modules, which know nothing of the defects. That these are
T2I-R1's rules is tested on inputs and outputs recorded from its own code (tests/data/t2i_r1). Each defect, and where
it is:

    grounding_dino.py
    nouns of three words and more never match                       `T2IR1DetectionRules.caption`
    a prompt without nouns earns 1                                  `NO_NOUNS`
    `task_type` alone chooses the rule: a relation that a prompt
      of another type names is not looked at                        `T2IR1DetectionRules.score`
    a relation whose spatial_info is missing earns 0                `_score_relation`
    only the prompt's `nouns` are looked for, letter for letter,
      though a relation or a count may name others                  `T2IR1DetectionRules.caption`
    a noun that stands twice in `nouns` counts twice                `_score_presence`
    no branch for "above", "on top of", "over", "under"             `_DIRECTIONS`
    near, next to, on side of: boxes in 0..1 against 150 pixels     `NEAR_DISTANCE`
    a direction is all or nothing at 45 degrees, with no least
      distance                                                      `position_score`
    two objects of one name: the code fails, and gives 0            `_score_relation`
    counting: suppression reads centre and size as corners          `_count`
    a wrong count earns 0.2, however wrong                          `WRONG_COUNT`
    a perfect relation earns 0.9                                    `RELATION_SHARE`

    git_vqa.py
    a constant 0 for relations and counts                           `T2IR1Questions.fixed_score`
    a prompt with nothing to ask earns 1                            `T2IR1Questions.fixed_score`

    orm.py
    the answer is sampled, by the checkpoint's own top_k and top_p  `reply_probabilities`
    a reply that is not the token "yes" or "no" earns 0             `score_reply`

    hps.py
    the cosine is made in float16, in steps of 2.4e-4               `half_cosines`

Where T2I-R1's own code ends with an exception (a count prompt without numeracy_info, an ORM whose top_p leaves
neither "yes" nor "no", an empty list of attr_nouns, whose mean is NaN), there is nothing to compare with: the reward
does not apply there, and the ORM gives 0.

Summed as they are, as T2I-R1 does, HPS is nearly silent beside the others: its range is about 0.15.
"""
