"""A procedural production line with known truth: the demo's input, the tests' ground truth and the load generator.

line = SimulatedLine(LineSettings(seed=7))
part = line.render("cam-0", 12)      # image, product, defect, mask
line.truth("cam-0", 12)              # the same product and defect, without rendering
"""

from producers.simulation.dataset import write_dataset
from producers.simulation.line import Part, SimulatedLine, Truth
from producers.simulation.settings import DEFECTS, PRODUCTS, VARIED_PRODUCTS, LineSettings

__all__ = ["DEFECTS", "PRODUCTS", "VARIED_PRODUCTS", "LineSettings", "Part", "SimulatedLine", "Truth", "write_dataset"]
