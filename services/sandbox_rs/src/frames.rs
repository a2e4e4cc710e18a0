//! The frames of the script's pipe (docs/script-pipe.md): length-prefixed JSON, strictly typed, capped.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::layers::weakened;

/// Largest frame, in either direction.
pub const LARGEST_FRAME: usize = 1 << 20;
/// Calls of one script that may be in flight at once.
pub const MOST_CALLS_IN_FLIGHT: usize = 64;
/// Tool calls, and entries and exits of nodes, of one script in all.
pub const MOST_TOOL_CALLS: u64 = 10_000;
pub const MOST_NODE_EVENTS: u64 = 10_000;
/// Bytes of a name in a node's event.
const LONGEST_NAME: usize = 1024;
const LARGEST_INTEGER: u64 = 1 << 53;

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToScript {
    Start { script: String, question: String, task_type: &'static str, delivery_instruction: String, seed: u64 },
    AgentReply { call_id: u64, text: String },
    AgentRefusal { call_id: u64, reason: String },
    ToolResult { call_id: u64, tool_run_id: u64, output: String, verdict: &'static str },
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromScript {
    AgentCall(AgentCall),
    ToolCall(ToolCall),
    NodeEvent(NodeEvent),
    Result(ScriptResult),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentCall {
    pub call_id: u64,
    pub conversation_id: String,
    pub agent: String,
    pub messages: Vec<Message>,
    pub tool_run_ids: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    User,
    Tool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    pub call_id: u64,
    pub conversation_id: String,
    pub code: String,
    #[serde(deserialize_with = "required_option")]
    pub timeout_seconds: Option<f64>,
}

/// An option that must be present; plain `Option` would take a missing field for null.
fn required_option<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Option::deserialize(deserializer)
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEvent {
    pub kind: NodeEventKind,
    pub visit_id: u64,
    pub parent_visit_id: u64,
    pub node: String,
    pub node_type: String,
    pub result_type: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeEventKind {
    Enter,
    Exit,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptResult {
    pub content: String,
    pub result_type: String,
    pub own_question: bool,
}

/// The bytes of a frame to the script.
pub fn encode(frame: &ToScript) -> Vec<u8> {
    let body = serde_json::to_vec(frame).expect("frames hold strings and integers only");
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// A frame's body, or what is wrong with it.
pub fn decode(body: &[u8]) -> Result<FromScript, String> {
    let frame: FromScript = serde_json::from_slice(body).map_err(|error| format!("malformed frame: {error}"))?;
    let integers: Vec<u64> = match &frame {
        FromScript::AgentCall(call) => std::iter::once(call.call_id).chain(call.tool_run_ids.iter().copied()).collect(),
        FromScript::ToolCall(call) => {
            if call.timeout_seconds.is_some_and(|seconds| !seconds.is_finite() || seconds <= 0.0) {
                return Err("malformed frame: timeout_seconds must be positive".to_owned());
            }
            vec![call.call_id]
        }
        FromScript::NodeEvent(event) => {
            if [&event.node, &event.node_type, &event.result_type].iter().any(|name| name.len() > LONGEST_NAME) {
                return Err(format!("malformed frame: a name of more than {LONGEST_NAME} bytes"));
            }
            vec![event.visit_id, event.parent_visit_id]
        }
        FromScript::Result(_) => Vec::new(),
    };
    if integers.iter().any(|&value| value >= LARGEST_INTEGER) {
        return Err("malformed frame: an integer of 2^53 or more".to_owned());
    }
    Ok(frame)
}

/// Reads one frame; `None` at the end of the stream. A stream that ends inside a frame was cut by the script's end.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<FromScript>, String> {
    let mut prefix = [0; 4];
    if stream.read_exact(&mut prefix).await.is_err() {
        return Ok(None);
    }
    let length = u32::from_le_bytes(prefix) as usize;
    if length > LARGEST_FRAME && !weakened::is_off("supervisor:frame_size") {
        return Err(format!("a frame of {length} bytes; at most {LARGEST_FRAME}"));
    }
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    decode(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_length_prefixed_json() {
        let bytes = encode(&ToScript::AgentReply { call_id: 7, text: "é".to_owned() });
        let (prefix, body) = bytes.split_at(4);
        assert_eq!(u32::from_le_bytes(prefix.try_into().unwrap()) as usize, body.len());
        assert_eq!(std::str::from_utf8(body).unwrap(), r#"{"type":"agent_reply","call_id":7,"text":"é"}"#);
    }

    #[test]
    fn a_good_frame_is_read() {
        let body = br#"{"type":"agent_call","call_id":1,"conversation_id":"c","agent":"A",
                        "messages":[{"role":"user","content":"hi"}],"tool_run_ids":[]}"#;
        let Ok(FromScript::AgentCall(call)) = decode(body) else { panic!("not an agent call") };
        assert_eq!(call.messages[0], Message { role: Role::User, content: "hi".to_owned() });
    }

    #[test]
    fn anything_else_is_refused() {
        let bad = [
            r#""#,
            r#"[]"#,
            r#"{"type":"reward","value":1}"#,
            r#"{"type":"result","content":"42","result_type":"x"}"#,
            r#"{"type":"result","content":42,"result_type":"x","own_question":false}"#,
            r#"{"type":"result","content":"4","result_type":"x","own_question":false,"reward":1}"#,
            r#"{"type":"tool_call","call_id":1,"conversation_id":"","code":"1"}"#,
            r#"{"type":"tool_call","call_id":1,"conversation_id":"","code":"1","timeout_seconds":-1}"#,
            r#"{"type":"tool_call","call_id":-1,"conversation_id":"","code":"1","timeout_seconds":null}"#,
            r#"{"type":"agent_call","call_id":9007199254740992,"conversation_id":"c","agent":"A","messages":[],"tool_run_ids":[]}"#,
            r#"{"type":"agent_call","call_id":1,"conversation_id":"c","agent":"A","messages":[{"role":"assistant","content":"x"}],"tool_run_ids":[]}"#,
        ];
        for body in bad {
            assert!(decode(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_name_of_a_node_is_short() {
        let event = |name: &str| {
            format!(
                r#"{{"type":"node_event","kind":"exit","visit_id":1,"parent_visit_id":0,"node":"{name}",
                     "node_type":"Agent","result_type":"text"}}"#
            )
        };
        assert!(decode(event("Solver").as_bytes()).is_ok());
        assert!(decode(event(&"x".repeat(LONGEST_NAME + 1)).as_bytes()).unwrap_err().contains("1024 bytes"));
    }

    #[tokio::test]
    async fn a_frame_beyond_the_cap_is_refused_before_it_is_read() {
        let mut stream: &[u8] = &[0xff, 0xff, 0xff, 0x7f];
        assert!(read(&mut stream).await.unwrap_err().contains("at most"));
        let mut cut: &[u8] = &[5, 0, 0, 0, b'{'];
        assert_eq!(read(&mut cut).await, Ok(None));
    }
}
