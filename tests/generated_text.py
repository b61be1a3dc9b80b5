"""Generated documents to examine, and exact arithmetic on the numbers in them."""

import ast
import operator
import re
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from functools import lru_cache

from alpha.datagen import document


@lru_cache
def documents(domain: str) -> list[str]:
    """Some documents of a domain, the same for every test."""
    return [document(domain, index, 7) for index in range(150 if domain in ("novels", "concordance") else 400)]


NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"
TERM = rf"\(*{NUMBER}\)*"
EXPRESSION = rf"{TERM}(?: [-+xX/] {TERM})*"
EQUATION = re.compile(rf"(?<![\w.,/])(?<!shares x ){EXPRESSION}(?: = {EXPRESSION})+")


def number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def value_of(expression: str) -> Fraction:
    """An arithmetic expression, by walking Python's syntax tree with exact fractions."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return operators[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand)
        assert isinstance(node, ast.Constant)
        return Fraction(str(node.value))

    return walk(ast.parse(expression.replace(",", "").lower().replace(" x ", " * "), mode="eval").body)


def rounded(value: Fraction, places: int) -> Fraction:
    unit = Decimal(1).scaleb(-places)
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return Fraction(exact.quantize(unit, ROUND_HALF_UP))


def places_of(text: str) -> int:
    return len(text.partition(".")[2])


def equation_holds(equation: str) -> bool:
    sides = equation.split(" = ")
    places = max(places_of(side) if re.fullmatch(NUMBER, side) else 0 for side in sides)
    return len({rounded(value_of(side), places) for side in sides}) == 1


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, number))
