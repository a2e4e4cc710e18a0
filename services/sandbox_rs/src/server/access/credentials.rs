//! What the server shows and asks for, from the files that its options name; and where it may listen without.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::Failure;
use super::followed::Followed;
use super::guard::{Asks, Guard};
use super::table::Table;
use super::tokens::{self, KnownToken};

/// How long a changed file may go unseen.
const LOOK: Duration = Duration::from_secs(5);

/// Options on addresses and credentials.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listening {
    pub listen: SocketAddr,
    pub metrics: SocketAddr,
    pub tokens: Option<PathBuf>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_ca: Option<PathBuf>,
    pub insecure: bool,
}

impl Listening {
    /// Refuses options that contradict each other, and an address that others reach while nobody asks who they are.
    pub fn check(&self) -> Result<(), String> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err("--tls-cert and --tls-key come together: set both or neither".to_owned());
        }
        if self.tls_ca.is_some() && self.tls_cert.is_none() {
            return Err("--tls-ca is set without --tls-cert and --tls-key: a service needs its own".to_owned());
        }
        let closed = self.tokens.is_some() || self.tls_ca.is_some();
        let exposed = self.exposed();
        if !exposed.is_empty() && !closed && !self.insecure {
            return Err(format!(
                "{exposed} can be reached from other machines, and anyone could call: set --tokens, or --tls-cert, \
                 --tls-key and --tls-ca (docs/security.md), listen on 127.0.0.1, or set --insecure where the network \
                 keeps others out"
            ));
        }
        if self.insecure && (closed || exposed.is_empty()) {
            let reason = if closed { "callers are asked for credentials" } else { "only loopback is listened on" };
            return Err(format!("--insecure changes nothing: {reason}; leave it out"));
        }
        Ok(())
    }

    /// What to say at each start, since others may reach the service.
    pub fn warning(&self) -> Option<String> {
        let exposed = self.exposed();
        if self.insecure {
            Some(format!("{exposed}: --insecure lets everyone who can reach it call everything"))
        } else if !exposed.is_empty() && self.tls_cert.is_none() {
            Some(format!("{exposed}: tokens and messages travel in plain text; set --tls-cert and --tls-key"))
        } else {
            None
        }
    }

    /// Addresses that are not loopback.
    fn exposed(&self) -> String {
        let addresses = [("--listen", self.listen), ("--metrics", self.metrics)];
        let exposed = addresses.iter().filter(|(_, address)| !address.ip().is_loopback());
        exposed.map(|(name, address)| format!("{name} {address}")).collect::<Vec<_>>().join(" and ")
    }
}

/// The files' contents, as they are now.
pub struct Credentials {
    pub guard: Arc<Guard>,
    /// None where plain text is served.
    pub tls: Option<Arc<Followed<Tls>>>,
}

impl Credentials {
    /// Reads what the options name.
    pub fn read(listening: &Listening) -> Result<Credentials, Failure> {
        let asks = match (listening.tokens.clone(), &listening.tls_ca) {
            (Some(path), _) => Asks::Tokens(Followed::new(vec![path.clone()], move || known_tokens(&path))?),
            (None, Some(_)) => Asks::Certificates,
            (None, None) => Asks::Nothing,
        };
        let authority = listening.tls_ca.clone().filter(|_| matches!(asks, Asks::Certificates));
        let tls = match (listening.tls_cert.clone(), listening.tls_key.clone()) {
            (Some(certificate), Some(key)) => {
                let files = [Some(&certificate), Some(&key), authority.as_ref()].into_iter().flatten().cloned();
                let files = files.collect();
                Some(Arc::new(Followed::new(files, move || Tls::read(&certificate, &key, authority.as_deref()))?))
            }
            _ => None,
        };
        Ok(Credentials { guard: Arc::new(Guard { table: Table::built_in()?, asks }), tls })
    }

    /// Follows the files for as long as the future is polled.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let credentials = self.clone();
            // It comes to nothing only where the runtime ends.
            let _ = tokio::task::spawn_blocking(move || credentials.look()).await;
        }
    }

    fn look(&self) {
        if let Asks::Tokens(known) = &self.guard.asks {
            known.look();
        }
        if let Some(tls) = &self.tls {
            tls.look();
        }
    }
}

/// What handshakes go by.
pub struct Tls {
    /// Callers' certificates are required where they are asked for.
    pub grpc: Arc<ServerConfig>,
    /// A probe has no certificate: one that is shown is verified.
    pub http: Arc<ServerConfig>,
}

impl Tls {
    /// `authority` is that of callers' certificates; none where they are not asked for.
    fn read(certificate: &Path, key: &Path, authority: Option<&Path>) -> Result<Tls, Failure> {
        let chain = certificates(certificate)?;
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| about(key, &error))?;
        let verifiers = match authority {
            None => None,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| about(path, &error))?;
                }
                let asking = || WebPkiClientVerifier::builder(roots.clone().into());
                Some((asking().build()?, asking().allow_unauthenticated().build()?))
            }
        };
        let config = |verifier: Option<Arc<dyn ClientCertVerifier>>| {
            let builder = match verifier {
                None => ServerConfig::builder().with_no_client_auth(),
                Some(verifier) => ServerConfig::builder().with_client_cert_verifier(verifier),
            };
            // Refuses a key of another certificate.
            builder.with_single_cert(chain.clone(), secret.clone_key()).map_err(|error| about(certificate, &error))
        };
        let (required, offered) = verifiers.unzip();
        let mut grpc = config(required)?;
        grpc.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Tls { grpc: Arc::new(grpc), http: Arc::new(config(offered)?) })
    }
}

fn known_tokens(path: &Path) -> Result<Vec<KnownToken>, Failure> {
    let text = String::from_utf8(read(path)?).map_err(|_| format!("{} is not UTF-8 text", path.display()))?;
    Ok(tokens::parse(&text).map_err(|complaint| about(path, &complaint))?)
}

/// Those of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| about(path, &error))?;
    if found.is_empty() {
        return Err(about(path, &"holds no certificate in PEM").into());
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| about(path, &error))
}

fn about(path: &Path, complaint: &dyn Display) -> String {
    format!("{}: {complaint}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(listen: &str, metrics: &str) -> Listening {
        Listening {
            listen: listen.parse().unwrap(),
            metrics: metrics.parse().unwrap(),
            tokens: None,
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            insecure: false,
        }
    }

    const INSIDE: &str = "127.0.0.1:0";
    const OUTSIDE: &str = "0.0.0.0:0";

    #[test]
    fn an_address_that_others_reach_needs_credentials_or_an_explicit_word() {
        assert_eq!(listening(INSIDE, "[::1]:0").check(), Ok(()));
        for (listen, metrics) in [(OUTSIDE, INSIDE), (INSIDE, OUTSIDE), ("[::]:0", INSIDE), ("10.0.0.7:1", OUTSIDE)] {
            let open = listening(listen, metrics);
            assert!(open.check().unwrap_err().contains("set --tokens"));
            let insecure = Listening { insecure: true, ..open.clone() };
            assert_eq!(insecure.check(), Ok(()));
            assert!(insecure.warning().unwrap().contains("--insecure"));
            let closed = Listening { tokens: Some("tokens".into()), ..open };
            assert_eq!(closed.check(), Ok(()));
            assert!(closed.warning().unwrap().contains("plain text"));
        }
    }

    #[test]
    fn options_without_effect_are_refused() {
        let loopback = listening(INSIDE, INSIDE);
        assert!(Listening { insecure: true, ..loopback.clone() }.check().is_err());
        assert!(Listening { tls_cert: Some("c".into()), ..loopback.clone() }.check().is_err());
        assert!(Listening { tls_key: Some("k".into()), ..loopback.clone() }.check().is_err());
        assert!(Listening { tls_ca: Some("a".into()), ..loopback.clone() }.check().is_err());
        let closed = Listening { insecure: true, tokens: Some("t".into()), ..listening(OUTSIDE, INSIDE) };
        assert!(closed.check().unwrap_err().contains("changes nothing"));
    }
}
