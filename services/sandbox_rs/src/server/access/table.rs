//! The roles, and which of them may call what.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;

const TABLE: &str = include_str!("../../../../../libs/contracts/src/troupe_contracts/access.json");

/// What a credential is for. No role holds another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// No credential. A row with it is open to everyone.
    Anonymous,
    Observer,
    Client,
    Engine,
    Learner,
    Orchestrator,
}

impl Role {
    /// Those that a credential can have.
    pub const NAMED: [Role; 5] = [Role::Observer, Role::Client, Role::Engine, Role::Learner, Role::Orchestrator];

    pub fn name(self) -> &'static str {
        match self {
            Role::Anonymous => "anonymous",
            Role::Observer => "observer",
            Role::Client => "client",
            Role::Engine => "engine",
            Role::Learner => "learner",
            Role::Orchestrator => "orchestrator",
        }
    }

    /// The role with this name, unless it is that of no credential.
    pub fn named(name: &str) -> Option<Role> {
        Role::NAMED.into_iter().find(|role| role.name() == name)
    }

    /// All names, for messages.
    pub fn names() -> String {
        Role::NAMED.map(Role::name).join(", ")
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Service, then method, to the roles that may call it. What has no row nobody may call.
#[derive(Deserialize)]
pub struct Table(HashMap<String, HashMap<String, Vec<Role>>>);

impl Table {
    /// The table that this program was built with.
    pub fn built_in() -> Result<Table, serde_json::Error> {
        serde_json::from_str(TABLE)
    }

    /// `method` is "service/method".
    pub fn callers(&self, method: &str) -> &[Role] {
        let found = method.split_once('/').and_then(|(service, method)| self.0.get(service)?.get(method));
        found.map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_call_that_is_served_has_a_row() {
        let table = Table::built_in().unwrap();
        let mut served = 0;
        for descriptors in [crate::proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET] {
            for file in FileDescriptorSet::decode(descriptors).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        let rpc = format!("{}.{}/{}", file.package(), service.name(), method.name());
                        assert!(!table.callers(&rpc).is_empty(), "{rpc} has no row");
                        served += 1;
                    }
                }
            }
        }
        assert!(served >= 5);
        for version in ["v1", "v1alpha"] {
            assert!(
                !table.callers(&format!("grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")).is_empty()
            );
        }
    }

    #[test]
    fn what_has_no_row_nobody_may_call() {
        let table = Table::built_in().unwrap();
        for rpc in ["troupe.v1.Sandbox/Escape", "troupe.v1.Nothing/RunTests", "RunTests", ""] {
            assert!(table.callers(rpc).is_empty());
        }
        assert_eq!(table.callers("troupe.v1.Sandbox/RunTests"), [Role::Orchestrator]);
    }
}
