"""Captions: how to read each figure of a page, in two sentences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """A figure's name in the page, its title, and how to read it."""

    key: str
    title: str
    text: str


READINGS = (
    Reading(
        "strip",
        "The network",
        "Each box is a layer, from the input on the left to the output on the right, and a box "
        "widens with the number of its weights. Orange with ▼ is a layer whose normals face away "
        "from the positive orthant beyond chance, blue with ▲ one whose normals face toward it, "
        "grey one that chance could give; the stronger the colour, the more normals agree.",
    ),
    Reading(
        "comparison",
        "Networks compared",
        "Each line is a network, each point the negative mass of one of its layers, from input to "
        "output. A filled point is a layer biased beyond chance.",
    ),
    Reading(
        "mass",
        "Negative mass by layer",
        "A point is the share of a layer's filters whose weights sum to 0 or less, so that their "
        "normals face away from the positive orthant, where the data behind a ReLU lie; the grey "
        "band is what the test, corrected for the number of layers, leaves to chance: of layers "
        "outside it, 5 in 100 may be there by chance. A filled diamond outside the band is biased, "
        "and a hollow circle is not.",
    ),
    Reading(
        "cosines",
        "Distributions of the cosine",
        "Each row is the histogram of the cosine between a layer's normals and (1, ..., 1), the "
        "axis of the positive orthant, and the thin line is the density that chance gives for its "
        "fan-in. A histogram beside that line, or wider than it, is a layer that training has "
        "turned; what lies left of 0 faces away.",
    ),
    Reading(
        "portrait",
        "Portrait of the chosen layer",
        "Each half-line is one filter's hyperplane in the half-plane that the axis of the positive "
        "orthant and its normal span: it leaves the axis where the hyperplane crosses it, at the "
        "hyperplane's own angle, and the triangle points to the active side. The orthant, where "
        "the data are, fills the dark cone and stays within the light one.",
    ),
    Reading(
        "dynamics",
        "Training dynamics",
        "Each line is a layer, dark for the first and light for the last, and the chosen layer is "
        "drawn heavier; the vertical line is the chosen epoch. The grey bands of the layers with "
        "the fewest and the most filters are those that were tested at each epoch, corrected over "
        "its layers: where a line leaves the band of its width, the layer is biased.",
    ),
    Reading(
        "resets",
        "What resets cost",
        "A cell is the accuracy that is lost, in per cent of the trained network's, when one layer "
        "alone is put back to its weights of an earlier epoch or drawn anew. A bright row is a "
        "layer that the network cannot do without; numbers in parentheses are within the noise of "
        "the validation examples. Point at a cell for its loss, and whether the layer is critical.",
    ),
    Reading(
        "relation",
        "Score against drop",
        "A point is a layer: to the right the score that its weights alone give, upward what "
        "putting it back to the initialisation costs. If the score ranks the layers as the resets "
        "do, the points rise together; ρ is Spearman's rank correlation. A ring around a point "
        "says that the layer is critical: its loss, the share of what the network knows beyond "
        "chance that is gone, is above the bound with its whole interval; a pale ring that this is "
        "undecided.",
    ),
    Reading(
        "table",
        "All layers",
        "A row is a layer at the chosen epoch, and q mass is the p-value of its negative mass "
        "against chance, corrected over the layers. Click a heading to sort, type to search, "
        "click a name to choose that layer in every figure.",
    ),
)
