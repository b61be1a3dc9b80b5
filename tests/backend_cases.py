"""One table of cases for every operation of a backend, the same for every backend and every kind of test."""

from backend_cases_fused import fused
from backend_cases_primitives import primitives

CASES = [*primitives(), *fused()]
ONE_OF_EACH = list({case.name.split("-")[0]: case for case in reversed(CASES)}.values())
