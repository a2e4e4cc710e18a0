//! What a caller may send: any bytes as each of the service's messages. They are jobs within their limits, or refused with
//! the field's name.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| _native::server::fuzzing::request(bytes));
