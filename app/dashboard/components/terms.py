"""What the words on a page mean, each with its formula."""

import streamlit as st

# Written here and never made from data: formulas and all.
TERMS: dict[str, str] = {
    "Neuron": "Element *j* of the input of a layer's down projection, "
    r"$a_j = \mathrm{act}(W_{gate}x)_j \cdot (W_{up}x)_j$ (Eq. 3).",
    "ES": "Effect size, Cohen's d: how far apart harmful and harmless prompts lie for a neuron, in "
    r"pooled deviations, $d_j = (\bar a^{harmful}_j - \bar a^{harmless}_j) / s_j$ (Eq. 4 to 7).",
    "SAS": "Safety activation shift: how unusual a neuron's shift is in its layer, "
    r"$z_j = (\delta_j - \mu_\ell) / \sigma_\ell$ over the layer's neurons (Eq. 9).",
    "Shift": r"$\delta_j = \bar a^{harmful}_j - \bar a^{harmless}_j$, in units of the activation.",
    "Selected": "Above the threshold by a score, or in its top share; *+* unites scores, *&* "
    "intersects them, *-* takes away.",
    "Safety mass": r"$\sum_j \max(s_j, 0)$ over a layer's selected neurons, of the score that "
    "colours the map.",
    "Difference": "The second map's score less the first's, neuron by neuron; of two different "
    "scores, whose units differ, their percentiles.",
    "Percentile": r"Share of the other neurons that score lower, $100 \cdot \#\{k: s_k < s_j\} "
    r"/ (n - 1)$; rank 1 is the highest score.",
    "Attack success": "Harmful prompts whose answer is neither refused nor degenerate, k/n, with "
    r"the Wilson 95 % interval $\frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}"
    r"{1 + z^2/n}$.",
    "Random control": "As many neurons of each layer, drawn outside the mask; the mean over seeds.",
    "Jaccard index": r"$|A \cap B| / |A \cup B|$.",
    "Overlap coefficient": r"$|A \cap B| / \min(|A|, |B|)$.",
    "Chance": "Expected of random sets with the same number of neurons in each layer: the "
    "intersection in a layer is hypergeometric, over the model their convolution.",
    "p": "Exact probability that chance gives as many neurons in both, or more.",
    "Overlap ratio": r"Of K sets: $|\bigcap A_k| / |\bigcup A_k|$, the mean over all choices of K.",
    "Core, shared, specific": "In every set; in several but not all; in one alone.",
    "Rank correlation": "Spearman's, with what permuting within layers would give.",
    "Promoted": r"Tokens whose logit the neuron raises most at activation 1: the largest of "
    r"$W_U\, w^{out}_j$; suppressed: the smallest. The last norm's scale is left out of it.",
    "Neighbours": r"Neurons that write in a like direction: cosine of $w^{out}_j$ and $w^{out}_k$.",
    "Working mask": "A mask of this model that neurons are added to one by one; the Masks page "
    "keeps, combines and exports it.",
    "Union": r"$A \cup B$: in any of the masks. Intersection: $A \cap B$, in all. Difference: "
    r"$A \setminus B$, in the first and in none of the others.",
}


def terms(*names: str) -> None:
    """A button that opens the meaning and the formula of a page's words."""
    with st.popover("Terms and formulas", icon=":material/help:"):
        for name in names:
            st.markdown(f"**{name}.** {TERMS[name]}")
