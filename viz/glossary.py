"""The glossary: a sentence for every word that the widgets show. Their tooltips and the site's page quote it."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "module": "One linear layer of the model, named by its layer (transformer block) and its projection.",
    "layer": "The transformer block that a module is in, counted from 0.",
    "projection": "The place of a module in its layer: q, k, v and o in attention, gate, up and down in the MLP.",
    "rank": "The number of rows of A: how many input directions the adapter of a module can read. "
    "White is the nominal rank, which a uniform allocation gives to every module; red is more, blue is less.",
    "nominal rank": "The rank of every module in a uniform allocation; it sets the budget.",
    "budget": "What all modules share: the ranks, or the trainable parameters, of the uniform allocation. "
    "A module that gets more takes it from the others.",
    "score": "The sensitivity of a module: the mean of |weight × gradient| over its weights and the calibration "
    "samples, in nats.",
    "sensitivity": "How sensitive the loss is to the weights of a module: its share of all scores. "
    "Ranks by score are in proportion to it.",
    "change": "Ranks more (red) or fewer (blue) than in the kept allocation.",
    "scaling": "The factor s in W + s B A: how strongly an adapter acts on its module. White is alpha / rank.",
    "alpha": "Numerator of the scaling: s is alpha divided by the rank.",
    "temperature": "How strongly ranks follow the scores: 1 in proportion, 0 the same rank for all.",
    "min_rank": "The lowest rank that a module may get; with 0, modules with low scores get no adapter.",
    "max_rank": "The highest rank that a module may get, at most the number of directions computed for it.",
    "effective rank": "How many directions the inputs of a module use: the participation ratio of the eigenvalues "
    "of their covariance.",
    "expert": "One of the MLPs of a layer in a mixture; a router sends each token to a few of them.",
    "tokens routed": "Tokens of the samples that the router sent to the expert, without masked ones.",
    "work": "The sensitivity of an expert, summed over its weights: its share of that of all experts.",
    "squared gradient": "The squared gradient of an expert's weights on the samples: its share of that of all experts.",
    "direction": "A vector in the input space of a module. Each row of A is one: it turns a token's input into one "
    "number.",
    "energy": "Share of ||W C||², the covariance of the inputs seen through the weight, that lies along the first "
    "directions, of those that were computed. A high share does not say that training needs more of them.",
    "variance": "Share of the variance of a module's inputs that lies along the first directions.",
    "gradient captured": "Share of the squared gradient of held-out samples that lies along the rows of A: what an "
    "adapter with A frozen can follow. Between the ranks that were measured it is interpolated.",
    "neighbors": "Overlap of the directions of a module with those of the same projection in the next layers.",
    "overlap": "How much two subspaces share: the mean squared cosine of their principal angles; 1 the same, 0 "
    "orthogonal.",
    "by chance": "The overlap of random subspaces: their rank divided by the dimension of the inputs.",
    "update": "Norm of what training added to a module, s B A, divided by the norm of its weight.",
    "rank used": "How many directions hold 99 % of the squared norm of the trained update.",
    "first directions taken": "How many directions are counted, from the strongest on; a rank of 8 takes the first 8.",
    "cumulative share": "Share that the first directions hold together; it reaches 100 % with all of them.",
    "each direction": "Share that a single direction holds, on a logarithmic axis.",
    "share": "Part of the whole, from 0 to 100 %.",
    "resamples": "The scores are computed again from samples drawn with replacement: how often a module then gets a "
    "rank. A wide range means that other samples would give another rank.",
    "kept": "The allocation from which changes are counted; Keep makes the present one the kept one.",
    "new": "The allocation that is shown, which the next cell trains.",
    "uniform": "The same rank and scaling for every module, with the same budget.",
    "LoRA": "Plain LoRA of the nominal rank on the same modules, which trains A as well as B.",
    "by hand": "Set by you; the other modules share the rest of the budget.",
    "by score": "In proportion to the score of the module.",
    "the most allowed": "The score asks for more than max_rank, or than the directions that were computed.",
    "the least allowed": "The score asks for less than min_rank.",
    "left out": "The module has no adapter.",
    "trainable parameters": "Numbers that training changes: the entries of B while A is frozen.",
    "adapter, float32": "Size of the saved adapter, A and B, with four bytes a number.",
    "AdamW states, float32": "Memory of the optimizer's two averages for each trainable parameter.",
    "peak memory of training": "Estimated upper bound of the memory that a training step needs.",
    "loss": "How surprised the model is by a right answer: minus the logarithm of its probability, a mean over tokens, "
    "in nats. Lower is better.",
    "nats": "Unit of the loss, with natural logarithms. 0.7 nats less means twice the probability for each token.",
    "gain": "By how much the adapter raises the log-probability of the reference, in nats; without a reference, that "
    "of its own answer. A bar is red if it rose, blue if it fell.",
    "gain of a token": "By how much the adapter raises the log-probability, or the log-odds, of a token of "
    "the answer, in nats.",
    "probability in the base": "The probability that the model gives to a token without the adapter.",
    "probability with the adapter": "The probability that the model gives to a token with the adapter.",
    "probability now": "The same with the modules that are switched off left out; empty while none is.",
    "first choice now": "The token that the model would now write here instead.",
    "training loss": "Loss of the samples of a training step, before the step.",
    "held-out loss": "Loss of samples that are not trained on; differences between two adapters are compared on these.",
    "optimizer step": "One update of the trainable parameters, from one batch of samples.",
    "steps": "Optimizer steps of each training; if empty, as many as fit into the time, by two steps that are timed "
    "and not recorded.",
    "learning rate": "Peak size of the optimizer's steps. For adapters with A frozen 0.001 to 0.008 is usual.",
}
"""Sentences by word."""

SAME = {
    "training": "training loss", "held out": "held-out loss",
    "validation": "held-out loss", "loss, nats": "loss", "validation loss": "held-out loss", "resampled": "resamples",
    "rank from resampled scores": "resamples", "overlap, next layers": "neighbors", "new, of kept": "new",
    "update, kept": "update", "update, new": "update", "update, uniform": "update",
    "mean of all modules": "overlap", "gain, nats": "gain",
}  # fmt: skip
"""Other labels of the same words."""


def explanations() -> dict[str, str]:
    """The sentence for every label, in lower case."""
    labels = {word: word for word in GLOSSARY} | SAME
    return {label.lower(): GLOSSARY[word] for label, word in labels.items()}
