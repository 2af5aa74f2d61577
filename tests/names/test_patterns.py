"""Patterns on names: what ``re`` says of them, in bounded time."""

import random
import re
import signal

import pytest

from convert_to_quant.names.patterns import Pattern, PatternError

ATOMS = [
    "a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\W", r"\s", r"\.", "(?:ab|b)", "(a|b|)", "x", "_", r"\b",
    "^", "$", r"\Z", r"\A", "(?=a)", "(?!b)", "(?<=a)", "(?<!b)", "[a-x]", "1",
]  # fmt: skip
REPEATS = ["", "", "", "*", "+", "?", "{2}", "{1,3}", "*?", "+?", "{2,}"]


def made(rng, depth=0):
    """A random expression; anchors and looks take no repeat."""
    out = ""
    for _ in range(rng.randint(1, 4)):
        atom = rng.choice(ATOMS) if depth > 2 or rng.random() < 0.8 else f"(?:{made(rng, depth + 1)})"
        bare = atom in ("^", "$", r"\Z", r"\A", r"\b") or atom.startswith(("(?=", "(?!", "(?<=", "(?<!"))
        out += atom + ("" if bare else rng.choice(REPEATS))
    return out + (f"|{rng.choice(ATOMS)}" if rng.random() < 0.15 else "")


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_what_re_finds(seed):
    rng = random.Random(seed)
    for _ in range(100):
        pattern = made(rng)
        compiled, ours = re.compile(pattern), Pattern(pattern)
        for _ in range(6):
            name = "".join(rng.choice("ab.x1_ \n") for _ in range(rng.randint(0, 8)))
            told = f"{pattern!r} on {name!r}"
            assert ours.search(name) == bool(compiled.search(name)), told
            assert ours.fullmatch(name) == bool(compiled.fullmatch(name)), told


@pytest.mark.parametrize("pattern", [r"(?i)Blocks\.[A-F]", r"(?s)a.b", r"(?x) a  b # c", r"[^\d_]+", r"é\w"])
@pytest.mark.parametrize("name", ["BLOCKS.c", "blocks.z", "a\nb", "ab", "xx", "éa", ""])
def test_flags_and_classes_are_those_of_re(pattern, name):
    assert Pattern(pattern).search(name) == bool(re.search(pattern, name))


@pytest.fixture
def deadline():
    """Fail, rather than hang, what takes a minute of processor time: thousands of times what it needs."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, 60)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(.*a){20}b", "(a+a+)+b", "(a*)*b", "(?!(a+)+b)b", "a{0,500}a{500}b"]
)
def test_no_pattern_hangs(deadline, pattern):
    assert not Pattern(pattern).search("a" * 1000)
    assert not Pattern(pattern).fullmatch("a" * 1000)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression: missing \\), unterminated subpattern at character 1"),
        ("*", "nothing to repeat at character 1"),
        (r"(a)\1", "groupref is not taken here"),
        ("(?i:a)", "flags inside a group"),
        ("(?m)^a", "this flag is not taken"),
        ("a{3000}", "a repeat of more than 2000"),
        ("((a{50}){50}){50}", "come to more than 2000"),
        ("(" * 3000 + ")" * 3000, "too deep"),
        ("a{99999999999999999999}", "too large"),
    ],
)
def test_what_is_not_matched_is_refused_with_a_reason(pattern, message):
    with pytest.raises(PatternError, match=message):
        Pattern(pattern)
