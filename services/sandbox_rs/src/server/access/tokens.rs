//! Bearer tokens: a line `ROLE sha256:HEX` for each that is taken; the token itself is known to its bearer alone.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::table::Role;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownToken {
    pub role: Role,
    digest: [u8; 32],
}

/// The tokens of a file's text. An error never quotes a line: it may hold a token in place of its digest.
pub fn parse(text: &str) -> Result<Vec<KnownToken>, String> {
    let mut known = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            known.push(parse_line(line).map_err(|complaint| format!("line {}: {complaint}", index + 1))?);
        }
    }
    if known.is_empty() {
        return Err("names no token: nobody could call; write a line `ROLE sha256:HEX` for each".to_owned());
    }
    Ok(known)
}

fn parse_line(line: &str) -> Result<KnownToken, String> {
    let (role, written) = line.split_once(' ').unwrap_or((line, ""));
    let role = Role::named(role).ok_or_else(|| format!("does not begin with a role: {}", Role::names()))?;
    let digest = written.trim().strip_prefix("sha256:").and_then(from_hex);
    let digest = digest.ok_or("needs sha256: and 64 lower-case hexadecimal digits after the role")?;
    Ok(KnownToken { role, digest })
}

fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let valid = digits.len() == 64 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate().filter(|_| valid) {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    valid.then_some(bytes)
}

/// The role of a token. Takes the same time wherever it differs.
pub fn role_of(known: &[KnownToken], token: &str) -> Option<Role> {
    let digest: [u8; 32] = Sha256::digest(token).into();
    known.iter().fold(None, |found, each| if each.digest.ct_eq(&digest).into() { Some(each.role) } else { found })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(role: &str, token: &str) -> String {
        let digits: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{role} sha256:{digits}\n")
    }

    #[test]
    fn a_token_has_the_role_of_its_line() {
        let text = format!("# two at once\n\n{}{}", line("client", "old"), line("client", "new"));
        let known = parse(&(text + &line("orchestrator", "third"))).unwrap();
        assert_eq!(role_of(&known, "old"), Some(Role::Client));
        assert_eq!(role_of(&known, "new"), Some(Role::Client));
        assert_eq!(role_of(&known, "third"), Some(Role::Orchestrator));
        for other in ["", "ne", "neww", "NEW"] {
            assert_eq!(role_of(&known, other), None);
        }
    }

    #[test]
    fn a_bad_line_is_told_by_number_and_never_quoted() {
        let good = line("client", "a");
        let short = &good[..good.len() - 2];
        let upper = good.to_uppercase().replace("CLIENT SHA256", "client sha256");
        for bad in
            ["client secret-in-the-wrong-place", "client sha256:", "anonymous sha256:00", short, &upper, "client"]
        {
            let complaint = parse(&format!("{good}{bad}")).unwrap_err();
            assert!(complaint.starts_with("line 2: "), "{complaint}");
            assert!(!complaint.contains("secret"));
        }
        assert!(parse("# nothing\n").unwrap_err().contains("names no token"));
    }
}
