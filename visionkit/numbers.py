"""Numbers within bounds, as annotations of arguments: a pipeline that oversteps them is told the line."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt

Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
