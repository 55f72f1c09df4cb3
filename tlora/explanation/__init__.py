"""What an adapter reads and what it did, in the words of the data.

direction_activations and its direction_activations_result (the tokens that directions respond to), gated_adapter (a
copy in which every update can be scaled or left out), attribute and attribution (what each module added),
compare_answers (which answers are right and which changed, request by request), side_effects
(what else changed), measure_scales (how much of it to keep), interference (of two adapters), token_texts (ids as text).
"""
