//! A program's output, any bytes, against any expected text. The first byte says where the one ends and the other begins.

#![no_main]

use _native::checkers::{Checker, Tolerance};
use libfuzzer_sys::fuzz_target;

const ALL: [Checker; 5] = [
    Checker::Exact,
    Checker::Lines,
    Checker::UnorderedLines,
    Checker::Tokens,
    Checker::FloatTokens(Tolerance { absolute: 1e-6, relative: 1e-6 }),
];
/// More than this no difference shows: two texts of 120 characters, each escaped.
const LONGEST_DIFFERENCE: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let Some((&share, rest)) = bytes.split_first() else { return };
    let (actual, expected) = rest.split_at(rest.len() * usize::from(share) / 255);
    let passes = |checker: Checker| match checker.compare(actual, expected) {
        Ok(()) => true,
        Err(difference) => {
            let shown = difference.to_string();
            assert!(!shown.is_empty() && shown.len() <= LONGEST_DIFFERENCE);
            false
        }
    };
    let [exact, lines, unordered, tokens, floats] = ALL.map(passes);
    assert_eq!(exact, actual == expected);
    // Each forgives all that the one before it forgives.
    assert!(!exact || lines);
    assert!(!lines || tokens);
    assert!(!lines || unordered);
    assert!(!tokens || floats);
    for checker in ALL {
        assert!(checker.compare(expected, expected).is_ok(), "a text equals itself");
    }
    for (checker, passes) in [(Checker::Lines, lines), (Checker::UnorderedLines, unordered), (Checker::Tokens, tokens)]
    {
        assert_eq!(checker.compare(expected, actual).is_ok(), passes, "equality has no direction");
    }
});
