//! Compares a program's output with what is expected, byte by byte and without copying it. Pure, and only ever called
//! in the supervisor: expected outputs never enter the process of a solution.
//!
//! White space is ASCII white space, and no two characters are alike that are not the same bytes. Output that is not
//! UTF-8 is compared as it is.

use std::collections::HashMap;
use std::fmt;

/// How output is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Checker {
    /// Equal up to white space at line ends and blank lines at the end.
    Lines,
    /// Equal as lists of white-space-separated tokens.
    Tokens,
    /// As `Tokens`; two tokens that are both decimals may differ by the tolerance.
    FloatTokens(Tolerance),
    /// The same lines as often, in any order; white space at line ends and blank lines do not count.
    UnorderedLines,
    /// Byte for byte.
    Exact,
}

/// How far a number may be off: by either of the two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub absolute: f64,
    /// Of the expected number's size.
    pub relative: f64,
}

/// A tolerance that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub struct BadTolerance {
    /// Which of the two, if it is one alone.
    pub figure: Option<&'static str>,
    pub complaint: String,
}

impl Tolerance {
    /// Both figures finite and at least 0, one of them above 0.
    pub fn new(absolute: f64, relative: f64) -> Result<Self, BadTolerance> {
        for (figure, value) in [("absolute", absolute), ("relative", relative)] {
            if !(value.is_finite() && value >= 0.0) {
                let complaint = format!("is {value}; use a finite number of at least 0");
                return Err(BadTolerance { figure: Some(figure), complaint });
            }
        }
        if absolute == 0.0 && relative == 0.0 {
            return Err(BadTolerance { figure: None, complaint: "allows nothing; compare tokens".to_owned() });
        }
        Ok(Tolerance { absolute, relative })
    }
}

impl Default for Tolerance {
    fn default() -> Self {
        Tolerance { absolute: 1e-6, relative: 1e-6 }
    }
}

/// What `Difference::place` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Byte,
    Line,
    Token,
}

/// Where output first differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub unit: Unit,
    /// Which byte, line or token, from 1.
    pub place: usize,
    /// Line of the output and character in it, from 1. Of the expected output where the output lacks the place.
    pub line: usize,
    pub column: usize,
    /// Excerpts around the place, shortened; none where one side has ended.
    pub got: Option<String>,
    pub expected: Option<String>,
}

/// Characters of either side that a difference shows.
const SHOWN: usize = 120;
/// Of these, characters before the place.
const SHOWN_BEFORE: usize = 30;

impl fmt::Display for Difference {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            Unit::Byte => write!(text, "byte {} (line {}, column {})", self.place, self.line, self.column)?,
            Unit::Line => write!(text, "line {}, column {}", self.place, self.column)?,
            Unit::Token => write!(text, "token {} (line {}, column {})", self.place, self.line, self.column)?,
        }
        match (&self.got, &self.expected) {
            (Some(got), Some(expected)) => write!(text, ": got {got:?}, expected {expected:?}"),
            (Some(got), None) => write!(text, ": got {got:?}, which is not expected"),
            (None, Some(expected)) => write!(text, ": the output lacks {expected:?}"),
            (None, None) => Ok(()),
        }
    }
}

impl Checker {
    /// `Ok` if `actual` is right, otherwise the first difference.
    pub fn compare(self, actual: &[u8], expected: &[u8]) -> Result<(), Difference> {
        match self {
            Checker::Exact => exact(actual, expected),
            Checker::Lines => first_difference(Unit::Line, lines(actual), lines(expected), |a, b| a == b),
            Checker::Tokens => first_difference(Unit::Token, tokens(actual), tokens(expected), |a, b| a == b),
            Checker::FloatTokens(tolerance) => {
                let same = |a: &[u8], b: &[u8]| a == b || same_number(a, b, tolerance);
                first_difference(Unit::Token, tokens(actual), tokens(expected), same)
            }
            Checker::UnorderedLines => unordered(actual, expected),
        }
    }
}

/// A piece of a text, and where it stands.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a [u8],
    whole: &'a [u8],
    start: usize,
}

impl Piece<'_> {
    /// Line and character of the piece's byte `offset`, from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.whole[..self.start + offset];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        (line, 1 + String::from_utf8_lossy(&before[line_start..]).chars().count())
    }

    /// The piece around its byte `offset`.
    fn excerpt(&self, offset: usize) -> String {
        let before = String::from_utf8_lossy(&self.text[..offset]);
        let skipped = before.chars().count().saturating_sub(SHOWN_BEFORE);
        let window = &self.text[..self.text.len().min(offset + 4 * SHOWN)];
        let text = String::from_utf8_lossy(window);
        let shown: String = text.chars().skip(skipped).take(SHOWN).collect();
        let (first, last) = (skipped > 0, window.len() < self.text.len() || text.chars().count() > skipped + SHOWN);
        format!("{}{shown}{}", if first { "…" } else { "" }, if last { "…" } else { "" })
    }
}

/// Lines without white space at their ends; no blank ones at the end.
fn lines(whole: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    let kept = whole.trim_ascii_end();
    let mut start = 0;
    kept.split(|byte| *byte == b'\n').filter(|_| !kept.is_empty()).map(move |line| {
        let piece = Piece { text: line.trim_ascii_end(), whole, start };
        start += line.len() + 1;
        piece
    })
}

fn tokens(whole: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = next + whole[next..].iter().position(|byte| !byte.is_ascii_whitespace())?;
        let length = whole[start..].iter().position(u8::is_ascii_whitespace).unwrap_or(whole.len() - start);
        next = start + length;
        Some(Piece { text: &whole[start..next], whole, start })
    })
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn difference(unit: Unit, place: usize, got: Option<Piece<'_>>, expected: Option<Piece<'_>>) -> Difference {
    let offset = match (got, expected) {
        // A token is shown from its beginning, a line from where it differs.
        (Some(got), Some(expected)) if unit != Unit::Token => common_prefix(got.text, expected.text),
        _ => 0,
    };
    let (line, column) = got.or(expected).map_or((1, 1), |piece| piece.position(offset));
    let excerpt = |piece: Piece<'_>| piece.excerpt(offset.min(piece.text.len()));
    Difference { unit, place, line, column, got: got.map(excerpt), expected: expected.map(excerpt) }
}

fn first_difference<'a>(
    unit: Unit,
    mut actual: impl Iterator<Item = Piece<'a>>,
    mut expected: impl Iterator<Item = Piece<'a>>,
    same: impl Fn(&[u8], &[u8]) -> bool,
) -> Result<(), Difference> {
    for place in 1.. {
        match (actual.next(), expected.next()) {
            (None, None) => break,
            (Some(got), Some(wanted)) if same(got.text, wanted.text) => {}
            (got, wanted) => return Err(difference(unit, place, got, wanted)),
        }
    }
    Ok(())
}

fn exact(actual: &[u8], expected: &[u8]) -> Result<(), Difference> {
    if actual == expected {
        return Ok(());
    }
    let offset = common_prefix(actual, expected);
    let (line, column) = Piece { text: actual, whole: actual, start: 0 }.position(offset);
    let excerpt = |whole: &[u8]| (offset < whole.len()).then(|| Piece { text: whole, whole, start: 0 }.excerpt(offset));
    let (got, expected) = (excerpt(actual), excerpt(expected));
    Err(Difference { unit: Unit::Byte, place: offset + 1, line, column, got, expected })
}

fn unordered(actual: &[u8], expected: &[u8]) -> Result<(), Difference> {
    fn numbered(whole: &[u8]) -> impl Iterator<Item = (usize, Piece<'_>)> {
        (1..).zip(lines(whole)).filter(|(_, line)| !line.text.is_empty())
    }
    let mut due: HashMap<&[u8], usize> = HashMap::new();
    for (_, line) in numbered(expected) {
        *due.entry(line.text).or_default() += 1;
    }
    for (number, line) in numbered(actual) {
        match due.get_mut(line.text) {
            Some(count) if *count > 0 => *count -= 1,
            _ => return Err(difference(Unit::Line, number, Some(line), None)),
        }
    }
    // The last of several equal lines are the ones that are missing.
    let missing = numbered(expected).find(|(_, line)| due.get(line.text).is_some_and(|count| *count > 0));
    missing.map_or(Ok(()), |(number, line)| Err(difference(Unit::Line, number, None, Some(line))))
}

/// A decimal as contest outputs have it: digits, at most one point, an exponent; never `nan`, `inf` or a hexadecimal.
fn decimal(token: &[u8]) -> Option<f64> {
    let plain = token.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    let value = if plain { std::str::from_utf8(token).ok()?.parse::<f64>().ok()? } else { return None };
    value.is_finite().then_some(value)
}

fn is_integer(token: &[u8]) -> bool {
    let digits = token.strip_prefix(b"-").or(token.strip_prefix(b"+")).unwrap_or(token);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

/// Integers from here on are not all told apart by a float.
const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;

fn same_number(actual: &[u8], expected: &[u8], tolerance: Tolerance) -> bool {
    let whole = is_integer(expected);
    // Two integers are compared as text: 10000000 is not 10000001, however close they are relatively.
    if whole && is_integer(actual) {
        return false;
    }
    let (Some(a), Some(b)) = (decimal(actual), decimal(expected)) else { return false };
    let off = (a - b).abs();
    if whole && (off >= 0.5 || b.abs() >= LARGEST_EXACT) {
        return false;
    }
    off <= tolerance.absolute.max(tolerance.relative * b.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOATS: Checker = Checker::FloatTokens(Tolerance { absolute: 1e-6, relative: 1e-6 });

    fn same(checker: Checker, actual: &str, expected: &str) -> bool {
        checker.compare(actual.as_bytes(), expected.as_bytes()).is_ok()
    }

    fn said(checker: Checker, actual: &str, expected: &str) -> String {
        checker.compare(actual.as_bytes(), expected.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn lines_forgive_white_space_at_ends_only() {
        assert!(same(Checker::Lines, "1 2 \r\n3\n\n\n", "1 2\n3"));
        assert!(!same(Checker::Lines, "1  2\n3", "1 2\n3"));
        assert!(!same(Checker::Lines, "\n1", "1"));
        assert!(same(Checker::Lines, "", "\n"));
    }

    #[test]
    fn tokens_forgive_all_white_space() {
        assert!(same(Checker::Tokens, " 1\t2\n3", "1 2 3\n"));
        assert!(!same(Checker::Tokens, "12 3", "1 2 3"));
        assert!(!same(Checker::Tokens, "1 2", "1 2 3"));
    }

    #[test]
    fn floats_have_a_tolerance_and_integers_have_none() {
        assert!(same(FLOATS, "0.3333333", "0.33333334"));
        assert!(same(FLOATS, "1e3", "1000.0"));
        assert!(same(FLOATS, "2.0", "2"));
        assert!(same(FLOATS, "999999999.9999", "1000000000"));
        assert!(!same(FLOATS, "100000001", "100000002"));
        assert!(!same(FLOATS, "100000001.0", "100000002"));
        assert!(!same(FLOATS, "0.33", "0.34"));
    }

    #[test]
    fn huge_integers_are_told_apart() {
        assert!(!same(FLOATS, "9007199254740993", "9007199254740992"));
        assert!(!same(FLOATS, "9007199254740993.0", "9007199254740992"));
        let (huge, other) = ("9".repeat(5000), format!("{}8", "9".repeat(4999)));
        assert!(same(FLOATS, &huge, &huge));
        assert!(!same(FLOATS, &huge, &other));
        assert!(!same(Checker::Tokens, "007", "7"));
    }

    #[test]
    fn the_tolerance_is_the_callers() {
        let absolute = Checker::FloatTokens(Tolerance { absolute: 0.1, relative: 0.0 });
        let relative = Checker::FloatTokens(Tolerance { absolute: 0.0, relative: 0.1 });
        assert!(same(absolute, "0.05", "0.0") && !same(absolute, "105.5", "100.5"));
        assert!(same(relative, "105.5", "100.5") && !same(relative, "0.05", "0.0"));
    }

    #[test]
    fn what_is_no_number_is_compared_as_text() {
        assert!(!same(FLOATS, "nan", "0.5"));
        assert!(!same(FLOATS, "0.5", "nan"));
        assert!(!same(FLOATS, "inf", "1.5"));
        assert!(!same(FLOATS, "1e999", "1e998"));
        assert!(!same(FLOATS, "0x10", "16.0"));
        assert!(same(FLOATS, "nan", "nan"));
    }

    #[test]
    fn look_alikes_are_not_alike() {
        for (actual, expected) in [("１.0", "1.0"), ("а", "a"), ("e\u{301}", "é"), ("1\u{a0}2", "1 2"), ("−1", "-1")]
        {
            assert!(!same(FLOATS, actual, expected) && !same(Checker::Lines, actual, expected), "{actual} {expected}");
        }
    }

    #[test]
    fn exact_means_every_byte() {
        assert!(same(Checker::Exact, "1\n", "1\n"));
        assert!(!same(Checker::Exact, "1", "1\n"));
        assert!(Checker::Exact.compare(&[0xff], b"1").is_err());
        assert!(Checker::Lines.compare(&[0xff], "\u{fffd}".as_bytes()).is_err());
    }

    #[test]
    fn unordered_lines_are_counted() {
        assert!(same(Checker::UnorderedLines, "b \na\n\na", "a\na\nb\n"));
        assert_eq!(
            said(Checker::UnorderedLines, "b\nb", "a\nb"),
            r#"line 2, column 1: got "b", which is not expected"#
        );
        assert_eq!(said(Checker::UnorderedLines, "b", "a\nb"), r#"line 1, column 1: the output lacks "a""#);
    }

    #[test]
    fn the_first_difference_and_its_place_are_named() {
        assert_eq!(said(Checker::Tokens, "1\n 5", "1 2"), r#"token 2 (line 2, column 2): got "5", expected "2""#);
        assert_eq!(said(Checker::Tokens, "1", "1 2"), r#"token 2 (line 1, column 3): the output lacks "2""#);
        assert_eq!(said(Checker::Lines, "a\néx", "a\néy"), r#"line 2, column 2: got "éx", expected "éy""#);
        assert_eq!(
            said(Checker::Exact, "ab\ncd", "ab\nce"),
            r#"byte 5 (line 2, column 2): got "ab\ncd", expected "ab\nce""#
        );
        assert_eq!(said(Checker::Lines, "a\nb", "a"), r#"line 2, column 1: got "b", which is not expected"#);
    }

    #[test]
    fn a_very_long_line_is_shown_around_its_difference() {
        // Miri takes a minute for what takes a millisecond.
        let long = if cfg!(miri) { 1_000 } else { 1_000_000 };
        let (mut actual, expected) = ("é".repeat(long), "é".repeat(2 * long));
        actual.push('x');
        let difference = Checker::Lines.compare(actual.as_bytes(), expected.as_bytes()).unwrap_err();
        assert_eq!((difference.place, difference.column), (1, long + 1));
        assert!(difference.got.as_ref().unwrap().ends_with("éx"));
        assert!(difference.to_string().len() < 1000);
    }
}
