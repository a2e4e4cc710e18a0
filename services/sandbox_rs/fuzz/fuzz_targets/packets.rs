//! Packets between supervisor, zygote and program. What is understood says the same when it is sent again; and a real
//! socket delivers any bytes with any number of descriptors, none of which is lost or kept.

#![no_main]

use std::os::fd::{AsFd, AsRawFd};

use _native::inside::assertions::{Case, Common};
use _native::inside::wire::{Configure, FromSolution, LARGEST_PACKET, Report, Spawn, Spawned};
use _native::layers::descriptors;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

const MOST_DESCRIPTORS: usize = 8;

fn settled<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(packet) = serde_json::from_slice::<T>(bytes) else { return };
    let first = serde_json::to_vec(&packet).expect("a packet that was read can be written");
    let again: T = serde_json::from_slice(&first).expect("a packet that was written can be read");
    assert_eq!(first, serde_json::to_vec(&again).expect("and written again"));
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs is mounted").count()
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&count, packet)) = bytes.split_first() else { return };
    settled::<Configure>(packet);
    settled::<Spawn>(packet);
    settled::<Spawned>(packet);
    settled::<Report>(packet);
    settled::<FromSolution>(packet);
    settled::<Common>(packet);
    settled::<Case>(packet);
    if packet.is_empty() || packet.len() > LARGEST_PACKET {
        return;
    }
    let before = open_descriptors();
    {
        let (ours, theirs) = descriptors::packet_pair().expect("a pair of sockets");
        let attached = vec![ours.as_raw_fd(); usize::from(count) % (MOST_DESCRIPTORS + 1)];
        descriptors::send(ours.as_fd(), packet, &attached).expect("a packet within the cap is sent");
        let mut buffer = vec![0; LARGEST_PACKET];
        let (length, received) = descriptors::receive(theirs.as_fd(), &mut buffer).expect("it is received");
        assert_eq!((&buffer[..length], received.len()), (packet, attached.len()));
        for descriptor in &received {
            drop(descriptors::lift(descriptor.as_fd()).expect("a copy"));
        }
        drop(ours);
        drop(received);
        let (length, none) = descriptors::receive(theirs.as_fd(), &mut buffer).expect("the end is seen");
        assert_eq!((length, none.len()), (0, 0));
    }
    assert_eq!(open_descriptors(), before);
});
