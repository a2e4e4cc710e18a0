//! Compares a program's output with what is expected. Pure, and only ever called in the supervisor: expected outputs
//! never enter a sandboxed process.

/// How output is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checker {
    /// Equal up to white space at line ends and blank lines at the end.
    Lines,
    /// Equal as lists of white-space-separated tokens.
    Tokens,
    /// As `Tokens`; two tokens that are both decimals may differ by `TOLERANCE`, absolute or relative.
    FloatTokens,
    /// Byte for byte.
    Exact,
}

const TOLERANCE: f64 = 1e-6;
/// Characters of either side that a difference shows.
const SHOWN: usize = 120;

impl Checker {
    /// `Ok` if `actual` is right, otherwise the first difference for people.
    pub fn compare(self, actual: &[u8], expected: &str) -> Result<(), String> {
        if self == Checker::Exact {
            return exact(actual, expected.as_bytes());
        }
        let Ok(actual) = std::str::from_utf8(actual) else {
            return Err("the output is not UTF-8".to_owned());
        };
        match self {
            Checker::Lines => lines(actual, expected),
            Checker::Tokens => tokens(actual, expected, |a, b| a == b),
            Checker::FloatTokens | Checker::Exact => tokens(actual, expected, same_number_or_text),
        }
    }
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn exact(actual: &[u8], expected: &[u8]) -> Result<(), String> {
    if actual == expected {
        return Ok(());
    }
    let place = actual.iter().zip(expected).take_while(|(a, b)| a == b).count();
    Err(format!("differs at byte {place} ({} bytes, expected {})", actual.len(), expected.len()))
}

fn lines(actual: &str, expected: &str) -> Result<(), String> {
    let split = |text: &str| -> Vec<String> {
        let mut all: Vec<String> = text.split('\n').map(|line| line.trim_end().to_owned()).collect();
        while all.last().is_some_and(String::is_empty) {
            all.pop();
        }
        all
    };
    first_difference("line", &split(actual), &split(expected), |a, b| a == b)
}

fn tokens(actual: &str, expected: &str, same: fn(&str, &str) -> bool) -> Result<(), String> {
    let split = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    first_difference("token", &split(actual), &split(expected), same)
}

fn first_difference(
    unit: &str,
    actual: &[String],
    expected: &[String],
    same: impl Fn(&str, &str) -> bool,
) -> Result<(), String> {
    for (index, (ours, theirs)) in actual.iter().zip(expected).enumerate() {
        if !same(ours, theirs) {
            return Err(format!("{unit} {}: got {}, expected {}", index + 1, shown(ours), shown(theirs)));
        }
    }
    if actual.len() == expected.len() {
        return Ok(());
    }
    Err(format!("{} {unit}s, expected {}", actual.len(), expected.len()))
}

/// A decimal as contest outputs have it: digits, at most one point, an exponent; never `nan`, `inf` or a hexadecimal.
fn decimal(token: &str) -> Option<f64> {
    let plain = token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    let value = if plain { token.parse::<f64>().ok()? } else { return None };
    value.is_finite().then_some(value)
}

fn is_integer(token: &str) -> bool {
    let digits = token.strip_prefix(['-', '+']).unwrap_or(token);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn same_number_or_text(actual: &str, expected: &str) -> bool {
    if actual == expected {
        return true;
    }
    // Two integers are compared as text: 10000000 is not 10000001, however close they are relatively.
    if is_integer(actual) && is_integer(expected) {
        return false;
    }
    match (decimal(actual), decimal(expected)) {
        (Some(a), Some(b)) => (a - b).abs() <= TOLERANCE * b.abs().max(1.0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(checker: Checker, actual: &str, expected: &str) -> bool {
        checker.compare(actual.as_bytes(), expected).is_ok()
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
        assert!(same(Checker::FloatTokens, "0.3333333", "0.33333334"));
        assert!(same(Checker::FloatTokens, "1e3", "1000.0"));
        assert!(same(Checker::FloatTokens, "2.0", "2"));
        assert!(!same(Checker::FloatTokens, "100000001", "100000002"));
        assert!(!same(Checker::FloatTokens, "0.33", "0.34"));
    }

    #[test]
    fn what_is_no_number_is_compared_as_text() {
        assert!(!same(Checker::FloatTokens, "nan", "0.5"));
        assert!(!same(Checker::FloatTokens, "inf", "1.5"));
        assert!(same(Checker::FloatTokens, "nan", "nan"));
        assert!(!same(Checker::FloatTokens, "１.0", "1.0"));
    }

    #[test]
    fn exact_means_every_byte() {
        assert!(same(Checker::Exact, "1\n", "1\n"));
        assert!(!same(Checker::Exact, "1", "1\n"));
        assert!(Checker::Exact.compare(&[0xff], "1").is_err());
        assert!(Checker::Lines.compare(&[0xff], "1").is_err());
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(Checker::Tokens.compare(b"1 5", "1 2").unwrap_err(), r#"token 2: got "5", expected "2""#);
        assert!(Checker::Lines.compare("é".repeat(500).as_bytes(), "x").unwrap_err().len() < 600);
    }
}
