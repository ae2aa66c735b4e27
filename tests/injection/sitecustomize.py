"""Read by every Python that a fault is injected into: the folder `methods` beside this file is one
more place where clsearch looks for methods, and what lies there is imported with them."""

from pathlib import Path

import clsearch.methods

clsearch.methods.__path__.append(str(Path(__file__).with_name("methods")))
