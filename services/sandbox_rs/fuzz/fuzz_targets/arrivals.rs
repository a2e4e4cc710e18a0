//! What a caller's body may be, however it is cut: its messages are counted as they lie in it. The first byte says how many
//! of the next are sizes of pieces; without any it comes whole.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&count, rest)) = bytes.split_first() else { return };
    let (sizes, body) = rest.split_at(rest.len().min(usize::from(count)));
    _native::server::fuzzing::arrival(sizes, body);
});
