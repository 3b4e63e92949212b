"""What training left becomes a smaller model."""

from volax.compress.compact import Compacted as Compacted
from volax.compress.compact import compact as compact
from volax.compress.packing import Packed as Packed
from volax.compress.packing import pack as pack
from volax.compress.packing import unpack as unpack
from volax.compress.prune import kill as kill
from volax.compress.prune import score as score
from volax.compress.quantize import binarize as binarize
from volax.compress.quantize import ternarize as ternarize
from volax.compress.report import Report as Report
from volax.compress.report import report as report
from volax.compress.storage import Loaded as Loaded
from volax.compress.storage import load as load
from volax.compress.storage import save as save
