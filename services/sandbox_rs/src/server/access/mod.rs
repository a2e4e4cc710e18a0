//! Who may call: roles and their table, tokens, certificates, and the layer that stands before every call.
//!
//! The same rules and words as `troupe_contracts` has for the services in Python (`access`, `tokens`, `guard`); the
//! table is the same file.

mod admission;
mod credentials;
mod followed;
mod guard;
mod table;
mod tokens;

pub use self::admission::Admission;
pub use self::credentials::{Credentials, Listening, Tls};
pub use self::followed::Followed;
pub use self::guard::{Guard, Refusal, uri_names};
pub use self::table::Role;

type Failure = Box<dyn std::error::Error + Send + Sync>;
