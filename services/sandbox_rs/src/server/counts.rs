//! How many entries the lists of a request have, counted before it is decoded: an empty case is two bytes of a message and
//! some fifty of memory, so that a request of nothing else would take twenty times what it is counted for.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::refusal::BadField;
use crate::proto;

pub const MOST_CASES: usize = 10_000;
/// There are fewer layers.
pub const MOST_LAYERS: usize = 100;

/// A request of which the lists are bounded.
pub trait Bounded {
    /// Refuses lists that are too long. What is no such message passes: decoding it stops where counting did.
    fn bound(wire: &[u8]) -> Result<(), BadField>;
}

impl Bounded for proto::RunTestsRequest {
    fn bound(wire: &[u8]) -> Result<(), BadField> {
        at_most("stdin_tests.cases", entries(wire, &[3, 1]), MOST_CASES)?;
        at_most("assertion_tests.cases", entries(wire, &[4, 2]), MOST_CASES)?;
        at_most("required_layers", entries(wire, &[7]), MOST_LAYERS)
    }
}

impl Bounded for proto::RunWorkflowRequest {
    fn bound(wire: &[u8]) -> Result<(), BadField> {
        at_most("start.required_layers", entries(wire, &[1, 9]), MOST_LAYERS)
    }
}

impl Bounded for proto::GetIsolationRequest {
    fn bound(_: &[u8]) -> Result<(), BadField> {
        Ok(())
    }
}

fn at_most(field: &str, count: usize, most: usize) -> Result<(), BadField> {
    if count > most { Err(BadField::new(field, format!("has {count} entries; at most {most}"))) } else { Ok(()) }
}

/// How often the field at the end of a path of numbers comes; a message that comes in parts is the sum of them.
pub fn entries(wire: &[u8], path: &[u32]) -> usize {
    let [number, below @ ..] = path else { return 1 };
    Fields(wire).filter(|(of, _)| of == number).map(|(_, value)| entries(value, below)).sum()
}

/// Numbers and values of the fields with a length, up to what is none.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            let (number, kind) = decode_key(&mut self.0).ok()?;
            if kind == WireType::LengthDelimited {
                let length = decode_varint(&mut self.0).ok()?;
                let (value, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
                self.0 = rest;
                return Some((number, value));
            }
            skip_field(kind, number, &mut self.0, DecodeContext::default()).ok()?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::run_tests_request::Tests;

    use super::*;

    fn refused<T: Bounded>(wire: &[u8]) -> Option<String> {
        T::bound(wire).err().map(|bad| format!("{}: {}", bad.field, bad.complaint))
    }

    fn stdin(count: usize) -> Vec<u8> {
        let case = proto::StdinCase { stdin: "\x0a\x0a".to_owned(), ..Default::default() };
        let tests = proto::StdinTests { cases: vec![case; count], checker: 1, ..Default::default() };
        let solution = "\x1a\x02\x0a".repeat(MOST_CASES);
        proto::RunTestsRequest { solution, tests: Some(Tests::StdinTests(tests)), ..Default::default() }.encode_to_vec()
    }

    fn assertions(count: usize) -> Vec<u8> {
        let tests =
            proto::AssertionTests { cases: vec![String::new(); count], setup: "x".to_owned(), ..Default::default() };
        proto::RunTestsRequest { tests: Some(Tests::AssertionTests(tests)), ..Default::default() }.encode_to_vec()
    }

    fn layers(count: usize) -> Vec<String> {
        vec![String::new(); count]
    }

    #[test]
    fn more_entries_than_a_list_may_have_are_refused_by_its_name() {
        type Tests = proto::RunTestsRequest;
        assert_eq!(refused::<Tests>(&stdin(MOST_CASES)), None);
        let complaint = "has 10001 entries; at most 10000";
        assert_eq!(refused::<Tests>(&stdin(MOST_CASES + 1)), Some(format!("stdin_tests.cases: {complaint}")));
        assert_eq!(refused::<Tests>(&assertions(MOST_CASES)), None);
        assert_eq!(refused::<Tests>(&assertions(MOST_CASES + 1)), Some(format!("assertion_tests.cases: {complaint}")));

        let complaint = "required_layers: has 101 entries; at most 100";
        let tests = |count| Tests { required_layers: layers(count), ..Default::default() }.encode_to_vec();
        assert_eq!(refused::<Tests>(&tests(MOST_LAYERS)), None);
        assert_eq!(refused::<Tests>(&tests(MOST_LAYERS + 1)), Some(complaint.to_owned()));
        let start = |count| {
            let start = proto::StartWorkflow { required_layers: layers(count), seed: 7, ..Default::default() };
            let message = Some(proto::run_workflow_request::Message::Start(start));
            proto::RunWorkflowRequest { message }.encode_to_vec()
        };
        assert_eq!(refused::<proto::RunWorkflowRequest>(&start(MOST_LAYERS)), None);
        assert_eq!(refused::<proto::RunWorkflowRequest>(&start(MOST_LAYERS + 1)), Some(format!("start.{complaint}")));
    }

    #[test]
    fn cases_of_a_message_in_parts_add_up_as_they_do_when_it_is_decoded() {
        let parts = [stdin(MOST_CASES), stdin(1)].concat();
        let Some(Tests::StdinTests(tests)) = proto::RunTestsRequest::decode(&parts[..]).unwrap().tests else {
            panic!()
        };
        assert_eq!((tests.cases.len(), entries(&parts, &[3, 1])), (MOST_CASES + 1, MOST_CASES + 1));
        assert!(refused::<proto::RunTestsRequest>(&parts).is_some());
    }

    #[test]
    fn counting_ends_where_a_message_does_and_bears_whatever_comes() {
        let whole = stdin(3);
        for end in 0..whole.len() {
            assert!(entries(&whole[..end], &[3, 1]) <= 3);
        }
        for wire in [&[0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0xff; 20], &[0x1b, 0x0a, 0x00], &[0]] {
            assert_eq!(entries(wire, &[3, 1]), 0);
        }
    }
}
