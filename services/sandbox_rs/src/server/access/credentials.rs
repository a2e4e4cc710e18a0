//! What the server shows and asks for, from the files that its options name; and where it may listen without.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::guard::Guard;
use super::table::Table;
use super::tokens;

type Failure = Box<dyn std::error::Error + Send + Sync>;

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

/// The files' contents.
pub struct Credentials {
    pub guard: Arc<Guard>,
    tls: Option<Tls>,
}

struct Tls {
    certificate: Vec<u8>,
    key: Vec<u8>,
    /// Of callers' certificates; none where tokens are asked for.
    authority: Option<Vec<u8>>,
}

impl Credentials {
    /// Reads what the options name.
    pub fn read(listening: &Listening) -> Result<Credentials, Failure> {
        let tokens = match &listening.tokens {
            None => Vec::new(),
            Some(path) => {
                let text =
                    String::from_utf8(read(path)?).map_err(|_| format!("{} is not UTF-8 text", path.display()))?;
                tokens::parse(&text).map_err(|complaint| format!("{}: {complaint}", path.display()))?
            }
        };
        let certificates = listening.tls_ca.is_some() && tokens.is_empty();
        let tls = match (&listening.tls_cert, &listening.tls_key) {
            (Some(certificate), Some(key)) => Some(Tls {
                certificate: read(certificate)?,
                key: read(key)?,
                authority: listening.tls_ca.as_deref().filter(|_| certificates).map(read).transpose()?,
            }),
            _ => None,
        };
        let guard = Arc::new(Guard { table: Table::built_in()?, tokens, certificates });
        Ok(Credentials { guard, tls })
    }

    /// For the gRPC port; none serves plain text. Callers' certificates are required where they are asked for.
    pub fn grpc(&self) -> Option<ServerTlsConfig> {
        let tls = self.tls.as_ref()?;
        let config = ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
        Some(match &tls.authority {
            None => config,
            Some(authority) => config.client_ca_root(Certificate::from_pem(authority)),
        })
    }

    /// For the HTTP port, where a probe has no certificate: one that is shown is verified.
    pub fn http(&self) -> Result<Option<TlsAcceptor>, Failure> {
        let Some(tls) = &self.tls else { return Ok(None) };
        let chain = CertificateDer::pem_slice_iter(&tls.certificate).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&tls.key)?;
        let builder = match &tls.authority {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(authority) {
                    roots.add(certificate?)?;
                }
                let verifier = WebPkiClientVerifier::builder(roots.into()).allow_unauthenticated().build()?;
                ServerConfig::builder().with_client_cert_verifier(verifier)
            }
        };
        Ok(Some(TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key)?))))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
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
