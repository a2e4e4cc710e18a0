//! Text of a program on its way into explanations, logs and records: control characters become visible, so that none of
//! it can move a cursor, end a line of JSON early or hide what stands before it.

use crate::layers::weakened;

/// `text` with every control character but newline and tab, and every mark that turns the direction of writing, as its
/// escape.
pub fn printable(text: &str) -> String {
    if weakened::is_off("supervisor:printable") {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_unicode());
        }
    }
    shown
}

fn is_harmless(character: char) -> bool {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    matches!(character, '\n' | '\t') || !(character.is_control() || turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_and_controls_are_shown() {
        assert_eq!(printable("Fehler: größer\n\tals 3"), "Fehler: größer\n\tals 3");
        assert_eq!(printable("\x1b[2J\r\0"), r"\u{1b}[2J\u{d}\u{0}");
        assert_eq!(printable("\u{202e}drawkcab"), r"\u{202e}drawkcab");
    }
}
