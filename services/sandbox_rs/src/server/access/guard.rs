//! Decides whether a call goes on: by tokens, by client certificates, or for everyone.

use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::Status;
use webpki::EndEntityCert;

use super::followed::Followed;
use super::table::{Role, Table};
use super::tokens::{self, KnownToken};

const ROLE_NAME: &str = "troupe-role:";

/// Who may call what, by what callers are asked for.
pub struct Guard {
    pub table: Table,
    pub asks: Asks,
}

/// What callers are asked for.
pub enum Asks {
    /// Everyone may call everything.
    Nothing,
    Tokens(Followed<Vec<KnownToken>>),
    Certificates,
}

/// Why a call does not go on, with the remedy.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No credential, or one that is not taken.
    Unauthenticated(String),
    /// The credential is good, and not for this call.
    PermissionDenied(String),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unauthenticated(text) => Status::unauthenticated(text),
            Refusal::PermissionDenied(text) => Status::permission_denied(text),
        }
    }
}

impl Guard {
    /// `method` is "service/method", `authorization` the call's metadata, `names` the URI names of its certificate.
    /// The role that the call comes with; `Anonymous` where nobody is asked.
    pub fn admit(&self, method: &str, authorization: Option<&str>, names: &[String]) -> Result<Role, Refusal> {
        let callers = self.table.callers(method);
        if callers.contains(&Role::Anonymous) {
            return Ok(Role::Anonymous);
        }
        let role = match &self.asks {
            Asks::Nothing => return Ok(Role::Anonymous),
            Asks::Tokens(known) => role_of_token(&known.value(), method, authorization)?,
            Asks::Certificates => role_of_certificate(method, names)?,
        };
        if callers.contains(&role) {
            return Ok(role);
        }
        let mut wanted: Vec<&str> = callers.iter().map(|role| role.name()).collect();
        wanted.sort_unstable();
        let wanted =
            if wanted.is_empty() { "no role: it has no row in access.json".to_owned() } else { wanted.join(" or ") };
        Err(Refusal::PermissionDenied(format!(
            "{method} is for {wanted}; this credential's role is {role}: call with a credential of the other role"
        )))
    }
}

fn role_of_token(known: &[KnownToken], method: &str, authorization: Option<&str>) -> Result<Role, Refusal> {
    let refused = |text: String| Err(Refusal::Unauthenticated(text));
    let Some(authorization) = authorization else {
        return refused(format!(
            "{method} needs a token and the call shows none: name a file that holds one with TROUPE_TOKEN_FILE, \
             or send the metadata `authorization: Bearer TOKEN`"
        ));
    };
    let token = match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => {
            return refused(format!(
                "{method} needs the metadata `authorization: Bearer TOKEN`; it has another scheme"
            ));
        }
    };
    match tokens::role_of(known, token) {
        Some(role) => Ok(role),
        None => refused(format!(
            "{method}: the token is none of this service's; it may have been replaced: \
             read it again, or have its SHA-256 put into the service's TROUPE_TOKENS"
        )),
    }
}

fn role_of_certificate(method: &str, names: &[String]) -> Result<Role, Refusal> {
    let named: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(ROLE_NAME)).collect();
    let role = if let [only] = named[..] { Role::named(only) } else { None };
    role.ok_or_else(|| {
        Refusal::Unauthenticated(format!(
            "{method}: the client certificate names {} roles; it must have one URI name {ROLE_NAME}ROLE with a role of {}",
            named.len(),
            Role::names()
        ))
    })
}

/// The URI names of a certificate that the handshake has verified.
pub fn uri_names(chain: Option<&[CertificateDer<'_>]>) -> Vec<String> {
    let Some(Ok(certificate)) = chain.and_then(<[_]>::first).map(EndEntityCert::try_from) else { return Vec::new() };
    certificate.valid_uri_names().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST_OF_A: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
    const RUN: &str = "troupe.v1.Sandbox/RunTests";

    fn guard(asks: Asks) -> Guard {
        Guard { table: Table::built_in().unwrap(), asks }
    }

    /// Token `a` has the role.
    fn a_is(role: Role) -> Guard {
        let line = format!("{role} sha256:{DIGEST_OF_A}");
        guard(Asks::Tokens(Followed::new(Vec::new(), move || Ok(tokens::parse(&line)?)).unwrap()))
    }

    fn admitted(guard: &Guard, method: &str, authorization: Option<&str>, name: &str) -> Result<Role, Refusal> {
        let names: Vec<String> = name.split_whitespace().map(str::to_owned).collect();
        guard.admit(method, authorization, &names)
    }

    #[test]
    fn without_credentials_everyone_may_call() {
        assert_eq!(admitted(&guard(Asks::Nothing), RUN, None, ""), Ok(Role::Anonymous));
    }

    #[test]
    fn a_token_admits_to_the_calls_of_its_role() {
        let client = a_is(Role::Client);
        let orchestrator = a_is(Role::Orchestrator);
        for shown in ["Bearer a", "bearer a", "BEARER  a "] {
            assert_eq!(admitted(&orchestrator, RUN, Some(shown), ""), Ok(Role::Orchestrator));
            let Err(Refusal::PermissionDenied(text)) = admitted(&client, RUN, Some(shown), "") else { panic!() };
            assert!(
                text.starts_with("troupe.v1.Sandbox/RunTests is for orchestrator; this credential's role is client")
            );
        }
        // With tokens a certificate counts for nothing.
        for shown in [None, Some(""), Some("Bearer"), Some("Basic a"), Some("Bearer b"), Some("a")] {
            let refused = admitted(&orchestrator, RUN, shown, "troupe-role:orchestrator");
            assert!(matches!(refused, Err(Refusal::Unauthenticated(_))), "{shown:?}");
            assert_eq!(admitted(&orchestrator, "grpc.health.v1.Health/Check", shown, ""), Ok(Role::Anonymous));
        }
    }

    #[test]
    fn a_certificate_admits_by_the_one_role_that_it_names() {
        let guard = guard(Asks::Certificates);
        assert_eq!(admitted(&guard, RUN, None, "spiffe://x troupe-role:orchestrator"), Ok(Role::Orchestrator));
        assert!(matches!(admitted(&guard, RUN, None, "troupe-role:observer"), Err(Refusal::PermissionDenied(_))));
        for names in ["", "troupe-role:", "troupe-role:anonymous", "troupe-role:client troupe-role:orchestrator"] {
            assert!(matches!(admitted(&guard, RUN, None, names), Err(Refusal::Unauthenticated(_))), "{names}");
        }
    }

    #[test]
    fn a_call_without_a_row_is_denied_to_every_role() {
        let guard = a_is(Role::Orchestrator);
        let refused = admitted(&guard, "troupe.v1.Sandbox/Escape", Some("Bearer a"), "");
        assert!(matches!(refused, Err(Refusal::PermissionDenied(_))));
    }
}
